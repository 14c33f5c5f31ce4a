"""The one builder: from the configuration to the parts that the main paths work with."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_never

from evaluator.config import Config, parse_duration
from evaluator.dataset.conditions import Condition, parse_condition
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import ConfigurationError, ModelError
from evaluator.guideline_files import load_guidelines
from evaluator.guidelines import (
    BuiltinDefinition,
    Definition,
    Guidelines,
    JudgeDefinition,
    PythonDefinition,
    RegexDefinition,
    SqlDefinition,
)
from evaluator.lease import Lease
from evaluator.notes import EVERY_JUDGE, fence_key, paused
from evaluator.offline import EvaluationParts
from evaluator.score import Active
from evaluator.scorers.scorer import Scorer
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.sinks.cursor import LedgerCursorSink
from evaluator.sinks.mlflow import MlflowPublisher
from evaluator.sinks.sink import Sink
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Ledger
from evaluator.tables.spans import SpansTable
from evaluator.tables.views import Views
from evaluator.tick import Parts

LIVE_SCOPE = "live"


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables of one configuration."""

    spans: SpansTable
    annotations: DeltaStore
    ledger: Ledger
    views: Views


def build_tables(config: Config, clock: Callable[[], datetime] = utc_now) -> Tables:
    """The tables; nothing is opened yet."""

    def store(table: str) -> DeltaStore:
        return DeltaStore(config.table_uri(table), config.storage_options)

    spans, ledger = SpansTable(store("otel_spans"), clock), Ledger(store("eval_ledger"), clock)
    annotations = store("otel_annotations")
    return Tables(
        spans=spans, annotations=annotations, ledger=ledger, views=Views(spans, annotations, ledger)
    )


def build_sinks(config: Config, tables: Tables) -> list[Sink]:
    """The sinks that `publish` names, in its order."""
    sinks: list[Sink] = []
    for name in config.publish:
        match name:
            case "annotations":
                sinks.append(AnnotationsSink(tables.annotations, tables.ledger.open().table_id))
            case "mlflow":
                sinks.append(LedgerCursorSink(build_publisher(config), tables.ledger.open))
            case _:
                assert_never(name)
    return sinks


def build_publisher(config: Config) -> MlflowPublisher:
    """What speaks to MLflow."""
    return MlflowPublisher(
        tracking_uri=config.tracking_uri,
        experiment=config.mlflow.experiment,
        state=config.path(config.state),
    )


def build_lease(config: Config, tables: Tables, clock: Callable[[], datetime] = utc_now) -> Lease:
    return Lease(tables.ledger.open, LIVE_SCOPE, config.path(config.state), clock)


def start_of(config: Config) -> str | timedelta:
    known = ("auto", "earliest", "latest")
    return config.start if config.start in known else parse_duration(config.start)
