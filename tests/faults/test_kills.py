"""The real worker in a process that is killed and disturbed: nothing is lost, nothing is doubled."""

from pathlib import Path

import pytest

from tests.faults.kills import run_kills


@pytest.mark.slow
@pytest.mark.timeout(300)  # it waits for commands, some fifteen of them
def test_a_worker_that_is_killed_again_and_again_gives_every_trace_one_result(tmp_path: Path) -> None:
    outcome = run_kills(tmp_path, kills=8, seed=1, disturbed=1.0)

    assert outcome.kills == 8
    assert len(outcome.disturbances) >= 8


@pytest.mark.slow
@pytest.mark.timeout(300)  # it waits for commands, some fifteen of them
def test_a_worker_that_is_killed_while_its_store_fails_gives_every_trace_one_result(tmp_path: Path) -> None:
    outcome = run_kills(tmp_path, kills=2, seed=10, store="s3", disturbed=1.0)

    assert outcome.kills == 2
    assert {"store refuses", "store hangs"} & outcome.disturbances.keys()
