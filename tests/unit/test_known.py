"""What the ledger knows of many targets: the same as is found when each is named, whoever committed it when."""

import random
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.rows import Key, Row

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAYS = [date(2026, 11, day) for day in (18, 19, 20)]
TARGETS = [f"{number:032x}" for number in range(12)]


def a_row(chance: random.Random) -> Row:
    target = chance.choice(TARGETS)
    return Row(
        day=DAYS[int(target, 16) % 3],
        scope="live",
        target_type="TRACE",
        target_id=target,
        trace_id=target,
        scorer=chance.choice((None, "J")),
        state="done",
        revision=chance.randint(0, 2),
    )


def found(book: Book, days: list[date], *, named: bool) -> Mapping[Key, Row]:
    with patch("evaluator.tables.reading.NAMED_CHARACTERS", 100_000 if named else 0):
        return book.states(TARGETS, days)


@pytest.mark.parametrize("seed", range(4))
def test_many_targets_are_found_as_few_are(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    ledger = Ledger(DeltaStore(str(tmp_path)), lambda: NOON)
    ledger.provision()
    mine, other = ledger.open(), ledger.open()
    for _ in range(12):
        chance.choice((mine, other)).commit([[a_row(chance)] for _ in range(chance.randint(1, 3))])
        days = chance.sample(DAYS, chance.randint(1, 3))

        assert found(mine, days, named=False) == found(mine, days, named=True)


def test_nothing_is_read_again_for_targets_that_a_day_does_not_know(tmp_path: Path) -> None:
    ledger = Ledger(DeltaStore(str(tmp_path)), lambda: NOON)
    ledger.provision()
    book = ledger.open()
    found(book, DAYS, named=False)
    with patch.object(Book, "_read", side_effect=AssertionError("read")):
        assert found(book, DAYS, named=False) == {}
