"""Some traces of a range: read whole, planned, scored. The same wherever it runs, and nothing here is committed."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from evaluator.dataset.selection import Selection, select
from evaluator.decisions import assessment_of, days_around, result_row
from evaluator.feedback import Assessment, Scored
from evaluator.live.work import without_strays
from evaluator.opened import Opened
from evaluator.portions import portions
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.score import Active, Assignment, is_held_up, score
from evaluator.tables.rows import Row, newest_of_each
from evaluator.traces.assembly import Pending, Ready, assemble, gather, has_ended_root, readiness
from evaluator.traces.trace import Trace

SCOPE = "eval"
PIECE_TRACES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What an evaluation looks at: traces whose root starts in [start, end), the first `limit` of them."""

    start: datetime
    end: datetime
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationParts:
    """What an evaluation works with; `active` has the judges asked for, with the filters and rates asked for."""

    spans: SpanSource
    ledger: LedgerPort
    active: Sequence[Active]
    clock: Callable[[], datetime]
    settle: timedelta
    max_wait: timedelta
    session_idle: timedelta = timedelta(minutes=5)
    rescore: bool = False
    write: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An evaluation at work: its parts and its range, and the tables as it reads them."""

    parts: EvaluationParts
    within: Range
    run_id: str
    opened: Opened

    @property
    def spans(self) -> Spans:
        return self.opened.spans

    @property
    def book(self) -> Book:
        return self.opened.book


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Traces by id, in the order of time, with the first and the last of the times that placed them."""

    number: int
    trace_ids: Sequence[str]
    around: tuple[datetime, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A new result: what came of it, and the row that tells it."""

    row: Row
    scored: Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What came of some traces of a chunk: plain data, for it may come from another process.

    `place` orders the pieces of an evaluation; `traces` come without their steps; `results` are in the order of traces
    and scorers, those that were there already as they are. `failure` says what the operator has to mend, and `hopeless`
    that for this reason no model was asked at all.
    """

    place: tuple[int, int]
    at: datetime
    traces: Sequence[Trace]
    results: Sequence[Assessment | Result]
    skipped: Counter[str]
    waiting: int
    sessions: int = 0
    failure: str | None = None
    hopeless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A chunk of which nothing came, and why, in words."""

    chunk: Chunk
    reason: str


def open_work(parts: EvaluationParts, within: Range, run_id: str) -> Work:
    """Open the tables. Raises TableError."""
    return Work(parts=parts, within=within, run_id=run_id, opened=Opened(parts.ledger, parts.spans))


def cut(work: Work) -> list[Chunk]:
    """The range in chunks, in the order of time. Raises TableError."""
    found = work.spans.ids_between(work.within.start, work.within.end)
    return [Chunk(number=number, trace_ids=ids, around=around) for number, (ids, around) in enumerate(found)]


def cut_finer(chunks: Iterable[Chunk], size: Callable[[int], int]) -> Iterator[Chunk]:
    """The same traces in the same order, in chunks of at most `size`, which is told how many traces are left."""
    chunks = list(chunks)
    left, number = sum(len(chunk.trace_ids) for chunk in chunks), 0
    for chunk in chunks:
        ids = chunk.trace_ids
        while ids:
            some, ids = ids[: (most := size(left))], ids[most:]
            yield Chunk(number=number, trace_ids=some, around=chunk.around)
            left, number = left - len(some), number + 1


async def evaluate_chunks(work: Work, chunks: Iterable[Chunk]) -> AsyncIterator[Piece]:
    """Read, plan and score, one piece after the other, as far as the range's limit goes. Raises TableError."""
    async for plan in plan_chunks(work, chunks):
        yield await score_plan(work, plan)


async def limited(work: Work, chunks: Iterable[Chunk]) -> tuple[list[Chunk], int]:
    """The chunks with only the traces that the limit lets in, and how many others of theirs wait."""
    narrowed: list[Chunk] = []
    waiting = 0
    async for chunk, reading in _readings(work, chunks):
        ids = [trace.trace_id for trace, _ in reading.ready]
        narrowed.append(replace(chunk, trace_ids=ids))
        waiting += reading.waiting
    return [chunk for chunk in narrowed if chunk.trace_ids], waiting


# --- read


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """The whole, settled traces of a chunk in its order, the revisions of those that live has decided, and how many are
    not ready."""

    ready: Sequence[tuple[Trace, Pending]]
    decided: Mapping[str, int]
    waiting: int


async def _readings(work: Work, chunks: Iterable[Chunk]) -> AsyncIterator[tuple[Chunk, _Reading]]:
    left = work.within.limit
    for chunk in chunks:
        reading = await asyncio.to_thread(_read, work, chunk)
        if left is not None:
            reading = replace(reading, ready=reading.ready[:left])
            left -= len(reading.ready)
        yield chunk, reading
        if left == 0:
            return


def _read(work: Work, chunk: Chunk) -> _Reading:
    found = without_strays(work.book, gather(work.spans.around(chunk.trace_ids, chunk.around)))
    decided = _decided(work.book, found.values())
    forgotten = {one for one, row in decided.items() if row.forgotten}
    ordered = [found[one] for one in chunk.trace_ids if one in found and one not in forgotten]
    within = list(_within(work, ordered, decided))
    ready = [(trace, pending) for trace, pending, is_ready in within if is_ready]
    revisions = {one: row.revision for one, row in decided.items()}
    return _Reading(ready=ready, decided=revisions, waiting=len(within) - len(ready))


def _read_on(work: Work, chunk: Chunk, reading: _Reading) -> _Reading:
    """A reading as it is now: what was decided since may have more spans, and is read again."""
    work.opened.read_on()
    decided = _decided(work.book, [pending for _, pending in reading.ready])
    changed = [
        one for one, row in decided.items() if row.forgotten or row.revision != reading.decided.get(one)
    ]
    if not changed:
        return replace(reading, waiting=0)
    again = _read(work, replace(chunk, trace_ids=changed))
    newer = {trace.trace_id: (trace, pending) for trace, pending in again.ready}
    ready = [
        newer.get(trace.trace_id, (trace, pending))
        for trace, pending in reading.ready
        if trace.trace_id in newer or trace.trace_id not in changed
    ]
    return _Reading(ready=ready, decided={**reading.decided, **again.decided}, waiting=again.waiting)


def _decided(book: Book, found: Collection[Pending]) -> dict[str, Row]:
    """Those of some traces that live has decided: whole, whatever rewrote their files since."""
    states = book.states([pending.trace_id for pending in found], days_around(found))
    return {one: row for one, row in newest_of_each("TRACE", states).items() if row.state == "done"}


def _within(
    work: Work, ordered: Iterable[Pending], decided: Collection[str]
) -> Iterator[tuple[Trace, Pending, bool]]:
    """The traces that belong to the range, and whether each is ready."""
    parts, within, now = work.parts, work.within, work.parts.clock()
    for pending in ordered:
        state = readiness(pending, now=now, settle=parts.settle, max_wait=parts.max_wait)
        if pending.trace_id in decided:
            state = Ready(incomplete=not has_ended_root(pending.spans))
        is_ready = isinstance(state, Ready)
        trace = assemble(
            pending.trace_id, pending.spans, incomplete=isinstance(state, Ready) and state.incomplete
        )
        if trace.start_time is not None and within.start <= trace.start_time < within.end:
            yield trace, pending, is_ready


# --- plan


@dataclass(frozen=True, slots=True, kw_only=True)
class NewResult:
    """A result that is wanted: who judges what, as which revision."""

    assignment: Assignment
    revision: int
    upto: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be scored of some traces, and what has a result of the same version already, in one order.

    `of_sessions`: they are sessions, each seen as one trace. `superseding`: how many of the wanted results are to stand in
    the place of one that is there.
    """

    place: tuple[int, int]
    ready: Sequence[tuple[Trace, Pending]]
    wanted: Sequence[Assessment | NewResult]
    skipped: Counter[str]
    waiting: int
    of_sessions: bool = False
    superseding: int = 0

    @property
    def assignments(self) -> list[Assignment]:
        return [one.assignment for one in self.wanted if isinstance(one, NewResult)]

    @property
    def reused(self) -> list[Assessment]:
        return [one for one in self.wanted if isinstance(one, Assessment)]


async def plan_chunks(work: Work, chunks: Iterable[Chunk]) -> AsyncIterator[Plan]:
    """What an evaluation would score, piece by piece in the order of time, as far as the range's limit goes."""
    async for chunk, reading in _readings(work, chunks):
        pieces = list(portions(reading.ready, PIECE_TRACES)) or [()]
        for number, ready in enumerate(pieces):
            piece = replace(reading, ready=ready)
            if number:
                piece = await asyncio.to_thread(_read_on, work, chunk, piece)
            yield await asyncio.to_thread(_plan, work, (chunk.number, number), piece)


def _plan(work: Work, place: tuple[int, int], reading: _Reading) -> Plan:
    parts = work.parts
    traces = [trace for trace, _ in reading.ready]
    selections = select(traces, [active.rule for active in parts.active])
    days = days_around(pending for _, pending in reading.ready)
    known = newest_final(work.book.results([trace.trace_id for trace in traces], days).values())
    wanted: list[Assessment | NewResult] = []
    skipped: Counter[str] = Counter()
    for selection in selections:
        skipped.update(selection.skipped.values())
        wanted += _wanted(parts, selection, known, reading.decided.get(selection.trace_id, 0))
    return Plan(
        place=place,
        ready=reading.ready,
        wanted=wanted,
        skipped=skipped,
        waiting=reading.waiting,
        superseding=superseding(wanted, known),
    )


ResultKey = tuple[str, str, str | None, str | None]
"""Target type and id, scorer, version: the key of a row without its revision."""


def _wanted(
    parts: EvaluationParts, selection: Selection, known: Mapping[ResultKey, Row], decided: int
) -> Iterator[Assessment | NewResult]:
    """Of each scorer and each record that it gets: what it has said, or that it is to be asked.

    `decided` is the revision of the trace: what was said of an older one is no result of it.
    """
    scorers = {active.scorer.name: active.scorer for active in parts.active}
    for name, record in selection.work:
        scorer, target = scorers[name], record.target
        row = known.get((target.type, target.target_id, scorer.name, scorer.version))
        said = None if row is None or parts.rescore or row.revision < decided else assessment_of(row)
        yield said or NewResult(
            assignment=Assignment(scorer=scorer, record=record),
            revision=max(decided, 0 if row is None else row.revision + 1),
        )


def superseding(wanted: Iterable[Assessment | NewResult], known: Iterable[ResultKey]) -> int:
    """How many wanted results are of a scorer that has one there already, by whatever version."""
    there = {key[:3] for key in known}
    new = (one.assignment for one in wanted if isinstance(one, NewResult))
    return sum((one.record.target.type, one.record.target.target_id, one.scorer.name) in there for one in new)


def newest_final(rows: Iterable[Row]) -> dict[ResultKey, Row]:
    """The newest revision of what each version of a scorer has said, for good, of each target."""
    newest: dict[ResultKey, Row] = {}
    for row in rows:
        known = newest.get(row.key[:4])
        final = row.state == "scored" or is_finally_unscored(row)
        if final and (known is None or row.revision > known.revision):
            newest[row.key[:4]] = row
    return newest


def is_finally_unscored(row: Row) -> bool:
    return row.state == "unscored" and row.due is None


# --- score


async def score_plan(work: Work, plan: Plan) -> Piece:
    """What comes of a plan."""
    scores = await score(plan.assignments)
    at = work.parts.clock()
    pendings = {trace.trace_id: pending for trace, pending in plan.ready}
    came = iter(scores.results)
    failure = scores.failure
    return Piece(
        place=plan.place,
        at=at,
        traces=[] if plan.of_sessions else [replace(trace, steps=()) for trace, _ in plan.ready],
        sessions=len(plan.ready) if plan.of_sessions else 0,
        results=[
            one if isinstance(one, Assessment) else _result(one, next(came), pendings, work.run_id, at)
            for one in plan.wanted
        ],
        skipped=plan.skipped,
        waiting=plan.waiting,
        failure=None if failure is None else str(failure),
        hopeless=failure is not None
        and not any(scored.usage.calls for scored in scores.results if not is_held_up(scored)),
    )


def _result(
    new: NewResult, scored: Scored, pendings: Mapping[str, Pending], run_id: str, now: datetime
) -> Result:
    scorer, record = new.assignment.scorer, new.assignment.record
    row = result_row(
        record.target,
        pendings[record.trace.trace_id],
        scored,
        scorer=scorer.name,
        version=scorer.version,
        source_type=scorer.source_type,
        scope=SCOPE,
        run_id=run_id,
        now=now,
        revision=new.revision,
        upto=new.upto,
    )
    return Result(row=row, scored=scored)
