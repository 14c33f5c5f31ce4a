"""What waits for another try, and for how long."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from evaluator.sinks.waiting import Waiting

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def a_waiting(folder: Path) -> Waiting:
    return Waiting(folder / "state" / "waiting.db", timedelta(hours=1))


def test_nothing_is_written_while_nothing_waits(tmp_path: Path) -> None:
    waiting = a_waiting(tmp_path)

    assert waiting.settle(missing={}, placed=["a"], now=NOON) == 0
    assert waiting.due(NOON) == {}
    assert not waiting.file.exists()


def test_an_item_is_due_after_a_minute_and_then_at_growing_pauses(tmp_path: Path) -> None:
    waiting = a_waiting(tmp_path)
    tries = []
    now = NOON
    while now < NOON + timedelta(hours=2):
        if now == NOON or waiting.due(now):
            tries.append((now - NOON) // MINUTE)
            waiting.settle(missing={"a": b"1"}, placed=[], now=now)
        now += MINUTE

    assert tries == [0, 1, 2, 4, 8, 16, 31, 46, 61]


def test_an_item_that_was_placed_is_forgotten(tmp_path: Path) -> None:
    waiting = a_waiting(tmp_path)
    waiting.settle(missing={"a": b"1", "b": b"2"}, placed=[], now=NOON)

    waiting.settle(missing={}, placed=["a"], now=NOON + MINUTE)

    assert waiting.due(NOON + MINUTE) == {"b": b"2"}


def test_an_item_that_is_looked_for_once_an_hour_gets_a_second_look(tmp_path: Path) -> None:
    waiting = a_waiting(tmp_path)
    later = NOON + timedelta(hours=3)
    waiting.settle(missing={"a": b"1"}, placed=[], now=NOON)

    assert waiting.due(later) == {"a": b"1"}
    assert waiting.settle(missing={"a": b"1"}, placed=[], now=later) == 1
    assert waiting.due(later + timedelta(days=1)) == {}


def test_a_file_that_was_lost_is_not_taken_for_the_whole_one(tmp_path: Path) -> None:
    waiting = a_waiting(tmp_path)
    whole_at_first = waiting.whole()
    waiting.mark_whole()

    waiting.file.unlink()
    waiting.settle(missing={"a": b"1"}, placed=[], now=NOON)

    assert not whole_at_first
    assert not waiting.whole()
    waiting.mark_whole()
    assert waiting.whole()
