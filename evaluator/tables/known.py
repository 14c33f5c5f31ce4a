"""Which targets some days of the ledger have rows of: of the others, which are most in a backlog, nothing is read."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from evaluator.tables.rows import Row

MOST = 1_000_000
"""Ids that are kept at most, some 40 MB, before the days are forgotten that nobody asks about any more."""


class Known:
    """The ids of the targets by day, as they were when a day was first asked about and with what was committed since.

    A target that was erased meanwhile stays in it: it says what there may be, and never too little.
    """

    def __init__(self) -> None:
        self._ids: dict[date, list[pa.Array]] = {}

    def unread(self, days: Collection[date]) -> set[date]:
        """The days of which nothing was taken in. Others may be forgotten for them."""
        if sum(len(ids) for of_day in self._ids.values() for ids in of_day) > MOST:
            self._ids = {day: ids for day, ids in self._ids.items() if day in days}
        return set(days) - self._ids.keys()

    def take_in(self, days: Iterable[date], rows: pa.Table) -> None:
        """Take in all rows of some days; columns `day` and `target_id`. Most days that hostile times name have none."""
        self._ids |= {day: [] for day in days}
        for day in rows.column("day").unique():
            of_day = rows.filter(pc.equal(rows.column("day"), day))
            self._ids[day.as_py()] = [of_day.column("target_id").unique()]

    def add(self, rows: Iterable[Row]) -> None:
        """Take in what was committed since."""
        fresh: dict[date, set[str]] = defaultdict(set)
        for row in rows:
            if row.day in self._ids:
                fresh[row.day].add(row.target_id)
        for day, ids in fresh.items():
            self._ids[day].append(pa.array(ids, pa.string()))

    def among(self, target_ids: Collection[str], days: Iterable[date]) -> set[str]:
        """Those of some targets that the days know of."""
        ids = pa.chunked_array([part for day in days for part in self._ids[day]], pa.string())
        found: list[str] = ids.filter(pc.is_in(ids, pa.array(target_ids, pa.string()))).to_pylist()
        return set(found)
