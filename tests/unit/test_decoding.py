"""Rows of spans tables, in every layout and state, into spans."""

import base64
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.tables.decoding import MALFORMED, identified, spans_of
from evaluator.tables.delta import DeltaStore
from evaluator.tables.jsontext import json_columns
from evaluator.tables.schemas import SPANS
from evaluator.traces.conventions import step_of
from evaluator.traces.trace import Span, SpanEvent
from tests.databricks_tables import write_v1, write_v2_variant

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
A_SPAN = Span(
    trace_id=TRACE_ID,
    span_id=SPAN_ID,
    parent_span_id="00f067aa0ba902b7",
    name="chat",
    kind="CLIENT",
    service_name="support",
    start_time_unix_nano=1_793_491_200_000_000_001,
    end_time_unix_nano=1_793_491_201_000_000_002,
    attributes={
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]',
        "gen_ai.usage.input_tokens": 7,
        "list": ["a", None],
        "object": {"k": 1.5},
    },
    events=(SpanEvent(name="exception", time_unix_nano=5, attributes={"exception.type": "E"}),),
    status="ERROR",
    status_message="it broke",
    resource={"service.name": "support"},
    scope_name="test",
)


def a_row(**changes: Any) -> dict[str, Any]:
    return {
        "service_name": A_SPAN.service_name,
        "trace_id": A_SPAN.trace_id,
        "span_id": A_SPAN.span_id,
        "parent_span_id": A_SPAN.parent_span_id,
        "name": A_SPAN.name,
        "kind": "SPAN_KIND_CLIENT",
        "start_time_unix_nano": A_SPAN.start_time_unix_nano,
        "end_time_unix_nano": A_SPAN.end_time_unix_nano,
        "attributes": json.dumps(A_SPAN.attributes),
        "events": [
            {"name": "exception", "time_unix_nano": 5, "attributes": '{"exception.type": "E"}'},
        ],
        "status": {"code": "STATUS_CODE_ERROR", "message": "it broke"},
        "resource": {"attributes": '{"service.name": "support"}'},
        "instrumentation_scope": {"name": "test"},
    } | changes


def decoded(**changes: Any) -> Span:
    [span] = spans_of(pa.Table.from_pylist([a_row(**changes)], SPANS))
    return span


def read_back(path: Path) -> pa.Table:
    snapshot = DeltaStore(str(path)).open()
    [file] = snapshot.files("start_time_unix_nano")
    return snapshot.read_file(file, snapshot.schema.names)


def test_a_row_of_our_own_table_is_the_span_that_was_written() -> None:
    assert decoded() == A_SPAN


@pytest.mark.parametrize("shredded", [False, True])
def test_a_variant_table_holds_the_same_spans(tmp_path: Path, shredded: bool) -> None:
    others = [Span(trace_id=f"{index:032x}", span_id=SPAN_ID, attributes={"n": index}) for index in (1, 2)]
    write_v2_variant(tmp_path, [A_SPAN, *others], shredded=shredded)

    assert spans_of(read_back(tmp_path)) == [A_SPAN, *others]


def test_a_map_table_has_texts_for_values_and_its_service_in_the_resource(tmp_path: Path) -> None:
    write_v1(tmp_path, [A_SPAN])

    [span] = spans_of(read_back(tmp_path))

    assert span.service_name == "support"
    assert span.attributes["gen_ai.usage.input_tokens"] == "7"
    assert (step_of(span).request, step_of(span).input_tokens) == ("Hi", 7)


@pytest.mark.parametrize("shredded", [False, True])
def test_for_sql_variant_becomes_json_text_at_any_depth(tmp_path: Path, shredded: bool) -> None:
    write_v2_variant(tmp_path, [A_SPAN], shredded=shredded)

    [row] = json_columns(read_back(tmp_path)).to_pylist()

    assert json.loads(row["attributes"])["gen_ai.operation.name"] == "chat"
    assert json.loads(row["resource"]["attributes"]) == {"service.name": "support"}
    assert json.loads(row["events"][0]["attributes"]) == {"exception.type": "E"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (TRACE_ID.upper(), TRACE_ID),
        (base64.b64encode(bytes.fromhex(TRACE_ID)).decode(), TRACE_ID),
        (base64.urlsafe_b64encode(b"\xff" * 16).decode(), "ff" * 16),
        ("tr-custom", "tr-custom"),
    ],
)
def test_ids_become_lowercase_hex_where_they_can(written: str, read: str) -> None:
    assert decoded(trace_id=written).trace_id == read


def test_ids_may_be_bytes() -> None:
    table = pa.table({"trace_id": [bytes.fromhex(TRACE_ID)], "span_id": [bytes.fromhex(SPAN_ID)]})

    [span] = spans_of(table)

    assert (span.trace_id, span.span_id) == (TRACE_ID, SPAN_ID)


IDS = (
    st.none()
    | st.sampled_from(
        ["", "0" * 32, "0" * 16, TRACE_ID.upper(), f" {TRACE_ID} ", f"{TRACE_ID}\n", "tr-custom"]
    )
    | st.binary(min_size=16, max_size=16).map(bytes.hex)
    | st.binary(min_size=8, max_size=8).map(bytes.hex)
    | st.binary(min_size=16, max_size=16).map(lambda one: base64.b64encode(one).decode())
)


@given(st.lists(IDS, max_size=5))
def test_ids_are_the_same_whatever_they_stand_beside(written: list[str | None]) -> None:
    together = parents_of(written)

    assert together == [parent for one in written for parent in parents_of([one])]


def parents_of(ids: list[str | None]) -> list[str | None]:
    table = pa.table({"parent_span_id": pa.array(ids, pa.string())})
    table = table.append_column("trace_id", pa.array([TRACE_ID] * len(ids), pa.string()))
    table = table.append_column("span_id", pa.array([SPAN_ID] * len(ids), pa.string()))
    return [span.parent_span_id for span in spans_of(table)]


@pytest.mark.parametrize("number", [0, -1, None])
def test_a_span_without_a_start_of_its_own_began_at_its_time(number: int | None) -> None:
    moment = datetime(2026, 11, 1, 12, tzinfo=UTC)
    table = pa.Table.from_pylist([a_row(start_time_unix_nano=number, time=moment), a_row()], SPANS)

    first, second = spans_of(table)

    assert first.start_time_unix_nano == int(moment.timestamp()) * 10**9
    assert second == A_SPAN


@pytest.mark.parametrize("parent", [None, "", "0000000000000000"])
def test_no_parent_is_written_in_several_ways(parent: str | None) -> None:
    assert decoded(parent_span_id=parent).parent_span_id is None


@pytest.mark.parametrize("missing", [{"trace_id": None}, {"span_id": ""}, {"trace_id": "0" * 32}])
def test_a_row_without_an_id_is_left_out_and_counted(
    missing: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.Table.from_pylist([a_row(**missing), a_row()], SPANS)

    with caplog.at_level(logging.WARNING):
        spans = spans_of(table)

    assert spans == [A_SPAN]
    assert identified(table).num_rows == 1
    assert [record.__dict__["rows"] for record in caplog.records] == [1]


@pytest.mark.parametrize("code", ["STATUS_CODE_ERROR", "ERROR", "Error", "error", "2"])
def test_the_status_has_many_spellings(code: str) -> None:
    assert decoded(status={"code": code, "message": None}).status == "ERROR"


@pytest.mark.parametrize(
    ("kind", "name"), [("SPAN_KIND_SERVER", "SERVER"), ("Server", "SERVER"), (None, "INTERNAL")]
)
def test_the_kind_has_many_spellings(kind: str | None, name: str) -> None:
    assert decoded(kind=kind).kind == name


def test_status_and_kind_may_be_numbers() -> None:
    table = pa.table({"trace_id": [TRACE_ID], "span_id": [SPAN_ID], "kind": [2], "status": [{"code": 1}]})

    [span] = spans_of(table)

    assert (span.kind, span.status) == ("SERVER", "OK")


def test_a_start_that_is_missing_is_taken_from_the_time_column() -> None:
    row = a_row(start_time_unix_nano=None, end_time_unix_nano=0) | {"time": 1_793_491_200_000_001}

    [span] = spans_of(pa.Table.from_pylist([row], SPANS))

    assert span.start_time_unix_nano == 1_793_491_200_000_001_000
    assert span.end_time_unix_nano is None


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", '"a text"', "12"])
def test_attributes_that_are_not_an_object_are_kept_as_text_and_counted(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        span = decoded(attributes=text)

    assert span.attributes == {MALFORMED: text}
    assert [record.__dict__["values"] for record in caplog.records] == [1]
    assert text not in caplog.text


def test_a_malformed_variant_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    broken = {"metadata": b"\x01\x00\x00", "value": b"\xff"}
    fine = {"metadata": b"\x01\x01\x00\x01a", "value": b"\x02\x01\x00\x00\x02\x0c\x07"}
    table = pa.table({"trace_id": [TRACE_ID] * 2, "span_id": [SPAN_ID] * 2, "attributes": [broken, fine]})

    with caplog.at_level(logging.WARNING):
        spans = spans_of(table)

    assert [span.attributes for span in spans] == [{}, {"a": 7}]
    assert len(caplog.records) == 1


def test_a_row_may_be_null_but_for_its_ids() -> None:
    nothing = dict.fromkeys(SPANS.names) | {"trace_id": TRACE_ID, "span_id": SPAN_ID}

    assert spans_of(pa.Table.from_pylist([nothing], SPANS)) == [Span(trace_id=TRACE_ID, span_id=SPAN_ID)]


def test_a_table_without_any_column_but_the_ids_is_enough() -> None:
    assert spans_of(pa.table({"trace_id": [TRACE_ID], "span_id": [SPAN_ID]})) == [
        Span(trace_id=TRACE_ID, span_id=SPAN_ID)
    ]
    assert spans_of(SPANS.empty_table()) == []
