"""Taking out of the ledger what is older than it is to be kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from evaluator.shards import shards_of
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.rows import UNDATED
from evaluator.tables.spans import SpansSnapshot

LONGEST_TRACE = timedelta(days=1)
"""How long after its first span a removed trace may have ended: until then late spans of it are out of scope. The
least that is kept, so that what is out of scope is past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """The days that were taken out, or would be, how many rows they held, and the new floor; or why none may go."""

    days: Sequence[date] = ()
    rows: int = 0
    floor: datetime | None = None
    held: str | None = None


def expire(
    ledger: Ledger,
    keep: timedelta,
    *,
    spans: SpansSnapshot | None,
    published: int,
    now: datetime,
    dry_run: bool = False,
) -> Expired:
    """Remove the days before `now - keep` of which everything is decided and published, and raise the floor.

    Guarded like any other commit. `spans`: the table that live reads, where there is one; what it has not read may be
    of any day. `published`: the lowest of the sinks' cursors. A day that holds an open row, or a row that a sink lacks,
    stays, and those since a session began that may go on; while spans are unread, or a trace of that time still waits,
    all of them do. Raises TableError.
    """
    book = ledger.open()
    first_kept = (now - max(keep, LONGEST_TRACE)).astimezone(UTC).date()
    while True:
        if spans is not None and _is_unread(book, spans):
            return Expired(held="commits of the spans table are unread")
        waiting = [row for row in book.open_rows() if row.state == "waiting" and row.day <= first_kept]
        if any(row.target_type != "SESSION" for row in waiting):
            return Expired(held="a trace of its time still waits")
        before = min([first_kept, *(row.day - LONGEST_TRACE for row in waiting)])
        # What is not open any more has a seq below `open`, and so have the waits that a decision on another
        # day ended: none of them comes back to life when that day goes.
        gone = {
            day: rows
            for day, (newest, rows) in book.days(before=before).items()
            if day != UNDATED and newest < book.open_from and newest <= published
        }
        if not gone:
            return Expired()
        floor = datetime.combine(before, time(), UTC) + LONGEST_TRACE
        expired = Expired(days=sorted(gone), rows=sum(gone.values()), floor=floor)
        where = "day in (" + ", ".join(f"'{day}'" for day in expired.days) + ")"
        if dry_run or book.replace(where, [], floor=floor):
            return expired


def _is_unread(book: Book, spans: SpansSnapshot) -> bool:
    """Whether live began to read the table, and one of its shards has not come to the end."""
    cursors = [book.cursor(spans.table_id, shard) for shard in shards_of(book.shards)]
    read = [cursor for cursor in cursors if cursor is not None]
    return bool(read) and (len(read) < len(cursors) or min(read) < spans.version)
