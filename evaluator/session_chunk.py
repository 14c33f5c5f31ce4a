"""The sessions that began in a range: found, read whole, planned. Nothing here is committed."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from evaluator.chunk import (
    EvaluationParts,
    NewResult,
    Piece,
    Plan,
    ResultKey,
    Work,
    newest_final,
    score_plan,
    superseding,
)
from evaluator.dataset.selection import Selection, select_sessions
from evaluator.decisions import assessment_of
from evaluator.feedback import Assessment
from evaluator.portions import portions
from evaluator.score import Assignment
from evaluator.tables.rows import Row
from evaluator.traces.assembly import Pending, Ready, assemble, gather, has_ended_root, readiness
from evaluator.traces.sessions import session_of
from evaluator.traces.trace import Session, Trace

AFTER_TRACES = 2**62
"""Where the sessions' pieces stand among those of an evaluation: after all of its traces."""
MARGIN = timedelta(days=1)
"""How far from the range turns are looked for in the spans table; further ones are known to the ledger, if to anybody."""
SESSIONS_A_PIECE = 50
EVER = (date(1970, 1, 1), date(9999, 12, 31))


@dataclass(slots=True, kw_only=True)
class _Found:
    """A session's turns: when each began, and what the ledger tells of those that live has decided.

    What was said of it up to the revision `erased` was forgotten.
    """

    session_id: str
    erased: int = -1
    starts: dict[str, datetime] = field(default_factory=dict)
    decided: dict[str, Row] = field(default_factory=dict)

    @property
    def begins(self) -> datetime | None:
        return min(self.starts.values(), default=None)


async def evaluate_sessions(work: Work) -> AsyncGenerator[Piece, None]:
    """Read, plan and score the sessions of the range, as far as its limit goes. Raises TableError."""
    async for plan in plan_sessions(work):
        yield await score_plan(work, plan)


async def plan_sessions(work: Work) -> AsyncIterator[Plan]:
    """What an evaluation would score of the sessions of the range, in the order in which they began."""
    if not any(active.rule.target == "session" for active in work.parts.active):
        return
    found, known = await asyncio.to_thread(_find, work)
    left = len(found) if work.within.limit is None else work.within.limit
    for number, some in enumerate(portions(found, SESSIONS_A_PIECE)):
        plan = await asyncio.to_thread(_plan, work, (AFTER_TRACES, number), some, known, left)
        left -= len(plan.ready)
        yield plan
        if left <= 0:
            return


# --- find


def _find(work: Work) -> tuple[list[_Found], dict[ResultKey, Row]]:
    """The sessions whose first trace began in the range, as far as the spans around it and the ledger know, and what was
    said of them."""
    within = work.within
    erased = work.book.forgotten(0, work.book.seq)
    forgotten = {one.target.trace_id for one in erased if one.target.type == "TRACE"}
    upto = {one.target.target_id: one.revision for one in erased if one.target.type == "SESSION"}
    sessions: dict[str, _Found] = {}
    for trace in _traces(work, within.start - MARGIN, within.end + MARGIN):
        if trace.session_id and trace.start_time and trace.trace_id not in forgotten:
            known = _Found(session_id=trace.session_id, erased=upto.get(trace.session_id, -1))
            found = sessions.setdefault(trace.session_id, known)
            found.starts[trace.trace_id] = trace.start_time
    for turn in work.book.turns(sessions, EVER) if sessions else ():
        found = sessions[turn.session_id or ""]
        found.decided[turn.target_id] = turn
        if turn.trace_start:
            found.starts.setdefault(turn.target_id, turn.trace_start)
    results = work.book.session_results(sessions).values()
    for row in results:
        if row.trace_start:  # A turn further away may be known by nothing but what was said of it.
            sessions[row.target_id].starts.setdefault(row.trace_id or "", row.trace_start)
    begun = [(begins, found.session_id) for found in sessions.values() if (begins := found.begins)]
    within_range = [name for begins, name in sorted(begun) if within.start <= begins < within.end]
    return [sessions[name] for name in within_range], newest_final(results)


def _traces(work: Work, start: datetime, end: datetime) -> Iterator[Trace]:
    for ids, around in work.spans.ids_between(start, end):
        for pending in gather(work.spans.around(ids, around)).values():
            yield assemble(pending.trace_id, pending.spans, incomplete=False)


# --- read


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A session that is idle, all of its spans, and when the last of its turns was decided, if live has decided all."""

    session: Session
    pending: Pending
    upto: datetime | None
    erased: int


def _read(work: Work, found: Iterable[_Found]) -> list[_Read | None]:
    """Some sessions, whole, in their order; None for one that may go on."""
    found = list(found)
    starts = [start for one in found for start in one.starts.values()]
    ids = {trace_id for one in found for trace_id in (*one.starts, *one.decided)}
    pendings = gather(work.spans.around(ids, (min(starts), max(starts))))
    return [_session(work, one, pendings) for one in found]


def _session(work: Work, found: _Found, pendings: Mapping[str, Pending]) -> _Read | None:
    parts, now = work.parts, work.parts.clock()
    turns = {turn: pendings[turn] for turn in (*found.starts, *found.decided) if turn in pendings}
    lasts = []
    for turn, pending in turns.items():
        decided = found.decided.get(turn)
        lasts.append(pending.last if decided is None else decided.last or pending.last)
        state = readiness(pending, now=now, settle=parts.settle, max_wait=parts.max_wait)
        if decided is None and not isinstance(state, Ready):
            return None
    if not turns or min(max(lasts), now) + parts.session_idle > now:
        return None
    traces = [
        assemble(turn, pending.spans, incomplete=not has_ended_root(pending.spans))
        for turn, pending in turns.items()
    ]
    ats = [row.at for turn in turns if (row := found.decided.get(turn)) and row.at]
    session = session_of(found.session_id, traces)
    pending = Pending(
        trace_id=session.whole.trace_id,
        spans=tuple(span for pending in turns.values() for span in pending.spans),
        first=min(pending.first for pending in turns.values()),
        last=max(lasts),
        commits=(),
    )
    return _Read(
        session=session,
        pending=pending,
        upto=max(ats) if len(ats) == len(turns) else None,
        erased=found.erased,
    )


# --- plan


def _plan(
    work: Work,
    place: tuple[int, int],
    found: Sequence[_Found],
    known: Mapping[ResultKey, Row],
    limit: int,
) -> Plan:
    read = _read(work, found)
    whole = [one for one in read if one is not None]
    idle = whole[:limit]
    rules = [active.rule for active in work.parts.active]
    selections = select_sessions([one.session for one in idle], rules)
    wanted = [
        wanted
        for one, selection in zip(idle, selections, strict=True)
        for wanted in _wanted(work.parts, one, selection, known)
    ]
    return Plan(
        place=place,
        ready=[(one.session.whole, one.pending) for one in idle],
        wanted=wanted,
        skipped=Counter(reason for selection in selections for reason in selection.skipped.values()),
        waiting=len(read) - len(whole),
        of_sessions=True,
        superseding=superseding(wanted, known),
    )


def _wanted(
    parts: EvaluationParts, one: _Read, selection: Selection, known: Mapping[ResultKey, Row]
) -> Iterator[Assessment | NewResult]:
    """Of each scorer that gets a session: what it has said of just these turns, or that it is to be asked."""
    scorers = {active.scorer.name: active.scorer for active in parts.active}
    for name, record in selection.work:
        scorer, target = scorers[name], record.target
        row = known.get((target.type, target.target_id, scorer.name, scorer.version))
        same = (
            row is not None and (row.upto, row.trace_id) == (one.upto, target.trace_id) and not parts.rescore
        )
        said = assessment_of(row) if row is not None and same else None
        yield said or NewResult(
            assignment=Assignment(scorer=scorer, record=record),
            revision=max(one.erased, -1 if row is None else row.revision) + 1,
            upto=one.upto,
        )
