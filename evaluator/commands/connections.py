"""Whether everything that the configuration names can be reached: `evaluator check --connect`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from evaluator.commands.check import named_models
from evaluator.config import Config
from evaluator.errors import EvaluatorError
from evaluator.guidelines.definitions import Definition, JudgeDefinition, PythonDefinition
from evaluator.models.build import canonical
from evaluator.models.client import Model
from evaluator.models.endpoint import ModelFailure
from evaluator.notes import EVERY_JUDGE, paused
from evaluator.scorers.process import ScorerFailure, ScorerProcess
from evaluator.tables.annotations import open_annotations
from evaluator.wiring import Tables, build_publisher, build_scorers, build_tables, definitions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One thing that was tried, or was not to be, and what it answered."""

    name: str
    state: Literal["ok", "failed", "not asked"]
    detail: str


async def connections(config: Config) -> AsyncIterator[Connection]:
    """Try the tables, MLflow, the modules of `python` scorers, and each model with one short question.

    A model that only paused judges name is not asked: there is no paid call while they are paused.
    """
    tables = build_tables(config)
    yield await _tried("spans", lambda: asyncio.to_thread(_spans, tables))
    yield await _tried("annotations", lambda: asyncio.to_thread(_annotations, config, tables))
    ledger = await _tried("ledger", lambda: asyncio.to_thread(_ledger, tables))
    yield ledger
    if "mlflow" in config.publish:
        yield await _tried("mlflow", lambda: _mlflow(config))
    if ledger.state == "failed":
        return
    book, definitions = tables.ledger.open(), definitions_of(config)
    scorers = await asyncio.to_thread(build_scorers, config, definitions, book)
    needed = _needed(config, definitions, paused(book.notes()))
    try:
        for entry in scorers.entries:
            if isinstance(entry.definition, PythonDefinition):
                module, _, function = entry.definition.python.partition(":")
                asked = partial(_function, scorers.processes[module], function)
                yield await _tried(f"scorer {entry.definition.name}", asked)
        for model in scorers.models:
            if model.name in needed:
                yield await _tried(f"model {model.name}", partial(_model, model))
            else:
                detail = "its judges are paused (`evaluator resume` lets them go on)"
                yield Connection(name=f"model {model.name}", state="not asked", detail=detail)
    finally:
        await scorers.close()


async def _tried(name: str, attempt: Callable[[], Awaitable[str]]) -> Connection:
    try:
        return Connection(name=name, state="ok", detail=await attempt())
    except (EvaluatorError, ModelFailure, ScorerFailure) as error:
        return Connection(name=name, state="failed", detail=str(error))


def _needed(config: Config, definitions: Iterable[Definition], off: Collection[str]) -> set[str]:
    """The models of the judges that are not paused."""
    return {
        canonical(name or config.judge.model)
        for judge in definitions
        if isinstance(judge, JudgeDefinition) and EVERY_JUDGE not in off and judge.name not in off
        for name in named_models(judge)
    }


def _spans(tables: Tables) -> str:
    return f"version {tables.spans.open().version} of {tables.spans.store.uri}"


def _annotations(config: Config, tables: Tables) -> str:
    snapshot = open_annotations(tables.annotations)
    if "annotations" in config.publish:
        tables.annotations.check_writable()
    return f"version {snapshot.version} of {tables.annotations.uri}"


def _ledger(tables: Tables) -> str:
    book = tables.ledger.open()
    tables.ledger.store.check_writable()
    return f"version {book.version} of {tables.ledger.store.uri}"


async def _mlflow(config: Config) -> str:
    experiment = await build_publisher(config).ensure_experiment()
    return f"experiment {experiment} at {config.mlflow.tracking_uri}"


async def _function(process: ScorerProcess, function: str) -> str:
    parameters = await process.parameters(function)
    return f"{process.module} imported; {function} takes {', '.join(parameters) or 'nothing'}"


async def _model(model: Model) -> str:
    completion = await model.probe()
    return f"answered in {completion.latency_ms:.0f} ms" + (f"; {model.note}" if model.note else "")
