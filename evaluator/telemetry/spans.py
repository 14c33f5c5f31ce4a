"""Calls to judge models as OpenTelemetry spans, with the results that they led to as events, sent by OTLP over HTTP.

Importing this file imports OpenTelemetry's SDK, whose own environment variables hold (OTEL_EXPORTER_OTLP_HEADERS,
OTEL_BSP_…, OTEL_TRACES_SAMPLER).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from threading import Thread
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, Tracer

from evaluator import __version__
from evaluator.dataset.records import Record
from evaluator.feedback import Outcome
from evaluator.models.endpoint import ModelFailure
from evaluator.models.exchange import Exchange
from evaluator.scorers.watched import Tell
from evaluator.telemetry import OWN, SERVICE
from evaluator.telemetry.genai import RESULT, call_attributes, result_attributes, span_name

FLUSH_WITHIN = timedelta(seconds=3)
"""How long an end waits for the last spans to be delivered."""

PATH = "/v1/traces"

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Judging:
    """What was asked to judge a record so far, and what came of it."""

    record: Record
    exchanges: list[Exchange] = field(default_factory=list)
    results: dict[str, Outcome] = field(default_factory=dict)

    def led_to(self, exchange: Exchange) -> dict[str, Outcome]:
        """The results that are told with an exchange: of those it was made for, where no later one was."""
        return {name: self.results[name] for name in self.results if self._last_for(name) is exchange}

    def _last_for(self, judge: str) -> Exchange | None:
        made = [exchange for exchange in self.exchanges if judge in exchange.judges]
        return max(made, key=_ended, default=None)


_underway: ContextVar[_Judging | None] = ContextVar("judging", default=None)
"""The judging that a call to a model is part of: OpenTelemetry's own current span is kept in the same way."""


class Spans:
    """Makes a span of each exchange with a model, once what it led to is known, and sends them from a thread of its own.

    No span is ever waited for: what cannot be delivered is said once, and lost. Every text passes `redact`.
    """

    def __init__(self, endpoint: str, redact: Callable[[str], str] = str) -> None:
        # We say once that nothing can be delivered; the SDK says it with every batch.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        self._endpoint = endpoint
        self._redact = redact
        self._made = 0

    def heard(self, exchange: Exchange) -> None:
        """An exchange that has ended. One that is part of no judging (`check --connect` asks) is a span at once."""
        judging = _underway.get()
        if judging is None:
            self._make(exchange, None)
        else:
            judging.exchanges.append(exchange)

    @contextmanager
    def watch(self, record: Record) -> Iterator[Tell]:
        """Around all that is asked to judge a record; its spans are made at the end, also where it is given up."""
        judging = _Judging(record=record)
        token = _underway.set(judging)
        try:
            yield judging.results.__setitem__
        finally:
            _underway.reset(token)
            for exchange in judging.exchanges:
                self._make(exchange, judging)

    def close(self) -> None:
        """Send what is left, within FLUSH_WITHIN."""
        if not self._made:
            return
        ending = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(FLUSH_WITHIN.total_seconds())
        self._exporter.told = True
        lost = self._made - self._exporter.delivered
        if lost:
            log.warning(
                "some of the evaluator's own spans were not delivered",
                extra={"spans": lost, "endpoint": _place(self._endpoint)},
            )

    def _make(self, exchange: Exchange, judging: _Judging | None) -> None:
        attributes, links = call_attributes(exchange), []
        if judging is not None:
            target = judging.record.target
            attributes["evaluator.trace_id"] = target.trace_id
            attributes["evaluator.target_id"] = self._redact(target.target_id)
            links = links_to(judging.record)
        span = self._tracer.start_span(
            span_name(exchange),
            context=Context(),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links,
            start_time=exchange.began_unix_nano,
        )
        self._made += span.is_recording()
        if isinstance(exchange.outcome, ModelFailure):
            span.set_status(StatusCode.ERROR, self._redact(exchange.outcome.detail))
        if judging is not None:
            for name, outcome in judging.led_to(exchange).items():
                told = result_attributes(name, outcome, judging.record, self._redact)
                span.add_event(RESULT, told, timestamp=_ended(exchange))
        span.end(end_time=_ended(exchange))

    @cached_property
    def _exporter(self) -> "_Exporter":
        return _Exporter(OTLPSpanExporter(endpoint=traces_url(self._endpoint)), _place(self._endpoint))

    @cached_property
    def _provider(self) -> TracerProvider:
        marks = Resource.create({"service.name": SERVICE, "service.version": __version__, OWN: True})
        provider = TracerProvider(resource=marks, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(self._exporter))
        return provider

    @cached_property
    def _tracer(self) -> Tracer:
        return self._provider.get_tracer(SERVICE, __version__)


class _Exporter(SpanExporter):
    """Sends batches; that one could not be delivered is said, until it has been `told`."""

    def __init__(self, exporter: SpanExporter, place: str) -> None:
        self._exporter = exporter
        self._place = place
        self.told = False
        self.delivered = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        elif not self.told:
            self.told = True
            log.warning(
                "the evaluator's own spans cannot be delivered; judging goes on without them",
                extra={"endpoint": self._place},
            )
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def traces_url(endpoint: str) -> str:
    """Where spans are posted to: OTLP's path under the endpoint, unless that names it already."""
    base = endpoint.rstrip("/")
    return base if base.endswith(PATH) else f"{base}{PATH}"


def links_to(record: Record) -> list[Link]:
    """To what was judged: the target's own span, else the root of its trace; none where the ids are no proper ones."""
    span_id = record.target.span_id or record.trace.root_span_id or ""
    try:
        judged = SpanContext(
            int(record.target.trace_id, 16),
            int(span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
    except ValueError:
        return []
    return [Link(judged)] if judged.is_valid else []


def _ended(exchange: Exchange) -> int:
    return exchange.began_unix_nano + int(exchange.seconds * 1e9)


def _place(endpoint: str) -> str:
    """The endpoint without what it may hold of a key."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
