"""OTLP messages in, rows of the trace tables out: column by column, whatever the messages hold.

Attributes become JSON text whose values keep their OTLP types. What JSON has no word for is written as
protobuf's JSON mapping writes it: bytes in base64; NaN and the infinities as "NaN", "Infinity", "-Infinity".
"""

import base64
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import Message
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from evaluator.collector.signals import LOGS, METRICS, TRACES, Signal
from evaluator.tables import schemas

_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
_KINDS = {value: name for name, value in Span.SpanKind.items()}
_STATUS_CODES = {value: name for name, value in Status.StatusCode.items()}
_SEVERITIES = {value: name for name, value in SeverityNumber.items()}
_TEMPORALITIES = {value: name for name, value in AggregationTemporality.items()}


def rows(signal: Signal, messages: Sequence[Message], now: int) -> pa.Table:
    """The rows of some requests, in one table of the signal's schema.

    `now` (nanoseconds since the epoch) stands in where a record has no time. The spans' ids are taken to be
    proper ones; for whatever else the messages hold there is a row.
    """
    return _ROWS[signal.name](messages, now)


def _span_rows(messages: Sequence[Message], now: int) -> pa.Table:
    spans, context = _flat(TRACES, messages)
    start = _nanos([span.start_time_unix_nano for span in spans])
    end = _nanos([span.end_time_unix_nano for span in spans])
    status = [span.status for span in spans]
    return _table(
        schemas.SPANS,
        **_identity(len(spans), now, start, end),
        **context,
        trace_id=_ids([span.trace_id for span in spans]),
        span_id=_ids([span.span_id for span in spans]),
        trace_state=[span.trace_state for span in spans],
        parent_span_id=_ids([span.parent_span_id for span in spans]),
        flags=_flags([span.flags for span in spans]),
        name=[span.name for span in spans],
        kind=[_KINDS.get(span.kind, "SPAN_KIND_UNSPECIFIED") for span in spans],
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=[attributes_json(span.attributes) for span in spans],
        dropped_attributes_count=_counts([span.dropped_attributes_count for span in spans]),
        events=_lists([span.events for span in spans], schemas.SPANS.field("events").type, _events),
        dropped_events_count=_counts([span.dropped_events_count for span in spans]),
        links=_lists([span.links for span in spans], schemas.SPANS.field("links").type, _links),
        dropped_links_count=_counts([span.dropped_links_count for span in spans]),
        status=_struct(
            schemas.SPANS.field("status").type,
            message=[item.message for item in status],
            code=[_STATUS_CODES.get(item.code, "STATUS_CODE_UNSET") for item in status],
        ),
    )


def _events(kind: pa.StructType, events: Sequence[Any]) -> pa.StructArray:
    return _struct(
        kind,
        time_unix_nano=_nanos([event.time_unix_nano for event in events]),
        name=[event.name for event in events],
        attributes=[attributes_json(event.attributes) for event in events],
        dropped_attributes_count=_counts([event.dropped_attributes_count for event in events]),
    )


def _links(kind: pa.StructType, links: Sequence[Any]) -> pa.StructArray:
    return _struct(
        kind,
        trace_id=_ids([link.trace_id for link in links]),
        span_id=_ids([link.span_id for link in links]),
        trace_state=[link.trace_state for link in links],
        attributes=[attributes_json(link.attributes) for link in links],
        dropped_attributes_count=_counts([link.dropped_attributes_count for link in links]),
        flags=_flags([link.flags for link in links]),
    )


def _log_rows(messages: Sequence[Message], now: int) -> pa.Table:
    logs, context = _flat(LOGS, messages)
    at = _nanos([log.time_unix_nano for log in logs])
    observed = _nanos([log.observed_time_unix_nano for log in logs])
    return _table(
        schemas.LOGS,
        **_identity(len(logs), now, at, observed),
        **context,
        event_name=[log.event_name for log in logs],
        trace_id=_ids([log.trace_id if len(log.trace_id) == 16 else b"" for log in logs]),
        span_id=_ids([log.span_id if len(log.span_id) == 8 else b"" for log in logs]),
        time_unix_nano=at,
        observed_time_unix_nano=observed,
        severity_number=[_SEVERITIES.get(log.severity_number, "SEVERITY_NUMBER_UNSPECIFIED") for log in logs],
        severity_text=[log.severity_text for log in logs],
        body=[orjson.dumps(_plain(log.body)) if log.HasField("body") else None for log in logs],
        attributes=[attributes_json(log.attributes) for log in logs],
        dropped_attributes_count=_counts([log.dropped_attributes_count for log in logs]),
        flags=_flags([log.flags for log in logs]),
    )


def _metric_rows(messages: Sequence[Message], now: int) -> pa.Table:
    metrics, context = _flat(METRICS, messages)
    kinds = [metric.WhichOneof("data") for metric in metrics]
    points = [
        (index, kind, metric, getattr(metric, kind), point)
        for index, (metric, kind) in enumerate(zip(metrics, kinds, strict=True))
        if kind is not None
        for point in getattr(metric, kind).data_points
    ]
    owners = pa.array([index for index, *_ in points], pa.int64())
    start = _nanos([point.start_time_unix_nano for *_, point in points])
    at = _nanos([point.time_unix_nano for *_, point in points])
    return _table(
        schemas.METRICS,
        **_identity(len(points), now, at, start),
        **{name: column.take(owners) for name, column in context.items()},
        start_time_unix_nano=start,
        time_unix_nano=at,
        name=[metric.name for _, _, metric, _, _ in points],
        description=[metric.description for _, _, metric, _, _ in points],
        unit=[metric.unit for _, _, metric, _, _ in points],
        metric_type=[kind for _, kind, _, _, _ in points],
        metadata=[attributes_json(metric.metadata) for _, _, metric, _, _ in points],
        **{
            name: [
                _point(schemas.METRICS.field(name).type, data, point) if kind == name else None
                for _, kind, _, data, point in points
            ]
            for name in ("gauge", "sum", "histogram", "exponential_histogram", "summary")
        },
    )


def _point(kind: pa.StructType, data: Any, point: Any) -> dict[str, Any]:
    """A data point as the struct of its kind; what the kind does not have is left out by its fields."""
    return {field.name: _POINT_FIELDS.get(field.name, _copied(field.name))(data, point) for field in kind}


def _copied(name: str) -> Callable[[Any, Any], Any]:
    return lambda _, point: getattr(point, name) if _has(point, name) else None


def _has(message: Any, name: str) -> bool:
    """False for an optional field that was not sent."""
    return not message.DESCRIPTOR.fields_by_name[name].has_presence or message.HasField(name)


_POINT_FIELDS: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda _, point: _number(point),
    "attributes": lambda _, point: attributes_json(point.attributes).decode(),
    "flags": lambda _, point: point.flags - 2**32 if point.flags > _INT32_MAX else point.flags,
    "exemplars": lambda _, point: [_exemplar(exemplar) for exemplar in point.exemplars],
    "aggregation_temporality": lambda data, _: _TEMPORALITIES.get(
        data.aggregation_temporality, "AGGREGATION_TEMPORALITY_UNSPECIFIED"
    ),
    "is_monotonic": lambda data, _: data.is_monotonic,
    "count": lambda _, point: min(point.count, _INT64_MAX),
    "zero_count": lambda _, point: min(point.zero_count, _INT64_MAX),
    "bucket_counts": lambda _, point: _bucket_counts(point),
    "explicit_bounds": lambda _, point: list(point.explicit_bounds),
    "positive_bucket": lambda _, point: _bucket(point.positive),
    "negative_bucket": lambda _, point: _bucket(point.negative),
    "quantile_values": lambda _, point: [
        {"quantile": item.quantile, "value": item.value} for item in point.quantile_values
    ],
}


def _number(point: Any) -> float | None:
    kind = point.WhichOneof("value")
    return None if kind is None else float(getattr(point, kind))


def _exemplar(exemplar: Any) -> dict[str, Any]:
    return {
        "time_unix_nano": exemplar.time_unix_nano if 0 < exemplar.time_unix_nano <= _INT64_MAX else None,
        "value": _number(exemplar),
        "span_id": exemplar.span_id.hex() or None,
        "trace_id": exemplar.trace_id.hex() or None,
        "filtered_attributes": attributes_json(exemplar.filtered_attributes).decode(),
    }


def _bucket(buckets: Any) -> dict[str, Any]:
    return {"offset": buckets.offset, "bucket_counts": _bucket_counts(buckets)}


def _bucket_counts(holder: Any) -> list[int]:
    return [min(count, _INT64_MAX) for count in holder.bucket_counts]


_ROWS: dict[str, Callable[[Sequence[Message], int], pa.Table]] = {
    "traces": _span_rows,
    "logs": _log_rows,
    "metrics": _metric_rows,
}


def attributes_json(attributes: Iterable[Any]) -> bytes:
    """OTLP attributes (KeyValue messages) as a JSON object; of a key that stands twice, the last."""
    return orjson.dumps({item.key: _plain(item.value) for item in attributes})


def _plain(value: Any) -> Any:
    """An AnyValue as what JSON can say of it."""
    kind = value.WhichOneof("value")
    match kind:
        case "string_value" | "int_value" | "bool_value":
            return getattr(value, kind)
        case "double_value":
            number = value.double_value
            if math.isfinite(number):
                return number
            return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return {item.key: _plain(item.value) for item in value.kvlist_value.values}
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case _:
            return None


def _flat(signal: Signal, messages: Sequence[Message]) -> tuple[list[Any], dict[str, pa.Array]]:
    """All records, and beside them the columns that say what made them: resource, scope, schemas, service."""
    groups = [group for message in messages for group in signal.groups(message)]
    records = [record for _, _, own in groups for record in own]
    owners = [index for index, (_, _, own) in enumerate(groups) for _ in own]
    resources = [resource for resource, _, _ in groups]
    scopes = [scope for _, scope, _ in groups]
    url = {"traces": "span_schema_url", "logs": "log_schema_url", "metrics": "metric_schema_url"}[signal.name]
    columns = {
        "service_name": pa.array([_service_name(resource) for resource in resources], pa.string()),
        "resource": _struct(
            schemas.SPANS.field("resource").type,
            attributes=[attributes_json(resource.resource.attributes) for resource in resources],
            dropped_attributes_count=_counts(
                [resource.resource.dropped_attributes_count for resource in resources]
            ),
        ),
        "resource_schema_url": pa.array([resource.schema_url for resource in resources], pa.string()),
        "instrumentation_scope": _struct(
            schemas.SPANS.field("instrumentation_scope").type,
            name=[scope.scope.name for scope in scopes],
            version=[scope.scope.version for scope in scopes],
            attributes=[attributes_json(scope.scope.attributes) for scope in scopes],
            dropped_attributes_count=_counts([scope.scope.dropped_attributes_count for scope in scopes]),
        ),
        url: pa.array([scope.schema_url for scope in scopes], pa.string()),
    }
    taken = pa.array(owners, pa.int64())
    return records, {name: column.take(taken) for name, column in columns.items()}


def _service_name(resource: Any) -> str | None:
    for item in resource.resource.attributes:
        if item.key == "service.name":
            value = _plain(item.value)
            return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()
    return None


def _identity(count: int, now: int, *times: pa.Array) -> dict[str, pa.Array]:
    """The columns that the tables add: a record's id, and the first time of it that can be one."""
    nanos = pc.coalesce(*times, pa.scalar(now, pa.int64()))
    at = pc.divide(nanos, 1000).cast(schemas.TIMESTAMP)
    return {
        "record_id": pa.array(record_ids(count, now), pa.string()),
        "time": at,
        "date": at.cast(pa.date32()),
    }


def record_ids(count: int, now: int) -> list[str]:
    """Ids in the form of UUID version 7 (RFC 9562): they rise with time and within one call, and never repeat.

    The 74 bits after the time are random, the last 48 of them counting up through the call.
    """
    milliseconds = f"{now // 1_000_000 & (2**48 - 1):012x}"
    head = f"{milliseconds[:8]}-{milliseconds[8:]}-7{secrets.randbits(12):03x}-{0x8000 | secrets.randbits(14):04x}-"
    first = secrets.randbits(47)
    return [f"{head}{first + index:012x}" for index in range(count)]


def _ids(ids: list[bytes]) -> pa.Array:
    """Lowercase hex; None for an id that is empty or all zero."""
    return pa.array([item.hex() if any(item) else None for item in ids], pa.string())


def _nanos(values: list[int]) -> pa.Array:
    """Times as int64; None for one that is missing (0) or past the year 2262, which no column holds."""
    return pa.array([value if 0 < value <= _INT64_MAX else None for value in values], pa.int64())


def _counts(values: list[int]) -> pa.Array:
    return pa.array([min(value, _INT32_MAX) for value in values], pa.int32())


def _flags(values: list[int]) -> pa.Array:
    """The same 32 bits, in a column that counts them as signed."""
    return pa.array(values, pa.uint32()).view(pa.int32())


def _lists(
    owners: Sequence[Sequence[Any]],
    kind: pa.ListType,
    build: Callable[[pa.StructType, Sequence[Any]], pa.StructArray],
) -> pa.ListArray:
    offsets = pa.array(accumulate((len(own) for own in owners), initial=0), pa.int32())
    items = build(kind.value_type, [item for own in owners for item in own])
    return pa.ListArray.from_arrays(offsets, items, type=kind)


def _struct(kind: pa.StructType, **columns: Any) -> pa.StructArray:
    fields = list(kind)
    arrays = [_column(columns[field.name], field.type) for field in fields]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def _table(schema: pa.Schema, **columns: Any) -> pa.Table:
    arrays = [_column(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
