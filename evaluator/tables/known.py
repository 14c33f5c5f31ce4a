"""Which targets some days of the ledger have rows of: of the others, which are most in a backlog, nothing is read."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from evaluator.tables.rows import Row


class Known:
    """The ids of the targets by day, as they were when a day was first asked about and with what was committed since.

    A target that was erased meanwhile stays in it: it says what there may be, and never too little.
    """

    def __init__(self) -> None:
        self._ids: dict[date, list[pa.Array]] = {}

    def unread(self, days: Iterable[date]) -> set[date]:
        """The days of which nothing was taken in."""
        return set(days) - self._ids.keys()

    def take_in(self, days: Iterable[date], rows: pa.Table) -> None:
        """Take in all rows of some days; columns `day` and `target_id`."""
        for day in days:
            of_day = rows.filter(pc.equal(rows.column("day"), pa.scalar(day, pa.date32())))
            self._ids[day] = [of_day.column("target_id").unique()]

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
        wanted = pa.array(target_ids, pa.string())
        found: set[str] = set()
        for day in days:
            ids = pa.chunked_array(self._ids[day], pa.string())
            found.update(ids.filter(pc.is_in(ids, wanted)).to_pylist())
        return found
