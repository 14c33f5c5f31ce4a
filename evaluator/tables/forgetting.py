"""Erasing what the ledger knows of some traces, and of the sessions that they belong to."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from evaluator.feedback import Erased, Target
from evaluator.portions import portions
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.rows import Row, from_arrow, tombstone
from evaluator.tables.snapshot import quoted

TARGETS_A_COMMIT = 1_000
_COLUMNS = [
    "seq", "day", "scope", "target_type", "target_id", "trace_id", "span_id", "session_id", "scorer", "version",
    "revision", "state", "reason", "trace_start",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What is to be forgotten, or was: the traces and sessions, and how many rows the ledger held of them.

    `committed`: whether there was anything to do.
    """

    erased: tuple[Erased, ...] = ()
    rows: int = 0
    committed: bool = False

    def __add__(self, other: "Erasure") -> "Erasure":
        return Erasure(
            erased=self.erased + other.erased,
            rows=self.rows + other.rows,
            committed=self.committed or other.committed,
        )


def forget(
    ledger: Ledger, trace_ids: Collection[str], session_ids: Collection[str], *, dry_run: bool = False
) -> Erasure:
    """Put a decision without content in the place of every row of some targets; what is gone is gone for good.

    A session that has results is erased with any of its traces: its results may quote each. Asked again, it
    finds nothing to do. A plan that others made before yields. Raises TableError.
    """
    strays = set() if dry_run else ledger.store.open().strays()
    book = ledger.open()
    done = Erasure()
    for portion in portions(sorted(trace_ids), TARGETS_A_COMMIT):
        done += _erase(book, portion, (), dry_run)
    for portion in portions(sorted(session_ids), TARGETS_A_COMMIT):
        done += _erase(book, (), portion, dry_run)
    if done.committed:
        # An overtaken writer leaves its rows in a file that the log never names. What of these was written before the
        # erasure can no longer be committed: the guard has moved on.
        ledger.store.open().delete_strays(strays)
    return done


def _erase(book: Book, trace_ids: Collection[str], session_ids: Collection[str], dry_run: bool) -> Erasure:
    while True:
        of_traces = _rows(book, _among("trace_id", trace_ids))
        sessions = {
            *session_ids,
            *(row.session_id for row in of_traces if row.session_id and not row.forgotten),
        }
        of_sessions = _rows(book, f"target_type = 'SESSION' and {_among('target_id', sessions)}")
        known = {(*row.key, row.seq): row for row in (*of_traces, *of_sessions)}
        stones = {row.key for row in known.values() if row.forgotten}
        content = [row for row in known.values() if not row.forgotten]
        wanted = [
            *(tombstone(Target(type="TRACE", target_id=one, trace_id=one)) for one in trace_ids),
            *_tombstones_of_sessions(known.values()),
        ]
        told = Erasure(erased=tuple(row.erased for row in wanted), rows=len(content))
        if dry_run or not (content or {row.key for row in wanted} - stones):
            return told
        ids = {row.target_id for row in wanted if row.target_type == "SESSION"}
        where = f"{_among('trace_id', trace_ids)} or (target_type = 'SESSION' and {_among('target_id', ids)})"
        if book.replace(where, wanted):
            return replace(told, committed=True)


def _tombstones_of_sessions(rows: Iterable[Row]) -> list[Row]:
    """One for each session among the rows' targets: of its newest revision, since when its first turn began."""
    ordered = sorted(
        (row for row in rows if row.target_type == "SESSION"), key=lambda row: (row.revision, row.seq)
    )
    starts: dict[str, datetime] = {}
    for row in ordered:
        if row.trace_start is not None:
            starts[row.target_id] = min(row.trace_start, starts.get(row.target_id, row.trace_start))
    newest = {row.target_id: row for row in ordered}
    return [tombstone(row.target, row.revision, starts.get(name)) for name, row in newest.items()]


def _rows(book: Book, where: str) -> list[Row]:
    return from_arrow(book.table(where, _COLUMNS))


def _among(column: str, values: Iterable[str]) -> str:
    texts = ", ".join(quoted(value) for value in sorted(values))
    return f"{column} in ({texts})" if texts else "false"
