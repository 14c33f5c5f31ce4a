"""The one builder: from the configuration to the parts that the main paths work with."""

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal, assert_never

import orjson

from evaluator.access import is_loopback
from evaluator.config import Config, parse_duration
from evaluator.dataset.conditions import holds, parse_condition
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import ConfigurationError
from evaluator.feedback import Value
from evaluator.guidelines.definitions import (
    BuiltinDefinition,
    Definition,
    JudgeDefinition,
    NumberRange,
    PythonDefinition,
    RegexDefinition,
    SqlDefinition,
)
from evaluator.guidelines.files import configured_guidelines
from evaluator.guidelines.groups import joint_groups
from evaluator.lease import Lease
from evaluator.models.account import Amount
from evaluator.models.budget import Budget
from evaluator.models.build import build_model, canonical, missing_key, price_missing
from evaluator.models.cache import Cache
from evaluator.models.client import Model
from evaluator.models.exchange import Listener
from evaluator.models.learned import LearnedGrants
from evaluator.models.limiter import SHARED_PATIENCE
from evaluator.models.prices import prices_of
from evaluator.notes import EVERY_JUDGE, fence_key
from evaluator.redaction import Redactor
from evaluator.score import Active
from evaluator.scorers.build import Judges
from evaluator.scorers.builtin import BuiltinScorer
from evaluator.scorers.code import CodeScorer
from evaluator.scorers.judge import WANTED
from evaluator.scorers.materials import Materials
from evaluator.scorers.paused import PausedScorer
from evaluator.scorers.process import ScorerProcess
from evaluator.scorers.prompts import Prompts
from evaluator.scorers.regex import RegexScorer
from evaluator.scorers.reply import Passes
from evaluator.scorers.scorer import Scorer
from evaluator.scorers.sql import SqlScorer
from evaluator.scorers.watched import unwatched
from evaluator.shards import WHOLE, Shard
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.sinks.cursor import LedgerCursorSink
from evaluator.sinks.mlflow import MlflowPublisher
from evaluator.sinks.sink import Sink
from evaluator.tables.accounts import LedgerAccounts
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.rows import Row
from evaluator.tables.spans import SpansTable
from evaluator.tables.stores import Stores
from evaluator.tables.views import Views
from evaluator.traces.columns import SESSIONS, SPANS, TRACES

if TYPE_CHECKING:
    from evaluator.collector.server import Collector
    from evaluator.telemetry.spans import Spans

log = logging.getLogger(__name__)

LIVE_SCOPE = "live"
LEAST_FOR_THE_PAST = timedelta(minutes=1)
Caching = Literal["on", "fresh", "off"]
"""Whether results are taken from the cache and kept there: both, only kept, or neither."""


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables of one configuration."""

    spans: SpansTable
    annotations: DeltaStore
    ledger: Ledger
    views: Views

    def check_writable(self, publish: Collection[str]) -> None:
        """Raises TableError when what is to be paid for could not be kept, or not be published to the annotations."""
        self.ledger.store.check_writable()
        if "annotations" in publish:
            self.annotations.check_writable()


def build_store(config: Config, table: str) -> DeltaStore:
    """Where a table lies, such as `otel_logs`."""
    return Stores(config).of(table)


def build_tables(config: Config, clock: Callable[[], datetime] = utc_now) -> Tables:
    """The tables; nothing is opened yet."""
    stores = Stores(config)
    spans = SpansTable(stores.of("otel_spans", writes=False), clock)
    ledger, annotations = Ledger(stores.of("eval_ledger"), clock), stores.of("otel_annotations")
    return Tables(
        spans=spans, annotations=annotations, ledger=ledger, views=Views(spans, annotations, ledger)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A scorer with its definition and the rule that selects its traces."""

    scorer: Scorer
    definition: Definition
    rule: SelectionRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorers:
    """Everything that judges, with what it shares."""

    entries: Sequence[Entry]
    models: Sequence[Model]
    processes: Mapping[str, ScorerProcess]
    budget: Budget
    grants: LearnedGrants
    cache: Cache | None = None
    spans: "Spans | None" = None

    @property
    def scorers(self) -> list[Scorer]:
        return [entry.scorer for entry in self.entries]

    def only(self, names: Collection[str]) -> "Scorers":
        """Those of these names. Joint judges among them still ask for their whole group."""
        return replace(self, entries=[entry for entry in self.entries if entry.scorer.name in names])

    def active(self, paused: Collection[str] = ()) -> list[Active]:
        """The scorers as a tick takes them; a paused judge defers its work."""
        active = []
        for entry in self.entries:
            off = entry.scorer.waits and (EVERY_JUDGE in paused or entry.scorer.name in paused)
            scorer = PausedScorer(entry.scorer) if off else entry.scorer
            active.append(
                Active(
                    scorer=scorer,
                    rule=entry.rule,
                    paused=off,
                    affords=partial(_affords, self.budget),
                    since=entry.definition.since,
                    spares=partial(_spares, self.budget, entry.scorer),
                )
            )
        return active

    async def prepare(self) -> None:
        """Load what the first calls of models need. Asks nobody."""
        for model in self.models:
            await model.prepare()

    async def close(self) -> None:
        await self.budget.settle()
        if self.cache is not None:
            await self.cache.close()
        for model in self.models:
            grant = model.limiter.grant
            if grant is not None and model.url is not None:
                self.grants.keep(model.name, model.url, grant)
            await model.close()
        for process in self.processes.values():
            await process.close()
        if self.spans is not None:
            await asyncio.to_thread(self.spans.close)


def build_scorers(
    config: Config,
    definitions: Iterable[Definition],
    book: Book,
    clock: Callable[[], datetime] = utc_now,
    *,
    keys_needed: bool = True,
    caching: Caching = "on",
    listeners: Sequence[Listener] = (),
) -> Scorers:
    """The scorers that the definitions declare, with the fence's key from the ledger, and the budget that it keeps.

    Raises ConfigurationError: a judge cannot work as it is configured. `keys_needed`: a model without its
    key, or without a price under a cap in USD, counts as that; not for those who only want to know what is in force.
    `listeners` are told of each call to a model.
    """
    return _Builder(config, book, clock, keys_needed, caching, listeners).build(definitions)


class _Builder:
    """What scorers share while they are built: one model for each name, one process for each module."""

    def __init__(
        self,
        config: Config,
        book: Book,
        clock: Callable[[], datetime],
        keys_needed: bool,
        caching: Caching,
        listeners: Sequence[Listener],
    ) -> None:
        self._config = config
        self._clock = clock
        self._keys_needed = keys_needed
        self._listeners = listeners
        self._spans: Spans | None = None
        self._prices = prices_of(config)
        self._grants = LearnedGrants(config.path(config.state), clock)
        self._fence_key = fence_key(book.notes())
        self._redactor = Redactor(config.redact)
        self._judges: Judges | None = None
        self._models: dict[str, Model] = {}
        self._processes: dict[str, ScorerProcess] = {}
        self._cache = None if caching == "off" else build_cache(config, clock, fresh=caching == "fresh")

    def build(self, definitions: Iterable[Definition]) -> Scorers:
        definitions = list(definitions)
        self._budget = build_budget(self._config, definitions, self._clock)
        if any(isinstance(definition, JudgeDefinition) for definition in definitions):
            self._judges = self._judges_of(definitions)
        entries = [
            Entry(scorer=self._scorer(definition), definition=definition, rule=_rule(definition))
            for definition in definitions
        ]
        if len(self._models) > 1:
            for model in self._models.values():
                model.limiter.patience = SHARED_PATIENCE
        return Scorers(
            entries=entries,
            models=list(self._models.values()),
            processes=self._processes,
            budget=self._budget,
            grants=self._grants,
            cache=self._cache,
            spans=self._spans,
        )

    def _scorer(self, definition: Definition) -> Scorer:
        match definition:
            case JudgeDefinition():
                assert self._judges is not None
                return self._judges.build(definition)
            case SqlDefinition():
                return SqlScorer(definition)
            case RegexDefinition():
                return RegexScorer(definition)
            case PythonDefinition(python=python):
                module = python.partition(":")[0]
                process = self._processes.setdefault(module, ScorerProcess(module, self._config.home))
                return CodeScorer(definition, process, self._config.home)
            case BuiltinDefinition():
                return BuiltinScorer(definition)
            case _:
                assert_never(definition)

    def _judges_of(self, definitions: Sequence[Definition]) -> Judges:
        if self._keys_needed:
            self._spans = build_spans(self._config, self._redactor.redact)
        folder = self._config.prompts
        prompts = Prompts(None if folder is None else self._config.path(folder))
        groups = joint_groups(definitions, self._config.judge.model).values()
        return Judges(
            model=self._model,
            materials=Materials(prompts=prompts, fence_key=self._fence_key, redactor=self._redactor),
            pass_if=_pass_if,
            groups={member.name: group for group in groups for member in group},
            cache=self._cache,
            watch=unwatched if self._spans is None else self._spans.watch,
        )

    def _model(self, definition: JudgeDefinition, named: str | None) -> Model:
        settings = self._config.judge
        name = canonical(named or settings.model)
        if name not in self._models:
            key = missing_key(name, settings) if self._keys_needed else None
            if key is not None:
                raise ConfigurationError(
                    f'{definition.path}:{definition.line}: judge "{definition.name}": model {name} needs a key: '
                    f"set {key} in the environment (judge.model in evaluator.yaml names another model, "
                    "local/smollm2 needs none)"
                )
            listeners = self._listeners if self._spans is None else (*self._listeners, self._spans.heard)
            self._models[name] = build_model(
                name, settings, self._prices, self._budget, listeners=listeners, grants=self._grants
            )
            unpriced = price_missing(name, settings, self._prices, definition.budget)
            if self._keys_needed and unpriced is not None:
                # A mistake for `check`; a worker that runs goes on and says so: its tokens are capped all the same.
                log.warning("a model's cost is unknown", extra={"judge": definition.name, "cause": unpriced})
        return self._models[name]


def build_budget(
    config: Config, definitions: Iterable[Definition], clock: Callable[[], datetime] = utc_now
) -> Budget:
    """The caps of the configuration and of the judges, kept in the ledger for all who spend."""
    judges = {one.name: one.budget for one in definitions if isinstance(one, JudgeDefinition) and one.budget}
    accounts = LedgerAccounts(build_tables(config, clock).ledger)
    return Budget(config.judge.budget, judges=judges, accounts=accounts, now=clock)


def build_cache(config: Config, clock: Callable[[], datetime] = utc_now, *, fresh: bool = False) -> Cache:
    """What judges have said already; `fresh`: nothing is taken from it."""
    return Cache(
        config.path(config.state),
        max_age=config.cache.max_age,
        max_size=config.cache.max_size,
        clock=clock,
        fresh=fresh,
    )


def build_spans(config: Config, redact: Callable[[str], str]) -> "Spans | None":
    """What sends the calls to models as spans, its texts redacted; None where nobody wants them."""
    endpoint = config.telemetry.otlp_endpoint
    if endpoint is None:
        return None
    from evaluator.telemetry.spans import Spans

    return Spans(endpoint, redact)


def _spares(budget: Budget, scorer: Scorer) -> bool:
    """Whether a scorer may catch up on the past: the most of the budget is for what is new."""
    return not scorer.waits or budget.spares([scorer.name])


def _affords(budget: Budget, row: Row) -> bool:
    """Whether there may be room for what waits for the budget."""
    wanted = orjson.loads(row.metadata or "{}").get(WANTED)
    return wanted is None or budget.affords(Amount(wanted["usd"], wanted["tokens"]), wanted["judges"])


def _pass_if(definition: JudgeDefinition) -> Passes | None:
    """What tells of a value whether it passes."""
    if definition.pass_if is None:
        return None
    kind = "DOUBLE" if isinstance(definition.values, NumberRange) else "VARCHAR"
    condition = parse_condition(definition.pass_if, {"value": kind})

    def passes(value: Value) -> bool | None:
        answer = holds(condition, value)
        return answer if isinstance(answer, bool) else None

    return passes


def _rule(definition: Definition) -> SelectionRule:
    columns = SESSIONS if definition.target == "session" else TRACES
    condition = None if definition.filter is None else parse_condition(definition.filter, columns)
    of_spans = None if definition.span_filter is None else parse_condition(definition.span_filter, SPANS)
    return SelectionRule(
        name=definition.name,
        filter=condition,
        sample_rate=definition.sample_rate,
        target=definition.target,
        span_filter=of_spans,
    )


def definitions_of(config: Config) -> tuple[Definition, ...]:
    """The enabled judges and scorers of the configured guideline files. Raises MistakesError."""
    return configured_guidelines(config).definitions


def build_sinks(config: Config, tables: Tables, book: Book | None = None) -> list[Sink]:
    """The sinks that `publish` names, in its order. `book` is the ledger, if it is open already."""
    sinks: list[Sink] = []
    for name in config.publish:
        match name:
            case "annotations":
                ledger = book or tables.ledger.open()
                sinks.append(AnnotationsSink(tables.annotations, ledger.table_id))
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
        redact=Redactor(config.redact).redact,
    )


def build_collector(config: Config, host: str) -> "Collector":
    """What receives OTLP at an address; with the token where others can reach it.

    Raises ConfigurationError for a tee that cannot be.
    """
    from evaluator.collector.destinations import destination
    from evaluator.collector.server import Collector
    from evaluator.collector.signals import SIGNALS
    from evaluator.collector.tee import Tee

    tee = None
    if config.collect.tee == "mlflow":
        leads_to = destination(config.tracking_uri, config.mlflow.experiment, os.environ)
        tee = Tee(config.path(config.state) / "tee", leads_to)
    stores = Stores(config)
    return Collector(
        {signal.table: stores.of(signal.table) for signal in SIGNALS},
        tee,
        token=None if is_loopback(host) else config.http.token,
    )


def build_lease(
    config: Config, tables: Tables, clock: Callable[[], datetime] = utc_now, shard: Shard = WHOLE
) -> Lease:
    """The lease of the live work, or of a shard of it."""
    scope = LIVE_SCOPE if shard == WHOLE else f"{LIVE_SCOPE}-{shard.name}"
    return Lease(tables.ledger.open, scope, config.path(config.state), clock)


def start_of(config: Config) -> str | timedelta:
    known = ("auto", "earliest", "latest")
    return config.start if config.start in known else parse_duration(config.start)


def past_for(config: Config) -> timedelta:
    """How long a tick may go on with the past (`since`): half of the time to the next one, where that is known."""
    return LEAST_FOR_THE_PAST if config.cron else max(config.every / 2, LEAST_FOR_THE_PAST)
