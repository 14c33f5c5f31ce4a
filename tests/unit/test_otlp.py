"""OTLP requests into rows: whatever a client sends, its good neighbours are kept."""

import gzip
import json
import math
import os
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from evaluator.collector.encoding import Export, encode_response, gunzip, read_export
from evaluator.collector.otlp import attributes_json, record_ids, rows
from evaluator.collector.signals import (
    LOGS,
    METRICS,
    TRACES,
    MalformedRequestError,
    OversizedRequestError,
)
from evaluator.tables import schemas

NOW = 1_793_966_400_000_000_000
START = 1_793_959_200_000_000_000
INT64_MAX = 2**63 - 1


def a_span(**fields: Any) -> Span:
    return Span(
        **{"trace_id": os.urandom(16), "span_id": os.urandom(8), "start_time_unix_nano": START, **fields}
    )


def a_request(*spans: Span) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add(schema_url="r")
    group.resource.attributes.add(key="service.name", value=AnyValue(string_value="support"))
    group.scope_spans.add(spans=spans, schema_url="s").scope.name = "agent"
    return request


def read(request: ExportTraceServiceRequest | bytes) -> tuple[list[dict[str, Any]], Export]:
    body = request if isinstance(request, bytes) else request.SerializeToString()
    export = read_export(TRACES, body, "protobuf")
    return rows_of(export), export


def read_json(document: Any, signal: Any = TRACES) -> tuple[list[dict[str, Any]], Export]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    export = read_export(signal, body, "json")
    return rows_of(export, signal), export


def rows_of(export: Export, signal: Any = TRACES) -> list[dict[str, Any]]:
    table = rows(signal, [export.message], NOW)
    table.validate(full=True)
    listed: list[dict[str, Any]] = table.to_pylist()
    return listed


def json_request(*spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def json_span(**members: Any) -> dict[str, Any]:
    return {"traceId": "ab" * 16, "spanId": "cd" * 8, **members}


def test_a_span_becomes_a_row_with_its_own_values() -> None:
    span = a_span(name="chat", kind=3, end_time_unix_nano=START + 5, parent_span_id=b"p" * 8, flags=2**31 + 1)
    span.status.code = 2
    span.events.add(name="e", time_unix_nano=START)
    span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)

    [row], _ = read(a_request(span))

    assert row["trace_id"] == span.trace_id.hex()
    assert row["parent_span_id"] == b"p".hex() * 8
    assert (row["kind"], row["status"]["code"]) == ("SPAN_KIND_CLIENT", "STATUS_CODE_ERROR")
    assert (row["service_name"], row["instrumentation_scope"]["name"]) == ("support", "agent")
    assert (row["resource_schema_url"], row["span_schema_url"]) == ("r", "s")
    assert row["resource"]["attributes"] == '{"service.name":"support"}'
    assert row["flags"] == -(2**31) + 1
    assert row["events"][0]["name"] == "e"
    assert row["links"][0]["trace_id"] == b"t".hex() * 16
    assert row["date"].isoformat() == "2026-11-06"


def test_a_root_has_no_parent_however_that_is_said() -> None:
    found, _ = read(a_request(a_span(), a_span(parent_span_id=bytes(8))))

    assert [row["parent_span_id"] for row in found] == [None, None]


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [
        (0, 0, NOW),
        (2**64 - 1, 0, NOW),
        (0, START, START),
        (START, 1, START),
        (1, 0, 1),
        (INT64_MAX, 0, INT64_MAX),
    ],
)
def test_a_time_that_cannot_be_one_is_null_and_the_row_keeps_a_time(start: int, end: int, shown: int) -> None:
    [row], _ = read(a_request(a_span(start_time_unix_nano=start, end_time_unix_nano=end)))

    assert row["start_time_unix_nano"] == (start if 0 < start <= INT64_MAX else None)
    assert row["time"].timestamp() == pytest.approx(shown / 1e9, abs=1e-5)
    assert row["date"] == row["time"].date()


def test_text_that_is_not_utf8_is_mended_and_costs_no_span() -> None:
    body = a_request(a_span(name="good"), a_span(name="b-d")).SerializeToString().replace(b"b-d", b"b\xffd")

    found, export = read(body)

    assert [row["name"] for row in found] == ["good", "b\ufffdd"]
    assert export.refused == 0


def wire(number: int, content: bytes) -> bytes:
    """A length-delimited field as protobuf writes it."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("levels", [40, 45, 46, 47, 48, 49, 50, 500])
def test_a_span_nested_deeper_than_protobuf_reads_is_refused_alone(levels: int) -> None:
    value = AnyValue(string_value="x").SerializeToString()
    for _ in range(levels):
        value = wire(5, wire(1, value))
    deep = a_span(name="deep").SerializeToString() + wire(9, wire(1, b"key") + wire(2, value))
    body = a_request(a_span(name="good")).SerializeToString() + wire(1, wire(2, wire(2, deep)))

    found, export = read(body)

    assert [row["name"] for row in found] == ["good"] + ["deep"] * (levels < 48)
    assert export.refused == (levels >= 48)


def test_a_megabyte_attribute_is_kept_whole() -> None:
    text = "\x01" * 2**20

    [row], _ = read(a_request(a_span(attributes=[KeyValue(key="k", value=AnyValue(string_value=text))])))

    assert orjson.loads(row["attributes"])["k"] == text


def test_large_resources_of_many_small_spans_are_refused() -> None:
    request = a_request(*(a_span() for _ in range(300)))
    request.resource_spans[0].resource.attributes.add(key="big", value=AnyValue(string_value="x" * 2**20))

    with pytest.raises(OversizedRequestError, match="resource attributes"):
        read(request)


def test_what_is_not_a_request_is_malformed() -> None:
    for body in (b"abc", a_request(a_span()).SerializeToString()[:-3]):
        with pytest.raises(MalformedRequestError):
            read(body)
    for text in (
        b"",
        b"[]",
        b"{",
        b'{"resourceSpans": 3}',
        b'{"resourceSpans": [{"resource": 3}]}',
        b"[" * 9999,
    ):
        with pytest.raises(MalformedRequestError):
            read_json(text)


def test_json_is_read_with_either_names_numbers_and_ids_in_hex() -> None:
    [row], _ = read_json(
        {
            "resource_spans": [
                {
                    "scope_spans": [
                        {
                            "spans": [
                                {
                                    "trace_id": "AB" * 16,
                                    "spanId": "cd" * 8,
                                    "parentSpanId": "",
                                    "kind": "SPAN_KIND_SERVER",
                                    "startTimeUnixNano": START,
                                    "endTimeUnixNano": str(START + 1),
                                    "attributes": [{"key": "n", "value": {"intValue": "7"}}],
                                    "status": {"code": "STATUS_CODE_OK", "somethingNew": 1},
                                    "name": None,
                                }
                            ]
                        }
                    ]
                }
            ]
        }
    )

    assert row["trace_id"] == "ab" * 16
    assert row["parent_span_id"] is None
    assert (row["kind"], row["status"]["code"]) == ("SPAN_KIND_SERVER", "STATUS_CODE_OK")
    assert (row["start_time_unix_nano"], row["end_time_unix_nano"]) == (START, START + 1)
    assert row["attributes"] == '{"n":7}'


@pytest.mark.parametrize(
    "bad",
    [
        3,
        None,
        [],
        {},
        json_span(traceId="zz"),
        json_span(spanId="00" * 8),
        json_span(parentSpanId="ab"),
        json_span(startTimeUnixNano="tomorrow"),
        json_span(startTimeUnixNano=-1),
        json_span(startTimeUnixNano=1.5),
        json_span(name=7),
        json_span(kind="SPAN_KIND_NEW"),
        json_span(attributes={"a": 1}),
        json_span(attributes=[{"key": "a", "value": {"intValue": 2**63}}]),
        json_span(attributes=[{"key": "a", "value": {"boolValue": "yes"}}]),
        json_span(attributes=[{"key": "a", "value": {"bytesValue": "%"}}]),
    ],
)
def test_a_bad_json_span_is_refused_alone(bad: Any) -> None:
    found, export = read_json(json_request(json_span(name="before"), bad, json_span(name="after")))

    assert [row["name"] for row in found] == ["before", "after"]
    assert export.refused == 1


def test_half_a_surrogate_pair_in_json_costs_only_itself() -> None:
    body = json.dumps(json_request(json_span(name="cut \ud83d"))).encode()

    [row], _ = read_json(body)

    assert row["name"] == "cut ?"


def test_logs_become_rows() -> None:
    log = {
        "timeUnixNano": "0",
        "observedTimeUnixNano": str(START),
        "severityNumber": 9,
        "severityText": "INFO",
        "body": {"stringValue": "hello"},
        "traceId": "ab" * 16,
        "spanId": "",
        "eventName": "e",
    }

    found, _ = read_json({"resourceLogs": [{"scopeLogs": [{"logRecords": [log, {}]}]}]}, LOGS)

    assert (found[0]["body"], found[0]["severity_number"]) == ('"hello"', "SEVERITY_NUMBER_INFO")
    assert (found[0]["trace_id"], found[0]["span_id"]) == ("ab" * 16, None)
    assert found[0]["time"].timestamp() == START / 1e9
    assert found[1]["body"] is None


def test_each_kind_of_metric_becomes_a_row_a_point() -> None:
    point = {"timeUnixNano": str(START), "startTimeUnixNano": "1", "attributes": []}
    metrics = [
        {"name": "g", "gauge": {"dataPoints": [{**point, "asInt": "3"}, {**point, "asDouble": "NaN"}]}},
        {
            "name": "s",
            "sum": {
                "isMonotonic": True,
                "aggregationTemporality": 2,
                "dataPoints": [
                    {**point, "asDouble": 1.5, "exemplars": [{"asInt": "1", "traceId": "ab" * 16}]}
                ],
            },
        },
        {
            "name": "h",
            "histogram": {
                "dataPoints": [
                    {**point, "count": "2", "sum": 3.0, "bucketCounts": ["1", "1"], "explicitBounds": [1]}
                ]
            },
        },
        {
            "name": "e",
            "exponentialHistogram": {
                "dataPoints": [
                    {**point, "count": 2**64 - 1, "scale": -1, "positive": {"offset": 1, "bucketCounts": [2]}}
                ]
            },
        },
        {
            "name": "q",
            "summary": {"dataPoints": [{**point, "quantileValues": [{"quantile": 0.5, "value": 1.0}]}]},
        },
        {"name": "nothing"},
    ]

    found, _ = read_json({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}, METRICS)

    assert [row["metric_type"] for row in found] == [
        "gauge",
        "gauge",
        "sum",
        "histogram",
        "exponential_histogram",
        "summary",
    ]
    assert found[0]["gauge"]["value"] == 3.0
    assert math.isnan(found[1]["gauge"]["value"])
    assert found[0]["sum"] is None
    assert found[2]["sum"]["aggregation_temporality"] == "AGGREGATION_TEMPORALITY_CUMULATIVE"
    assert found[2]["sum"]["exemplars"][0]["trace_id"] == "ab" * 16
    assert found[3]["histogram"]["bucket_counts"] == [1, 1]
    assert found[3]["histogram"]["min"] is None
    assert found[4]["exponential_histogram"]["count"] == INT64_MAX
    assert found[4]["exponential_histogram"]["positive_bucket"] == {"offset": 1, "bucket_counts": [2]}
    assert found[5]["summary"]["quantile_values"] == [{"quantile": 0.5, "value": 1.0}]


def test_a_partial_success_is_told_in_the_encoding_of_the_request() -> None:
    response = TRACES.response.FromString(encode_response(TRACES, 2, "why", "protobuf"))

    assert response.partial_success.rejected_spans == 2  # type: ignore[attr-defined]
    assert orjson.loads(encode_response(LOGS, 1, "why", "json")) == {
        "partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "why"}
    }
    assert encode_response(METRICS, 0, "", "json") == b"{}"


def test_gzip_is_unpacked_up_to_its_bound() -> None:
    assert gunzip(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    with pytest.raises(OversizedRequestError):
        gunzip(gzip.compress(b"x" * 1001), 1000)
    for bad in (b"x", gzip.compress(b"x")[:-1], gzip.compress(b"x") + b"more"):
        with pytest.raises(MalformedRequestError):
            gunzip(bad, 1000)


def test_record_ids_rise_and_never_repeat() -> None:
    earlier, later = record_ids(1000, NOW), record_ids(1000, NOW + 1_000_000)

    assert earlier + later == sorted({*earlier, *later})


def test_no_request_at_all_is_a_table_without_rows() -> None:
    assert rows(TRACES, [], NOW) == pa.Table.from_pylist([], schema=schemas.SPANS)


ANY_VALUES = st.recursive(
    st.one_of(
        st.builds(AnyValue),
        st.builds(AnyValue, string_value=st.text(st.characters(exclude_categories=["Cs"]))),
        st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.integers(-(2**63), INT64_MAX)),
        st.builds(AnyValue, double_value=st.floats()),
        st.builds(AnyValue, bytes_value=st.binary()),
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: AnyValue(array_value=ArrayValue(values=items)), st.lists(inner, max_size=3)),
        st.builds(
            lambda items: AnyValue(
                kvlist_value=KeyValueList(
                    values=[KeyValue(key=key, value=value) for key, value in items.items()]
                )
            ),
            st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3),
        ),
    ),
    max_leaves=8,
)


@given(ANY_VALUES)
def test_any_value_is_valid_json_of_the_same_kind(value: AnyValue) -> None:
    text = attributes_json([KeyValue(key="k", value=value)])

    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["k"]
    match value.WhichOneof("value"):
        case "string_value":
            assert found == value.string_value
        case "int_value":
            assert type(found) is int
            assert found == value.int_value
        case "bool_value":
            assert found is value.bool_value
        case "double_value" if math.isfinite(value.double_value):
            assert type(found) is float
            assert found == value.double_value
        case "double_value" | "bytes_value":
            assert isinstance(found, str)
        case "array_value":
            assert len(found) == len(value.array_value.values)
        case "kvlist_value":
            assert len(found) == len(value.kvlist_value.values)
        case None:
            assert found is None


SPANS = st.builds(
    Span,
    trace_id=st.sampled_from([b"", b"t" * 15, b"t" * 16, bytes(16), b"t" * 17]),
    span_id=st.sampled_from([b"s" * 7, b"s" * 8, bytes(8)]),
    parent_span_id=st.sampled_from([b"", b"p" * 8, bytes(8), b"p"]),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    kind=st.integers(-(2**31), 2**31 - 1),
    flags=st.integers(0, 2**32 - 1),
    start_time_unix_nano=st.integers(0, 2**64 - 1),
    end_time_unix_nano=st.integers(0, 2**64 - 1),
    dropped_events_count=st.integers(0, 2**32 - 1),
    attributes=st.lists(st.builds(KeyValue, key=st.just("k"), value=ANY_VALUES), max_size=2),
    events=st.lists(st.builds(Span.Event, time_unix_nano=st.integers(0, 2**64 - 1)), max_size=2),
    links=st.lists(st.builds(Span.Link, trace_id=st.binary(max_size=16)), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SPANS, max_size=6))
def test_the_neighbours_of_a_bad_span_are_kept(spans: list[Span]) -> None:
    found, export = read(a_request(*spans))

    good = [
        span
        for span in spans
        if span.trace_id == b"t" * 16 and span.span_id == b"s" * 8 and span.parent_span_id != b"p"
    ]
    assert [row["name"] for row in found] == [span.name for span in good]
    assert export.refused == len(spans) - len(good)
    assert all(row["time"] is not None and row["date"] is not None for row in found)


@settings(max_examples=60, deadline=None)
@given(st.lists(SPANS, min_size=1, max_size=4), st.data())
def test_bytes_that_were_tampered_with_are_rows_or_malformed(spans: list[Span], data: st.DataObject) -> None:
    body = bytearray(a_request(*spans).SerializeToString())
    for _ in range(3):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    try:
        found, export = read(bytes(body))
    except MalformedRequestError:
        return
    assert len(found) == export.records
