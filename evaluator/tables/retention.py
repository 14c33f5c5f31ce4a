"""Taking out of the ledger what is older than it is to be kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from evaluator.tables.ledger import Ledger
from evaluator.tables.rows import UNDATED

LONGEST_TRACE = timedelta(days=1)
"""How long after its first span a removed trace may have ended: until then late spans of it are out of scope. The
least that is kept, so that what is out of scope is past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """The days that were taken out, or would be, how many rows they held, and the new floor."""

    days: Sequence[date] = ()
    rows: int = 0
    floor: datetime | None = None


def expire(
    ledger: Ledger, keep: timedelta, *, published: int, now: datetime, dry_run: bool = False
) -> Expired:
    """Remove the days before `now - keep` of which everything is decided and published, and raise the floor.

    Guarded like any other commit. `published`: the lowest of the sinks' cursors. A day that holds an open row, or a
    row that a sink lacks, stays; while a trace of that time still waits, all of them do. Raises TableError.
    """
    book = ledger.open()
    first_kept = (now - max(keep, LONGEST_TRACE)).astimezone(UTC).date()
    while True:
        if any(row.state == "waiting" and row.day <= first_kept for row in book.open_rows()):
            return Expired()
        # What is not open any more has a seq below `open`, and so have the waits that a decision on another
        # day ended: none of them comes back to life when that day goes.
        gone = {
            day: rows
            for day, (newest, rows) in book.days(before=first_kept).items()
            if day != UNDATED and newest < book.open_from and newest <= published
        }
        if not gone:
            return Expired()
        floor = datetime.combine(first_kept, time(), UTC) + LONGEST_TRACE
        expired = Expired(days=sorted(gone), rows=sum(gone.values()), floor=floor)
        where = "day in (" + ", ".join(f"'{day}'" for day in expired.days) + ")"
        if dry_run or book.replace(where, [], floor=floor):
            return expired
