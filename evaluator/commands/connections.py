"""Whether everything that the configuration names can be reached: `evaluator check --connect`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from evaluator.config import Config
from evaluator.errors import EvaluatorError
from evaluator.guidelines.definitions import PythonDefinition
from evaluator.models.client import Model
from evaluator.models.endpoint import ModelFailure
from evaluator.scorers.process import ScorerFailure, ScorerProcess
from evaluator.tables.annotations import open_annotations
from evaluator.wiring import Tables, build_publisher, build_scorers, build_tables, definitions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One thing that was tried, and what it answered."""

    name: str
    ok: bool
    detail: str


async def connections(config: Config) -> AsyncIterator[Connection]:
    """Try the tables, MLflow, the modules of `python` scorers, and each model with one short question."""
    tables = build_tables(config)
    yield await _tried("spans", lambda: asyncio.to_thread(_spans, tables))
    yield await _tried("annotations", lambda: asyncio.to_thread(_annotations, tables))
    ledger = await _tried("ledger", lambda: asyncio.to_thread(_ledger, tables))
    yield ledger
    if "mlflow" in config.publish:
        yield await _tried("mlflow", lambda: _mlflow(config))
    if not ledger.ok:
        return
    scorers = await asyncio.to_thread(build_scorers, config, definitions_of(config), tables.ledger.open())
    try:
        for entry in scorers.entries:
            if isinstance(entry.definition, PythonDefinition):
                module, _, function = entry.definition.python.partition(":")
                asked = partial(_function, scorers.processes[module], function)
                yield await _tried(f"scorer {entry.definition.name}", asked)
        for model in scorers.models:
            yield await _tried(f"model {model.name}", partial(_model, model))
    finally:
        await scorers.close()


async def _tried(name: str, attempt: Callable[[], Awaitable[str]]) -> Connection:
    try:
        return Connection(name=name, ok=True, detail=await attempt())
    except (EvaluatorError, ModelFailure, ScorerFailure) as error:
        return Connection(name=name, ok=False, detail=str(error))


def _spans(tables: Tables) -> str:
    return f"version {tables.spans.open().version} of {tables.spans.store.uri}"


def _annotations(tables: Tables) -> str:
    snapshot = open_annotations(tables.annotations)
    return f"version {snapshot.version} of {tables.annotations.uri}"


def _ledger(tables: Tables) -> str:
    return f"version {tables.ledger.open().version} of {tables.ledger.store.uri}"


async def _mlflow(config: Config) -> str:
    experiment = await build_publisher(config).ensure_experiment()
    return f"experiment {experiment} at {config.mlflow.tracking_uri}"


async def _function(process: ScorerProcess, function: str) -> str:
    parameters = await process.parameters(function)
    return f"{process.module} imported; {function} takes {', '.join(parameters) or 'nothing'}"


async def _model(model: Model) -> str:
    completion = await model.probe()
    return f"answered in {completion.latency_ms:.0f} ms" + (f"; {model.note}" if model.note else "")
