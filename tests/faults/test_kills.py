"""The real worker in a process that is killed: nothing is lost, nothing is doubled."""

from pathlib import Path

import pytest

from tests.faults.kills import run_kills

KILLS = 6


@pytest.mark.slow
def test_a_worker_that_is_killed_again_and_again_gives_every_trace_one_result(tmp_path: Path) -> None:
    outcome = run_kills(tmp_path, KILLS, seed=1)

    assert outcome.kills == KILLS
