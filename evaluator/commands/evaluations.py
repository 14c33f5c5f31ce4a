"""An offline evaluation as a command asks for it: which scorers over which traces, and what becomes of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from evaluator.config import Config, nearest
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.expressions import ConditionError
from evaluator.errors import ConfigurationError, SinkError
from evaluator.guidelines.definitions import Definition
from evaluator.guidelines.groups import with_companions
from evaluator.notes import note_scorers, paused
from evaluator.offline import Evaluation, EvaluationParts, Range, evaluate
from evaluator.publish import publish
from evaluator.sinks.mlflow import EvaluationRun
from evaluator.sinks.sink import Behind
from evaluator.traces.columns import TRACES
from evaluator.wiring import (
    Caching,
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
    no_cache: bool = False
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
    scorers, parts = await asyncio.to_thread(offline_parts, config, tables, request)
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


def offline_parts(
    config: Config, tables: Tables, request: OfflineRequest, *, keys_needed: bool = True
) -> tuple[Scorers, EvaluationParts]:
    """The scorers that are asked for, and what an evaluation works with. Raises ConfigurationError."""
    settings, wanted, built = wanted_definitions(config, request)
    book = tables.ledger.open()
    caching: Caching = "off" if request.no_cache else "fresh" if request.rescore else "on"
    scorers = build_scorers(settings, built, book, keys_needed=keys_needed, caching=caching)
    scorers = scorers.only([one.name for one in wanted])
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


def wanted_definitions(
    config: Config, request: OfflineRequest
) -> tuple[Config, list[Definition], list[Definition]]:
    """The configuration with the guidelines asked for, the definitions asked for, and these with their companions.

    A joint judge's companions ride in its call. Raises ConfigurationError.
    """
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
    narrowed = [_narrowed(definition, request) for definition in definitions]
    wanted = [one for one in narrowed if not request.judges or one.name in request.judges]
    return settings, wanted, with_companions(wanted, narrowed, config.judge.model)


def _narrowed(definition: Definition, request: OfflineRequest) -> Definition:
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
