"""An offline evaluation as a command asks for it: which scorers over which traces, and what becomes of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from evaluator.config import Config, nearest
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.expressions import ConditionError
from evaluator.errors import ConfigurationError, SinkError
from evaluator.notes import note_scorers, paused
from evaluator.offline import Evaluation, EvaluationParts, Range, evaluate, pending_work
from evaluator.publish import publish
from evaluator.scorers.judge import Judge
from evaluator.sinks.mlflow import EvaluationRun
from evaluator.sinks.sink import Behind
from evaluator.traces.columns import TRACES
from evaluator.wiring import (
    Scorers,
    Tables,
    build_publisher,
    build_scorers,
    build_sinks,
    build_tables,
    definitions_of,
    utc_now,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRequest:
    """What `evaluator eval` was asked. `guidelines` are files other than the deployed ones."""

    start: datetime
    end: datetime
    limit: int | None = None
    judges: Sequence[str] = ()
    condition: str | None = None
    sample_rate: float | None = None
    rescore: bool = False
    guidelines: Path | None = None
    write: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """What came of it, and the sinks that are behind."""

    evaluation: Evaluation
    behind: Sequence[Behind] = ()

    def check_models(self) -> None:
        """Raises ModelError when models were called and none of the calls came through."""
        self.evaluation.summary.check_answers()


async def run_offline(config: Config, request: OfflineRequest) -> Offline:
    """Evaluate, publish, and log the evaluation as a run of MLflow. Raises EvaluatorError."""
    started, started_at = monotonic(), utc_now()
    run_id = uuid4().hex
    tables = build_tables(config)
    scorers, parts = await asyncio.to_thread(_parts, config, tables, request)
    try:
        if request.write:
            await asyncio.to_thread(note_scorers, tables.ledger, scorers.scorers)
        within = Range(start=request.start, end=request.end, limit=request.limit)
        evaluation = await evaluate(parts, within, run_id)
    finally:
        await scorers.close()
    behind: list[Behind] = []
    if request.write:
        behind = await publish(tables.ledger, await asyncio.to_thread(build_sinks, config, tables))
        if "mlflow" in config.publish and evaluation.assessments:
            behind += await _log_run(config, scorers, evaluation, started_at)
    evaluation.summary.seconds = monotonic() - started
    return Offline(evaluation=evaluation, behind=behind)


async def _log_run(
    config: Config, scorers: Scorers, evaluation: Evaluation, started_at: datetime
) -> list[Behind]:
    """The evaluation as a run in MLflow; a store that is down costs the run's page, not its results."""
    within, run_id = evaluation.range, evaluation.summary.run_id
    run = EvaluationRun(
        run_id=run_id,
        name=f"eval {within.start:%Y-%m-%d} to {within.end:%Y-%m-%d}",
        range_start=within.start,
        range_end=within.end,
        started_at=started_at,
        ended_at=utc_now(),
        scorers={entry.scorer.name: entry.scorer.version for entry in scorers.entries},
        assessments=evaluation.assessments,
    )
    try:
        await build_publisher(config).log_evaluation(run)
    except SinkError as error:
        return [Behind(sink="mlflow evaluation run", cursor=0, detail=str(error))]
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerEstimate:
    """What one scorer would take. Tokens and cost are None for code; cost also where no price is known."""

    name: str
    version: str
    records: int
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(slots=True, kw_only=True)
class Estimate:
    """What an evaluation would do."""

    traces: int = 0
    reused: int = 0
    skipped: int = 0
    scorers: list[ScorerEstimate] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        known = [one.cost_usd for one in self.scorers if one.cost_usd is not None]
        judged = [one for one in self.scorers if one.model is not None]
        return {
            "traces": self.traces,
            "reused": self.reused,
            "skipped": self.skipped,
            "calls": sum(one.records for one in judged),
            "input_tokens": sum(one.input_tokens or 0 for one in judged),
            "output_tokens": sum(one.output_tokens or 0 for one in judged),
            "cost_usd": sum(known) if len(known) == len(judged) else None,
            "scorers": {
                one.name: {
                    "version": one.version,
                    "records": one.records,
                    "model": one.model,
                    "input_tokens": one.input_tokens,
                    "output_tokens": one.output_tokens,
                    "cost_usd": one.cost_usd,
                }
                for one in self.scorers
            },
        }


async def estimate(config: Config, request: OfflineRequest) -> Estimate:
    """What an evaluation would score, and about what it would cost; nothing is called and nothing written."""
    tables = build_tables(config)
    scorers, parts = await asyncio.to_thread(_parts, config, tables, request, keys_needed=False)
    told = {
        entry.scorer.name: ScorerEstimate(name=entry.scorer.name, version=entry.scorer.version, records=0)
        for entry in scorers.entries
    }
    total = Estimate()
    within = Range(start=request.start, end=request.end, limit=request.limit)
    try:
        async for evaluation, assignments in pending_work(parts, within, "dry-run"):
            summary = evaluation.summary
            total.traces, total.reused = summary.traces, summary.reused
            total.skipped = summary.skipped.total()
            for assignment in assignments:
                scorer, known = assignment.scorer, told[assignment.scorer.name]
                known = replace(known, records=known.records + 1)
                if isinstance(scorer, Judge):
                    one = scorer.estimate(assignment.record)
                    known = replace(
                        known,
                        model=one.model,
                        input_tokens=(known.input_tokens or 0) + one.input_tokens,
                        output_tokens=(known.output_tokens or 0) + one.output_tokens,
                        cost_usd=None if one.cost_usd is None else (known.cost_usd or 0.0) + one.cost_usd,
                    )
                told[scorer.name] = known
    finally:
        await scorers.close()
    total.scorers = list(told.values())
    return total


def _parts(
    config: Config, tables: Tables, request: OfflineRequest, *, keys_needed: bool = True
) -> tuple[Scorers, EvaluationParts]:
    """The scorers that are asked for, and what an evaluation works with. Raises ConfigurationError."""
    settings = config
    if request.guidelines is not None:
        if not request.guidelines.exists():
            raise ConfigurationError(f"--guidelines: {request.guidelines} does not exist")
        settings = config.model_copy(update={"guidelines": request.guidelines})
    definitions = definitions_of(settings)
    known = [definition.name for definition in definitions]
    for name in request.judges:
        if name not in known:
            raise ConfigurationError(f'--judge: there is no judge or scorer "{name}"{nearest(name, known)}')
    wanted = [one for one in definitions if not request.judges or one.name in request.judges]
    definitions = tuple(_narrowed(definition, request) for definition in wanted)
    book = tables.ledger.open()
    scorers = build_scorers(settings, definitions, book, keys_needed=keys_needed)
    parts = EvaluationParts(
        spans=tables.spans,
        ledger=tables.ledger,
        active=scorers.active(paused(book.notes())),
        clock=utc_now,
        settle=config.settle,
        max_wait=config.max_wait,
        rescore=request.rescore,
        write=request.write,
    )
    return scorers, parts


def _narrowed(definition: Any, request: OfflineRequest) -> Any:
    """A definition with the filter and the rate that the command line asks for."""
    changes: dict[str, Any] = {}
    if request.condition is not None:
        try:
            parse_condition(request.condition, TRACES)
        except ConditionError as error:
            raise ConfigurationError(f"--filter: {error}") from error
        # Each on lines of its own: a comment at the end of one must not swallow the other.
        own = f"({definition.filter}\n) AND " if definition.filter else ""
        changes["filter"] = f"{own}({request.condition}\n)"
    if request.sample_rate is not None:
        changes["sample_rate"] = request.sample_rate
    return replace(definition, **changes)
