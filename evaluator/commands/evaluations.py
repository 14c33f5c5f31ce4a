"""An offline evaluation as a command asks for it: which scorers over which traces, and what becomes of it."""

import asyncio
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal, assert_never
from uuid import uuid4

from evaluator.chunk import EvaluationParts, Range
from evaluator.config import Config, nearest
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.expressions import ConditionError
from evaluator.engines.local import LocalEngine
from evaluator.engines.ray import RayEngine, handed_on
from evaluator.engines.share import share_of
from evaluator.errors import ConfigurationError, SinkError
from evaluator.guidelines.definitions import Definition, JudgeDefinition
from evaluator.guidelines.groups import with_companions
from evaluator.notes import note_scorers, paused
from evaluator.offline import Engine, Evaluation, Tell, evaluate
from evaluator.publish import publish
from evaluator.redaction import Redactor
from evaluator.sinks.mlflow import EvaluationRun
from evaluator.sinks.sink import Behind
from evaluator.tables.spans import LONGEST_TRACE
from evaluator.telemetry.logs import start_logging
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

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRequest:
    """What `evaluator eval` was asked. `guidelines` are files other than the deployed ones.

    `workers` None: as many as the engine finds right.
    """

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
    engine: EngineName = "local"
    workers: int | None = None

    @property
    def caching(self) -> Caching:
        return "off" if self.no_cache else "fresh" if self.rescore else "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for, as plain data that goes to another process.

    `built` are the definitions to build, of which those of the `wanted` names judge: a joint judge's companions ride
    in its call.
    """

    config: Config
    built: Sequence[Definition]
    wanted: Sequence[str]
    caching: Caching
    rescore: bool
    write: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """What came of it, and the sinks that are behind."""

    evaluation: Evaluation
    behind: Sequence[Behind] = ()

    def check_models(self) -> None:
        """Raises ModelError when models were called and none of the calls came through."""
        self.evaluation.summary.check_answers()

    def check_whole(self) -> None:
        """Raises EvaluatorError when a part of the range could not be evaluated."""
        self.evaluation.check_whole()


async def run_offline(config: Config, request: OfflineRequest, tell: Tell = lambda done, of: None) -> Offline:
    """Evaluate, publish, and log the evaluation as a run of MLflow. Raises EvaluatorError."""
    started, started_at = monotonic(), utc_now()
    run_id = uuid4().hex
    tables = build_tables(config)
    order = await asyncio.to_thread(order_of, config, request)
    engine = build_engine(order, request)
    scorers, parts = await asyncio.to_thread(parts_of, order, tables)
    try:
        if request.write:
            await asyncio.to_thread(tables.check_writable, config.publish)
            await asyncio.to_thread(note_scorers, tables.ledger, scorers.scorers)
        within = Range(start=request.start, end=request.end, limit=request.limit)
        evaluation = await evaluate(parts, within, run_id, engine, tell)
    finally:
        await scorers.close()
    behind: list[Behind] = []
    if request.write:
        behind = await publish(tables.ledger, await asyncio.to_thread(build_sinks, config, tables))
        if "mlflow" in config.publish and evaluation.assessments:
            behind += await _log_run(config, scorers, evaluation, started_at)
    evaluation.summary.seconds = monotonic() - started
    return Offline(evaluation=evaluation, behind=behind)


def judged_range(config: Config, judges: Collection[str]) -> tuple[datetime, datetime]:
    """From the first to the last trace of which these judges (or any) have a result, whatever version gave it.

    Raises ConfigurationError where there is none.
    """
    rows = build_tables(config).ledger.open().table("state = 'scored'", ["scorer", "trace_start"]).to_pylist()
    starts = [
        row["trace_start"] for row in rows if row["trace_start"] and (not judges or row["scorer"] in judges)
    ]
    if not starts:
        by = f" by {', '.join(sorted(judges))}" if judges else ""
        raise ConfigurationError(
            f"--rescore: there is no result{by} yet: say which range to judge, such as --last 7d"
        )
    # A trace begins with its first span, and belongs to a range by its root.
    return min(starts), min(max(starts) + LONGEST_TRACE, utc_now()) + timedelta(seconds=1)


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
    return parts_of(order_of(config, request), tables, keys_needed=keys_needed)


def order_of(config: Config, request: OfflineRequest) -> Order:
    """What was asked for, with the definitions as they are now. Raises ConfigurationError."""
    settings, wanted, built = wanted_definitions(config, request)
    return Order(
        config=settings,
        built=built,
        wanted=[one.name for one in wanted],
        caching=request.caching,
        rescore=request.rescore,
        write=request.write,
    )


def parts_of(order: Order, tables: Tables, *, keys_needed: bool = True) -> tuple[Scorers, EvaluationParts]:
    """The scorers of an order, and what an evaluation works with. Raises ConfigurationError and TableError."""
    book = tables.ledger.open()
    scorers = build_scorers(order.config, order.built, book, keys_needed=keys_needed, caching=order.caching)
    scorers = scorers.only(order.wanted)
    parts = EvaluationParts(
        spans=tables.spans,
        ledger=tables.ledger,
        active=scorers.active(paused(book.notes())),
        clock=utc_now,
        settle=order.config.settle,
        max_wait=order.config.max_wait,
        session_idle=order.config.session_idle,
        rescore=order.rescore,
        write=order.write,
    )
    return scorers, parts


def build_engine(order: Order, request: OfflineRequest) -> Engine:
    """Where the work runs. Raises ConfigurationError."""
    match request.engine:
        case "local":
            return LocalEngine()
        case "ray":
            judges = any(isinstance(one, JudgeDefinition) for one in order.built)
            return RayEngine(
                partial(worker_bench, order),
                workers=request.workers,
                most=order.config.judge.max_concurrency if judges else None,
                address=os.environ.get("RAY_ADDRESS") or None,
                environment=handed_on(os.environ),
            )
        case _:
            assert_never(request.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBench:
    """What a worker process of an engine works with."""

    scorers: Scorers
    parts: EvaluationParts

    async def prepare(self) -> None:
        await self.scorers.prepare()

    async def close(self) -> None:
        await self.scorers.close()


def worker_bench(order: Order, number: int, count: int) -> WorkerBench:
    """Built in the worker itself, with its share of the limits. Raises ConfigurationError and TableError."""
    config = order.config
    start_logging(config.log, redact=Redactor(config.redact).redact)
    order = replace(order, config=config.model_copy(update={"judge": share_of(config.judge, number, count)}))
    scorers, parts = parts_of(order, build_tables(config))
    return WorkerBench(scorers=scorers, parts=parts)


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
