"""What others count already, read when Prometheus asks: calls in flight, and what the collector received."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from evaluator.models.client import Model

if TYPE_CHECKING:
    from evaluator.collector.server import Counters


class InFlight(Collector):
    """The calls that are out, by model."""

    def __init__(self, models: Callable[[], Sequence[Model]]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        in_flight = GaugeMetricFamily(
            "evaluator_model_in_flight", "Requests that are out to a model now.", labels=["model"]
        )
        for model in self._models():
            in_flight.add_metric([model.name], model.limiter.in_flight)
        yield in_flight


class Received(Collector):
    """What the collector took and refused, and its commits, by signal: traces, logs, metrics."""

    def __init__(self, counters: "Counters") -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        records = CounterMetricFamily(
            "evaluator_collector_records",
            "Records received: accepted (durable), refused (unreadable), own (the evaluator's own spans, refused).",
            labels=["signal", "outcome"],
        )
        commits = CounterMetricFamily(
            "evaluator_collector_commits",
            "Commits to a table, by whether they came to be.",
            labels=["signal", "outcome"],
        )
        for name, counted in self._counters.signals.items():
            records.add_metric([name, "accepted"], counted.accepted)
            records.add_metric([name, "refused"], counted.refused - counted.own)
            records.add_metric([name, "own"], counted.own)
            commits.add_metric([name, "done"], counted.commits)
            commits.add_metric([name, "failed"], counted.failures)
        yield from (records, commits, *self._tee())

    def _tee(self) -> Iterable[Metric]:
        tee = self._counters.tee
        if tee is None:
            return
        requests = CounterMetricFamily(
            "evaluator_collector_tee", "Requests sent on to MLflow, and what was dropped.", labels=["outcome"]
        )
        requests.add_metric(["sent"], tee.sent)
        requests.add_metric(["dropped"], tee.dropped)
        yield requests
        yield GaugeMetricFamily(
            "evaluator_collector_tee_waiting_bytes", "Bytes that wait to be sent on.", tee.waiting_bytes
        )
