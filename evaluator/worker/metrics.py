"""What Prometheus sees of the worker.

Labels take few values: the configured scorers and models, and words of our own. A `judge` is a scorer's name, the names
of a joint group with + between them, or nothing for a plain question that tells whether a model works.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from evaluator.models.client import Model
from evaluator.models.endpoint import Completion
from evaluator.models.exchange import Exchange
from evaluator.worker.gauges import InFlight, Received
from evaluator.worker.turns import Turn

if TYPE_CHECKING:
    from evaluator.collector.server import Counters

ANSWERED = "answered"
BACKLOG = ("waiting", "deferred", "unscored")


class Metrics:
    """The worker's own registry: nothing of the process's other libraries is in it."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._ticks = Counter("evaluator_ticks", "Ticks by how they ended.", ["outcome"], registry=registry)
        self._seconds = Histogram(
            "evaluator_tick_seconds",
            "How long a tick took.",
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600),
            registry=registry,
        )
        self._traces = Counter("evaluator_traces", "Traces decided.", registry=registry)
        self._skipped = Counter(
            "evaluator_skipped", "Scorings not made, by reason.", ["reason"], registry=registry
        )
        self._results = Counter(
            "evaluator_results", "Results by scorer and verdict.", ["scorer", "result"], registry=registry
        )
        self._unscored = Counter(
            "evaluator_unscored",
            "What could not be judged, by reason.",
            ["scorer", "reason"],
            registry=registry,
        )
        self._models = ModelMetrics(registry)
        self._waiting = Gauge("evaluator_traces_waiting", "Traces not ready yet.", registry=registry)
        self._backlog = Gauge(
            "evaluator_backlog",
            "What is open in the ledger: waiting (traces), deferred and unscored (results to be tried again).",
            ["state"],
            registry=registry,
        )
        self._cursor = Gauge("evaluator_cursor", "Version of the spans table read up to.", registry=registry)
        self._commits_behind = Gauge(
            "evaluator_commits_behind", "Commits of the spans table after the cursor.", registry=registry
        )
        self._last = Gauge(
            "evaluator_last_tick_timestamp_seconds", "When the last good tick ended.", registry=registry
        )
        self._behind = Gauge(
            "evaluator_sink_behind",
            "1 while a sink could not be brought up to date.",
            ["sink"],
            registry=registry,
        )
        self._broken = Gauge(
            "evaluator_guidelines_broken", "1 while an edit of the guidelines is broken.", registry=registry
        )

    def watch(self, models: Callable[[], Sequence[Model]], received: "Counters | None") -> None:
        """Look, whenever Prometheus asks, at what is in flight and at what was received, where spans are collected."""
        self._registry.register(InFlight(models))
        if received is not None:
            self._registry.register(Received(received))

    def called(self, exchange: Exchange) -> None:
        """Count a call to a model that has ended."""
        self._models.called(exchange)

    def ticked(self, turn: Turn, *, at: float, broken: bool, sinks: list[str]) -> None:
        """Count a turn that ended well; `at` is in seconds since the epoch."""
        summary, standing = turn.summary, turn.standing
        self._ticks.labels("idle" if turn.held_by else "done").inc()
        self._seconds.observe(summary.seconds)
        self._traces.inc(summary.traces)
        for reason, count in summary.skipped.items():
            self._skipped.labels(reason.partition(":")[0]).inc(count)
        for name, counted in summary.scorers.items():
            self._results.labels(name, "pass").inc(counted.passed)
            self._results.labels(name, "fail").inc(counted.failed)
            self._results.labels(name, "other").inc(counted.scored - counted.passed - counted.failed)
            for reason, count in counted.unscored.items():
                self._unscored.labels(name, reason).inc(count)
        if summary.cursor is not None:
            self._cursor.set(summary.cursor)
            self._waiting.set(summary.waiting)
        if standing.commits_behind is not None:
            self._commits_behind.set(standing.commits_behind)
        for state in BACKLOG:
            self._backlog.labels(state).set(standing.backlog.get(state, 0))
        self._last.set(at)
        self._broken.set(broken)
        for sink in sinks:
            self._behind.labels(sink).set(any(behind.sink == sink for behind in turn.behind))

    def failed(self) -> None:
        """Count a turn that ended with an error."""
        self._ticks.labels("failed").inc()

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)


class ModelMetrics:
    """What calls to models took and how they ended, counted as they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        whom = ["model", "judge"]
        self._calls = Counter(
            "evaluator_model_calls",
            "Requests to models, retries included: answered, or why not (rate_limited is a 429).",
            [*whom, "outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "evaluator_model_retries", "Requests that were tries beyond the first.", whom, registry=registry
        )
        self._seconds = Histogram(
            "evaluator_model_call_seconds",
            "From a request to its answer, or to its end without one.",
            ["model"],
            buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120),
            registry=registry,
        )
        self._tokens = Counter(
            "evaluator_model_tokens", "Tokens of judges.", [*whom, "direction"], registry=registry
        )
        self._cached = Counter(
            "evaluator_model_cached_tokens",
            "Those of the input tokens that came from the provider's cache.",
            whom,
            registry=registry,
        )
        self._cost = Counter(
            "evaluator_model_cost_usd", "Known cost of judges in USD.", whom, registry=registry
        )
        self._unpriced = Counter(
            "evaluator_model_cost_unknown", "Answers whose cost nobody knows.", whom, registry=registry
        )

    def called(self, exchange: Exchange) -> None:
        model, judge, outcome = exchange.model, "+".join(exchange.judges), exchange.outcome
        self._seconds.labels(model).observe(exchange.seconds)
        if exchange.attempt > 1:
            self._retries.labels(model, judge).inc()
        if not isinstance(outcome, Completion):
            self._calls.labels(model, judge, outcome.reason.value).inc(outcome.calls)
            return
        self._calls.labels(model, judge, ANSWERED).inc(outcome.calls)
        self._tokens.labels(model, judge, "input").inc(outcome.input_tokens or 0)
        self._tokens.labels(model, judge, "output").inc(outcome.output_tokens or 0)
        self._cached.labels(model, judge).inc(outcome.cached_input_tokens or 0)
        if outcome.cost_usd is None:
            self._unpriced.labels(model, judge).inc()
        else:
            self._cost.labels(model, judge).inc(outcome.cost_usd)
