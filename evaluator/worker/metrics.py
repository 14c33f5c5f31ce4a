"""What Prometheus sees of the worker."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from evaluator.worker.turns import Turn


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
        self._calls = Counter("evaluator_model_calls", "Requests to models.", registry=registry)
        self._tokens = Counter(
            "evaluator_model_tokens", "Tokens of judges.", ["direction"], registry=registry
        )
        self._cost = Counter("evaluator_model_cost_usd", "Known cost of judges in USD.", registry=registry)
        self._waiting = Gauge("evaluator_traces_waiting", "Traces not ready yet.", registry=registry)
        self._cursor = Gauge("evaluator_cursor", "Version of the spans table read up to.", registry=registry)
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

    def ticked(self, turn: Turn, *, at: float, broken: bool, sinks: list[str]) -> None:
        """Count a turn that ended well; `at` is in seconds since the epoch."""
        summary = turn.summary
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
        self._calls.inc(summary.calls)
        self._tokens.labels("input").inc(summary.input_tokens)
        self._tokens.labels("output").inc(summary.output_tokens)
        self._cost.inc(summary.cost_usd)
        if summary.cursor is not None:
            self._cursor.set(summary.cursor)
            self._waiting.set(summary.waiting)
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
