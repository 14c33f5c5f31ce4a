"""An evaluation over a range of time: the same judging, with what was scored already reused."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from evaluator.dataset.records import record_of_trace
from evaluator.dataset.selection import select
from evaluator.decisions import assessment_of, days_around, result_row
from evaluator.feedback import Assessment, Scored, Unscored
from evaluator.portions import portions
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.score import Active, Assignment, is_held_up, score
from evaluator.summary import Summary
from evaluator.tables.rows import Row, State
from evaluator.traces.assembly import Pending, Ready, assemble, gather, has_ended_root, readiness
from evaluator.traces.trace import Trace

SCOPE = "eval"
CHUNK_TRACES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What an evaluation looks at: traces whose root starts in [start, end)."""

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
    rescore: bool = False
    write: bool = True


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """The outcome: the counts, and every result in the range, new or reused."""

    range: Range
    summary: Summary
    assessments: list[Assessment] = field(default_factory=list)
    traces: dict[str, Trace] = field(default_factory=dict)


async def evaluate(parts: EvaluationParts, within: Range, run_id: str) -> Evaluation:
    """Report every result in the range, scoring what is missing. Safe beside the live worker.

    Writes scored results only: what is not ready, or could not be judged, is reported and left as it is.
    Raises TableError. When the configuration keeps a judge from its work, the summary's `failure` says what to mend.
    """
    evaluation = Evaluation(range=within, summary=Summary(run_id=run_id))
    book = await asyncio.to_thread(parts.ledger.open)
    async for chunk in _ready_traces(parts, within, book, evaluation.summary):
        if not await _evaluate(parts, chunk, book, evaluation):
            break
    return evaluation


async def pending_work(
    parts: EvaluationParts, within: Range, run_id: str
) -> AsyncIterator[tuple[Evaluation, list[Assignment]]]:
    """What an evaluation would score, without scoring it: portions of the work, counted as it goes."""
    evaluation = Evaluation(range=within, summary=Summary(run_id=run_id))
    book = await asyncio.to_thread(parts.ledger.open)
    async for chunk in _ready_traces(parts, within, book, evaluation.summary):
        plan = await _plan(parts, chunk, book, evaluation)
        yield evaluation, plan.assignments


async def _ready_traces(
    parts: EvaluationParts, within: Range, book: Book, summary: Summary
) -> AsyncIterator[list[tuple[Trace, Pending]]]:
    """The whole, settled traces of the range, in portions, in the order of time."""
    spans = await asyncio.to_thread(parts.spans.open)
    left = within.limit
    if book.floor is not None and book.floor > within.start:
        summary.notes.append(
            f"the range starts before {book.floor:%Y-%m-%d %H:%M}Z, where this ledger's memory begins"
        )
    for ids, around in await asyncio.to_thread(lambda: list(spans.ids_between(within.start, within.end))):
        found = await asyncio.to_thread(_gathered, spans, ids, around)
        decided = await asyncio.to_thread(_decided, book, found)
        ready = list(_ready(found, decided, parts, within, summary))
        if left is not None:
            ready, left = ready[:left], left - len(ready[:left])
        for chunk in portions(ready, CHUNK_TRACES):
            yield list(chunk)
        if left == 0:
            return


def _gathered(spans: Spans, ids: Sequence[str], around: tuple[datetime, datetime]) -> dict[str, Pending]:
    return gather(spans.around(ids, around))


def _decided(book: Book, found: Mapping[str, Pending]) -> set[str]:
    """The traces that live has decided: whole, whatever rewrote their files since."""
    states = book.states(found, days_around(found.values()))
    return {key.target_id for key, row in states.items() if key.scorer is None and row.state == "done"}


def _ready(
    found: Mapping[str, Pending],
    decided: Collection[str],
    parts: EvaluationParts,
    within: Range,
    summary: Summary,
) -> Iterator[tuple[Trace, Pending]]:
    now = parts.clock()
    ordered = sorted(found.values(), key=lambda pending: (str(pending.earliest), pending.trace_id))
    for pending in ordered:
        state = readiness(pending, now=now, settle=parts.settle, max_wait=parts.max_wait)
        if pending.trace_id in decided:
            state = Ready(incomplete=not has_ended_root(pending.spans))
        trace = assemble(
            pending.trace_id, pending.spans, incomplete=isinstance(state, Ready) and state.incomplete
        )
        if trace.start_time is None or not within.start <= trace.start_time < within.end:
            continue
        if isinstance(state, Ready):
            yield trace, pending
        else:
            summary.waiting += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    assignments: list[Assignment]
    revisions: list[int]
    reused: list[Assessment]


async def _plan(
    parts: EvaluationParts, chunk: Sequence[tuple[Trace, Pending]], book: Book, evaluation: Evaluation
) -> _Plan:
    """What is to be scored of some traces, and what has a result of the same version already."""
    traces = [trace for trace, _ in chunk]
    summary = evaluation.summary
    selections = await asyncio.to_thread(select, traces, [active.rule for active in parts.active])
    days = days_around(pending for _, pending in chunk)
    results = await asyncio.to_thread(book.results, [trace.trace_id for trace in traces], days)
    scored = _newest_final(results.values())
    plan = _Plan(assignments=[], revisions=[], reused=[])
    for trace, selection in zip(traces, selections, strict=True):
        record = record_of_trace(trace)
        summary.skipped.update(selection.skipped.values())
        for active in parts.active:
            if active.scorer.name in selection.skipped:
                continue
            target = record.target
            known = scored.get((target.type, target.target_id, active.scorer.name, active.scorer.version))
            if known is not None and not parts.rescore:
                assessment = assessment_of(known)
                if assessment is not None:
                    plan.reused.append(assessment)
                    continue
            plan.assignments.append(Assignment(scorer=active.scorer, record=record))
            plan.revisions.append(0 if known is None else known.revision + 1)
    summary.traces += len(traces)
    summary.reused += len(plan.reused)
    return plan


async def _evaluate(
    parts: EvaluationParts, chunk: Sequence[tuple[Trace, Pending]], book: Book, evaluation: Evaluation
) -> bool:
    """Score a portion and write it; whether there is any use in going on to the next."""
    plan = await _plan(parts, chunk, book, evaluation)
    scores = await score(plan.assignments)
    results = scores.results
    pendings = {trace.trace_id: pending for trace, pending in chunk}
    now = parts.clock()
    rows = [
        _row(assignment, scored, revision, pendings, evaluation.summary.run_id, now)
        for assignment, scored, revision in zip(plan.assignments, results, plan.revisions, strict=True)
    ]
    if parts.write:
        scored_rows = [row for row in rows if row.state == "scored"]
        written = await asyncio.to_thread(book.commit, [[row] for row in scored_rows]) if scored_rows else []
        evaluation.summary.results += len(written) + sum(map(_finally_unscored, rows))
    else:
        evaluation.summary.results += sum(row.state == "scored" or _finally_unscored(row) for row in rows)
    _collect(evaluation, chunk, plan, rows, results, now)
    if scores.failure is None:
        return True
    evaluation.summary.failure = str(scores.failure)
    return any(scored.usage.calls for scored in results if not is_held_up(scored))


def _row(
    assignment: Assignment,
    scored: Scored,
    revision: int,
    pendings: Mapping[str, Pending],
    run_id: str,
    now: datetime,
) -> Row:
    scorer = assignment.scorer
    return result_row(
        assignment.record.target,
        pendings[assignment.record.trace.trace_id],
        scored,
        scorer=scorer.name,
        version=scorer.version,
        source_type=scorer.source_type,
        scope=SCOPE,
        run_id=run_id,
        now=now,
        revision=revision,
    )


def _collect(
    evaluation: Evaluation,
    chunk: Sequence[tuple[Trace, Pending]],
    plan: _Plan,
    rows: Sequence[Row],
    results: Sequence[Scored],
    now: datetime,
) -> None:
    """Add a chunk's results, new and reused, to the evaluation."""
    summary = evaluation.summary
    for assessment in plan.reused:
        summary.count(assessment.name, assessment.version, assessment.scored.outcome)
        evaluation.assessments.append(assessment)
    for row, scored in zip(rows, results, strict=True):
        summary.count(row.scorer or "", row.version or "", scored.outcome)
        summary.spend(scored)
        told = assessment_of(replace(row, at=now, due=None, state=_told(scored)))
        if told is not None:
            evaluation.assessments.append(told)
    evaluation.traces.update({trace.trace_id: replace(trace, steps=()) for trace, _ in chunk})


def _told(scored: Scored) -> State:
    return "unscored" if isinstance(scored.outcome, Unscored) else "scored"


def _finally_unscored(row: Row) -> bool:
    return row.state == "unscored" and row.due is None


def _newest_final(rows: Iterable[Row]) -> dict[tuple[str, str, str | None, str | None], Row]:
    """The newest revision of what each version of a scorer has said, for good, of each target."""
    newest: dict[tuple[str, str, str | None, str | None], Row] = {}
    for row in rows:
        known = newest.get(row.key[:4])
        final = row.state == "scored" or _finally_unscored(row)
        if final and (known is None or row.revision > known.revision):
            newest[row.key[:4]] = row
    return newest
