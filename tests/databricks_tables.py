"""Spans tables as Databricks makes them, written for tests: layout v1 (MAP) and v2 (VARIANT, plain or shredded)."""

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import Schema, write_deltalake

from evaluator.tables.schemas import SPANS
from evaluator.traces.trace import Span

MAP = pa.map_(pa.string(), pa.string())
VARIANT = pa.struct(
    [pa.field("metadata", pa.binary(), nullable=False), pa.field("value", pa.binary(), nullable=False)]
)
ONLY_V2 = ("record_id", "time", "date", "service_name")
"""What a v1 table has no columns for."""


def write_v1(path: Path | str, spans: Sequence[Span]) -> None:
    """Append spans to a Delta table whose attributes are MAP<STRING, STRING>; make it if it is not there."""
    schema = pa.schema([field for field in _with_attributes(SPANS, MAP) if field.name not in ONLY_V2])
    rows = _rows(spans, lambda mappings: [_texts(mapping) for mapping in mappings])
    write_deltalake(str(path), pa.Table.from_pylist(rows, schema), mode="append")


def write_v2_variant(path: Path | str, spans: Sequence[Span], *, shredded: bool = False) -> None:
    """Append spans to a Delta table whose attributes are VARIANT; make it if it is not there.

    No library writes such a table from here, so data file and log are made by hand. `shredded` splits the
    spans' own attributes into typed columns, as Databricks does for tables with `variantShredding`.
    """
    path = Path(path)
    (path / "_delta_log").mkdir(parents=True, exist_ok=True)
    version = len(list((path / "_delta_log").glob("*.json")))
    table = pa.Table.from_pylist(_rows(spans, variants), _with_attributes(SPANS, VARIANT))
    if shredded:
        column = shredded_variants([span.attributes for span in spans])
        table = table.set_column(table.schema.get_field_index("attributes"), "attributes", column)
    file = path / f"part-{version:05d}.parquet"
    pq.write_table(table, file)
    actions = [_add(file, spans), {"commitInfo": {"timestamp": now_ms(), "operation": "WRITE"}}]
    if version == 0:
        actions = [*_table_actions(shredded), *actions]
    log = path / "_delta_log" / f"{version:020d}.json"
    log.write_text("\n".join(json.dumps(action) for action in actions))


def variants(values: Iterable[Any]) -> list[dict[str, bytes]]:
    """JSON values as VARIANT, written by DuckDB: `metadata` and `value` of each."""
    found = _as_variants(values, lambda connection: connection.sql("select value from v").to_arrow_table())
    return list(found.column("value").to_pylist())


def shredded_variants(values: Iterable[Any]) -> pa.ChunkedArray:
    """JSON values as shredded VARIANT, as they come out of a Parquet file that DuckDB wrote."""

    def through_a_file(connection: duckdb.DuckDBPyConnection) -> pa.Table:
        with tempfile.TemporaryDirectory() as folder:
            connection.execute(f"copy v to '{folder}/v.parquet' (format parquet)")
            return pq.read_table(f"{folder}/v.parquet")

    return _as_variants(values, through_a_file).column("value")


def _as_variants(values: Iterable[Any], read: Callable[[duckdb.DuckDBPyConnection], pa.Table]) -> pa.Table:
    texts = pa.table({"text": [json.dumps(value) for value in values]})
    with duckdb.connect() as connection:
        connection.register("texts", texts)
        connection.execute("create table v as select text::json::variant as value from texts")
        return read(connection)


def _rows(spans: Sequence[Span], encode: Callable[[list[Any]], list[Any]]) -> list[dict[str, Any]]:
    """Rows in the columns of SPANS, with every attributes mapping encoded."""
    attributes = encode([dict(span.attributes) for span in spans])
    resources = encode([dict(span.resource) for span in spans])
    events = [[dict(event.attributes) for event in span.events] for span in spans]
    encoded_events = iter(encode([mapping for mappings in events for mapping in mappings]))
    nothing = encode([{}])[0]
    return [
        {
            "record_id": f"{index:032x}",
            "time": _micros(span.start_time_unix_nano),
            "date": _micros(span.start_time_unix_nano),
            "service_name": span.service_name,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id or "",
            "name": span.name,
            "kind": f"SPAN_KIND_{span.kind}",
            "start_time_unix_nano": span.start_time_unix_nano,
            "end_time_unix_nano": span.end_time_unix_nano,
            "attributes": attributes[index],
            "events": [
                {
                    "time_unix_nano": event.time_unix_nano,
                    "name": event.name,
                    "attributes": next(encoded_events),
                }
                for event in span.events
            ],
            "status": {"code": f"STATUS_CODE_{span.status}", "message": span.status_message},
            "resource": {"attributes": resources[index]},
            "instrumentation_scope": {"name": span.scope_name, "attributes": nothing},
            "links": [],
        }
        for index, span in enumerate(spans)
    ]


def _texts(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in mapping.items()]


def _micros(nanos: int | None) -> datetime | None:
    return None if nanos is None else datetime.fromtimestamp(nanos / 1_000_000_000, UTC)


def _with_attributes(schema: pa.Schema, replacement: pa.DataType) -> pa.Schema:
    """The schema with another type for each field called `attributes`, at any depth."""
    return pa.schema([pa.field(field.name, _replaced(field, replacement)) for field in schema])


def _replaced(field: pa.Field, replacement: pa.DataType) -> pa.DataType:
    if field.name == "attributes":
        return replacement
    if pa.types.is_struct(field.type):
        return pa.struct([(inner.name, _replaced(inner, replacement)) for inner in field.type])
    if pa.types.is_list(field.type):
        return pa.list_(_replaced(field.type.value_field, replacement))
    return field.type


def _table_actions(shredded: bool) -> list[dict[str, Any]]:
    features = ["variantType", *(["variantShredding"] if shredded else [])]
    schema = json.loads(Schema.from_arrow(SPANS).to_json())
    return [
        {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        },
        {
            "metaData": {
                "id": "0b7b9d5c-5f1e-4c55-9d0e-6f1c7f6f9a01",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps(_with_variant(schema)),
                "partitionColumns": [],
                "configuration": {},
                "createdTime": now_ms(),
            }
        },
    ]


def _with_variant(schema: Any) -> Any:
    """Delta's schema JSON with `variant` for each field called `attributes`."""
    if isinstance(schema, list):
        return [_with_variant(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("name") == "attributes":
        return {**schema, "type": "variant"}
    return {key: _with_variant(value) for key, value in schema.items()}


def _add(file: Path, spans: Sequence[Span]) -> dict[str, Any]:
    starts = [span.start_time_unix_nano for span in spans if span.start_time_unix_nano is not None]
    bounds = (
        {
            name: {"start_time_unix_nano": bound, "time": f"{_micros(bound):%Y-%m-%dT%H:%M:%S.%fZ}"}
            for name, bound in (("minValues", min(starts)), ("maxValues", max(starts)))
        }
        if starts
        else {}
    )
    return {
        "add": {
            "path": file.name,
            "partitionValues": {},
            "size": file.stat().st_size,
            "modificationTime": now_ms(),
            "dataChange": True,
            "stats": json.dumps({"numRecords": len(spans), **bounds}),
        }
    }


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
