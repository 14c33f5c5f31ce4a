"""The sessions that rows of the ledger speak of, read whole: every decided turn, in the order of time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from evaluator.dataset.records import Record, record_of_session
from evaluator.ports import Book, Spans
from evaluator.tables.rows import UNDATED, Row
from evaluator.traces.assembly import Pending, assemble, gather, has_ended_root
from evaluator.traces.sessions import session_of
from evaluator.traces.trace import Session

FIRST_DAY = date(2020, 1, 1)
"""What is said to be older is in the partition of hostile times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A session as it stands: its record, all of its spans, those of each turn, and `upto`, when the last of the turns was
    decided. An older result of it may hang on any of them."""

    session: Session
    record: Record
    pending: Pending
    turns: Sequence[Pending]
    upto: datetime | None


def conversations(book: Book, spans: Spans, rows: Iterable[Row]) -> dict[str, Conversation]:
    """The sessions of some rows, which tell from when to when; without those of which no span is left.

    Raises TableError.
    """
    rows = list(rows)
    if not rows:
        return {}
    turns = book.turns({row.target_id for row in rows}, _days(rows))
    starts = [turn.trace_start for turn in turns if turn.trace_start]
    ids = {turn.target_id for turn in turns}
    found = (
        gather(spans.around(ids, (min(starts), max(starts)) if len(starts) == len(turns) else None))
        if ids
        else {}
    )
    of_session: dict[str, list[Row]] = {}
    for turn in turns:
        of_session.setdefault(turn.session_id or "", []).append(turn)
    read = {
        session_id: _conversation(
            session_id, of_one, [found[turn.target_id] for turn in of_one if turn.target_id in found]
        )
        for session_id, of_one in of_session.items()
    }
    return {session_id: one for session_id, one in read.items() if one is not None}


def _conversation(session_id: str, turns: Sequence[Row], pendings: Sequence[Pending]) -> Conversation | None:
    if not pendings:
        return None
    traces = [
        assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))
        for pending in pendings
    ]
    session = session_of(session_id, traces)
    record = record_of_session(session)
    pending = Pending(
        trace_id=record.target.trace_id,
        spans=tuple(span for pending in pendings for span in pending.spans),
        first=min(turn.first for turn in turns if turn.first),
        last=max(turn.last for turn in turns if turn.last),
        commits=(),
    )
    return Conversation(session=session, record=record, pending=pending, turns=pendings, upto=newest(turns))


def newest(turns: Iterable[Row]) -> datetime | None:
    """When the last of some turns was decided."""
    return max((turn.at for turn in turns if turn.at), default=None)


def _days(rows: Sequence[Row]) -> tuple[date, date]:
    """The partitions that may hold the turns: from that of the first one to the day after something arrived last."""
    starts = [row.trace_start.astimezone(UTC).date() for row in rows if row.trace_start]
    lasts = [row.last.astimezone(UTC).date() for row in rows if row.last]
    first = max(min(starts), FIRST_DAY) if len(starts) == len(rows) else FIRST_DAY
    return first, (max(lasts) if lasts else UNDATED) + timedelta(days=1)
