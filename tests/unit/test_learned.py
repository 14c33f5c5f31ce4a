"""What was found of a provider's limits is kept for the next worker."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evaluator.models.learned import Grant, LearnedGrants
from evaluator.models.limiter import Limiter
from evaluator.models.pace import FIRST_WINDOW, Pace

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)


def test_what_was_granted_is_known_for_an_hour(tmp_path: Path) -> None:
    grant = Grant(at_once=128, per_second=29.5)
    LearnedGrants(tmp_path, lambda: NOON).keep("openai/m", "http://a", grant)

    assert LearnedGrants(tmp_path, lambda: NOON + timedelta(minutes=59)).of("openai/m", "http://a") == grant
    assert LearnedGrants(tmp_path, lambda: NOON + timedelta(minutes=61)).of("openai/m", "http://a") is None
    assert LearnedGrants(tmp_path, lambda: NOON).of("openai/m", "http://b") is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"at_once": "many"}', b'{"at_once": 3}'])
def test_a_file_that_says_nothing_is_passed_over(tmp_path: Path, content: bytes) -> None:
    grants = LearnedGrants(tmp_path, lambda: NOON)
    grants.keep("openai/m", "http://a", Grant(at_once=128))
    [file] = (tmp_path / "grants").iterdir()
    file.write_bytes(content)

    assert grants.of("openai/m", "http://a") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    grants = LearnedGrants(tmp_path, lambda: NOON)
    grants.keep("openai/m", "http://a", Grant(at_once=128))

    assert grants.of("openai/m", "http://a") is None


def test_a_pace_begins_where_another_left_off() -> None:
    pace = Pace(128)
    pace.begin_at(Grant(at_once=100), 0.0)
    for _ in range(100):
        assert pace.wait(0.0) == 0
        pace.started(0.0)

    assert pace.window == 100 > FIRST_WINDOW
    assert pace.wait(0.0) > 0


def test_a_pace_that_was_found_holds_from_the_first_call_on() -> None:
    pace = Pace(128)
    pace.begin_at(Grant(at_once=128, per_second=10.0), 0.0)
    pace.started(0.0)

    assert pace.wait(0.0) == pytest.approx(0.1, rel=0.05)


def test_a_smaller_cap_holds_whatever_was_granted() -> None:
    pace = Pace(4)
    pace.begin_at(Grant(at_once=128), 0.0)

    assert pace.grant == Grant(at_once=4)


@pytest.mark.parametrize(("per_second", "kept"), [(29.5, True), (0.05, False)])
async def test_a_rate_that_was_rather_an_outage_is_not_kept(per_second: float, kept: bool) -> None:
    limiter = Limiter(max_concurrency=128, known=Grant(at_once=128, per_second=per_second))
    unasked = limiter.grant
    async with limiter.slot(1):
        pass

    assert unasked is None
    assert (limiter.grant is not None) is kept
