"""OTLP's signals: what a request of each is made of, and where it goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service

Encoding = Literal["protobuf", "json"]

RECORD_FIELDS = {"spans", "log_records", "metrics"}


class MalformedRequestError(Exception):
    """The bytes are not the request that they claim to be; sending them again will not help."""


class OversizedRequestError(Exception):
    """The request holds more bytes than the collector takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One of OTLP's signals: its table, its HTTP path, its gRPC service and its messages."""

    name: str
    table: str
    path: str
    service: str
    request: type[Message]
    response: type[Message]
    resources: str
    scopes: str
    records: str
    rejected: str

    def groups(self, request: Message) -> Iterator[tuple[Any, Any, Any]]:
        """Each (resource group, scope group, records) of a request."""
        for resource in getattr(request, self.resources):
            for scope in getattr(resource, self.scopes):
                yield resource, scope, getattr(scope, self.records)


TRACES = Signal(
    name="traces",
    table="otel_spans",
    path="/v1/traces",
    service="opentelemetry.proto.collector.trace.v1.TraceService",
    request=trace_service.ExportTraceServiceRequest,
    response=trace_service.ExportTraceServiceResponse,
    resources="resource_spans",
    scopes="scope_spans",
    records="spans",
    rejected="rejected_spans",
)
LOGS = Signal(
    name="logs",
    table="otel_logs",
    path="/v1/logs",
    service="opentelemetry.proto.collector.logs.v1.LogsService",
    request=logs_service.ExportLogsServiceRequest,
    response=logs_service.ExportLogsServiceResponse,
    resources="resource_logs",
    scopes="scope_logs",
    records="log_records",
    rejected="rejected_log_records",
)
METRICS = Signal(
    name="metrics",
    table="otel_metrics",
    path="/v1/metrics",
    service="opentelemetry.proto.collector.metrics.v1.MetricsService",
    request=metrics_service.ExportMetricsServiceRequest,
    response=metrics_service.ExportMetricsServiceResponse,
    resources="resource_metrics",
    scopes="scope_metrics",
    records="metrics",
    rejected="rejected_data_points",
)
SIGNALS = (TRACES, LOGS, METRICS)
