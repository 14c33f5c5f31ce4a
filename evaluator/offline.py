"""An evaluation over a range of time: the same judging, with what was scored already reused.

The range is cut into chunks. An engine evaluates them, wherever it likes; what comes back is committed here. The
sessions of the range come after: each may have turns in any chunk.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol, assert_never

from evaluator.chunk import (
    Chunk,
    EvaluationParts,
    Lost,
    Piece,
    Range,
    Result,
    Work,
    cut,
    is_finally_unscored,
    open_work,
    plan_chunks,
)
from evaluator.decisions import assessment_of
from evaluator.errors import EvaluatorError
from evaluator.feedback import Assessment, Scored, Unscored
from evaluator.score import Assignment
from evaluator.session_chunk import evaluate_sessions, plan_sessions
from evaluator.summary import Summary
from evaluator.tables.rows import State
from evaluator.traces.trace import Trace

Tell = Callable[[int, int], None]
"""Told how many traces are evaluated, of at most how many."""


class Engine(Protocol):
    """Where chunks are evaluated.

    Every chunk comes back once, in pieces or lost, in any order, as far as the range's limit goes. Nothing is
    committed by an engine, and what it reads is not older than the work's book: so a plan that others overtook
    yields when it is committed on that book.
    """

    def pieces(self, work: Work, chunks: Sequence[Chunk]) -> AsyncGenerator[Piece | Lost, None]:
        """What comes of the chunks. Raises EvaluatorError when none of it is possible."""
        ...


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """The outcome: the counts, every result in the range, new or reused, and what could not be evaluated.

    `superseding`, of what is only planned: how many results would stand in the place of one that is there.
    """

    range: Range
    summary: Summary
    assessments: list[Assessment] = field(default_factory=list)
    traces: dict[str, Trace] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)
    superseding: int = 0

    def check_whole(self) -> None:
        """Raises EvaluatorError when some of the range could not be evaluated."""
        if not self.lost:
            return
        traces = sum(len(lost.chunk.trace_ids) for lost in self.lost)
        reasons = "; ".join(dict.fromkeys(lost.reason for lost in self.lost))
        raise EvaluatorError(
            f"{traces} traces could not be evaluated: {reasons} (the rest is done: the same command again scores "
            "only what is missing)"
        )


async def evaluate(
    parts: EvaluationParts,
    within: Range,
    run_id: str,
    engine: Engine,
    tell: Tell = lambda done, of: None,
) -> Evaluation:
    """Report every result in the range, scoring what is missing. Safe beside the live worker.

    Writes scored results only: what is not ready, or could not be judged, is reported and left as it is.
    Raises TableError. When the configuration keeps a judge from its work, the summary's `failure` says what to mend.
    """
    evaluation = Evaluation(range=within, summary=Summary(run_id=run_id))
    work = await _begun(parts, within, run_id, evaluation.summary)
    chunks = await asyncio.to_thread(cut, work)
    most = sum(len(chunk.trace_ids) for chunk in chunks)
    most = most if within.limit is None else min(most, within.limit)
    told: dict[tuple[int, int], list[Assessment]] = {}
    async with aclosing(engine.pieces(work, chunks)) as pieces:
        async for piece in pieces:
            match piece:
                case Lost():
                    evaluation.lost.append(piece)
                case Piece():
                    await _commit(work, piece, evaluation.summary)
                    told[piece.place] = _collect(evaluation, piece)
                    tell(evaluation.summary.traces, most)
                    if piece.hopeless:
                        break
                case _:
                    assert_never(piece)
    async with aclosing(evaluate_sessions(work)) as of_sessions:
        async for piece in of_sessions:
            await _commit(work, piece, evaluation.summary)
            told[piece.place] = _collect(evaluation, piece)
            if piece.hopeless:
                break
    evaluation.assessments += [assessment for place in sorted(told) for assessment in told[place]]
    return evaluation


async def pending_work(
    parts: EvaluationParts, within: Range, run_id: str
) -> AsyncIterator[tuple[Evaluation, list[Assignment]]]:
    """What an evaluation would score, without scoring it: portions of the work, counted as it goes."""
    evaluation = Evaluation(range=within, summary=Summary(run_id=run_id))
    summary = evaluation.summary
    work = await _begun(parts, within, run_id, summary)
    for plans in (plan_chunks(work, await asyncio.to_thread(cut, work)), plan_sessions(work)):
        async for plan in plans:
            summary.traces += 0 if plan.of_sessions else len(plan.ready)
            summary.sessions += len(plan.ready) if plan.of_sessions else 0
            summary.reused += len(plan.reused)
            summary.skipped.update(plan.skipped)
            summary.waiting += plan.waiting
            evaluation.superseding += plan.superseding
            yield evaluation, plan.assignments


async def _begun(parts: EvaluationParts, within: Range, run_id: str, summary: Summary) -> Work:
    work = await asyncio.to_thread(open_work, parts, within, run_id)
    floor = work.book.floor
    if floor is not None and floor > within.start:
        summary.notes.append(
            f"the range starts before {floor:%Y-%m-%d %H:%M}Z, where this ledger's memory begins"
        )
    return work


async def _commit(work: Work, piece: Piece, summary: Summary) -> None:
    """Write the new results of a piece, if that is wanted, and count them."""
    rows = [result.row for result in piece.results if isinstance(result, Result)]
    scored = [row for row in rows if row.state == "scored"]
    if work.parts.write and scored:
        scored = await asyncio.to_thread(work.opened.commit, [[row] for row in scored])
    summary.results += len(scored) + sum(map(is_finally_unscored, rows))
    summary.reused += sum(row.state == "scored" for row in rows) - len(scored)  # others were first


def _collect(evaluation: Evaluation, piece: Piece) -> list[Assessment]:
    """Add a piece to the counts; what its results are told as."""
    summary = evaluation.summary
    summary.traces += len(piece.traces)
    summary.sessions += piece.sessions
    summary.skipped.update(piece.skipped)
    summary.waiting += piece.waiting
    summary.failure = summary.failure or piece.failure
    evaluation.traces.update({trace.trace_id: trace for trace in piece.traces})
    told: list[Assessment] = []
    for result in piece.results:
        if isinstance(result, Assessment):
            summary.reused += 1
            summary.count(result.name, result.version, result.scored.outcome)
            told.append(result)
            continue
        row, scored = result.row, result.scored
        summary.count(row.scorer or "", row.version or "", scored.outcome)
        summary.spend(scored)
        assessment = assessment_of(replace(row, at=piece.at, due=None, state=_state(scored)))
        if assessment is not None:
            told.append(assessment)
    return told


def _state(scored: Scored) -> State:
    return "unscored" if isinstance(scored.outcome, Unscored) else "scored"
