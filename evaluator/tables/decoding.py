"""Rows of a spans table, as Arrow, into spans: our layout, and Databricks' two (MAP and VARIANT).

Source: Databricks, "OpenTelemetry table reference for Zerobus Ingest".
"""

import base64
import binascii
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import repeat
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from evaluator.tables.jsontext import is_variant
from evaluator.tables.variant import VariantError, variant
from evaluator.traces.trace import Span, SpanEvent, Status

log = logging.getLogger(__name__)

MALFORMED = "evaluator.malformed"
"""The attribute that holds the text of attributes which are not the JSON object they claim to be."""

Attributes = Mapping[str, Any]


def spans_of(table: pa.Table) -> list[Span]:
    """The spans of a table's rows, in their order; a column that it lacks counts as null.

    Rows without a trace id or a span id are left out. Attributes that are not what they claim are kept as
    text, or are empty where they were bytes. How many there were of both is logged. Spans of one table may
    share their resource's attributes.
    """
    rows = _Rows(table)
    resources = list(rows.attributes("resource", "attributes"))
    columns = {
        "trace_id": rows.ids("trace_id"),
        "span_id": rows.ids("span_id"),
        "parent_span_id": rows.ids("parent_span_id"),
        "name": rows.texts("name"),
        "kind": map(_kind, rows.values("kind")),
        "service_name": map(_service, rows.values("service_name"), resources),
        "start_time_unix_nano": rows.starts(),
        "end_time_unix_nano": rows.nanos("end_time_unix_nano"),
        "attributes": rows.attributes("attributes"),
        "events": rows.events(),
        "status": map(_status, rows.values("status", "code")),
        "status_message": rows.texts("status", "message"),
        "resource": iter(resources),
        "scope_name": rows.texts("instrumentation_scope", "name"),
    }
    made = map(Span._make, zip(*(columns[name] for name in Span._fields), strict=True))
    spans = [span for span in made if span.trace_id and span.span_id]
    if dropped := table.num_rows - len(spans):
        log.warning("rows without a trace id or a span id were left out", extra={"rows": dropped})
    if rows.malformed:
        log.warning("attributes are not what they claim to be", extra={"values": rows.malformed})
    return spans


def identified(table: pa.Table) -> pa.Table:
    """The rows that have a trace id and a span id: those that `spans_of` makes spans of."""
    rows = _Rows(table)
    ids = zip(rows.ids("trace_id"), rows.ids("span_id"), strict=True)
    return table.filter(pa.array([None not in pair for pair in ids], pa.bool_()))


class _Rows:
    """The columns of a table as plain values, one for each row, and how many attributes were malformed."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.malformed = 0

    def values(self, *path: str) -> Iterator[Any]:
        """Texts or numbers, or fields of a struct; nulls where there is no such column."""
        column = self._column(*path)
        return repeat(None, self._table.num_rows) if column is None else iter(column.to_pylist())

    def texts(self, *path: str) -> Iterator[str]:
        column = self._column(*path)
        if column is not None and pa.types.is_string(column.type):
            return iter(pc.fill_null(column, "").to_pylist())
        return map(_text, self.values(*path))

    def ids(self, name: str) -> Iterator[str | None]:
        column = self._column(name)
        if column is not None and _are_plain_ids(column):
            return (text or None for text in column.to_pylist())
        return map(_id, self.values(name))

    def starts(self) -> Iterator[int | None]:
        """When spans began, by the column `time` where their own does not say."""
        starts = list(self.nanos("start_time_unix_nano"))
        return map(_either, starts, self.nanos("time")) if None in starts else iter(starts)

    def nanos(self, name: str) -> Iterator[int | None]:
        """Nanoseconds since the epoch, from a column of numbers or of timestamps; zero is no time."""
        column = self._column(name)
        if column is not None and pa.types.is_timestamp(column.type):
            micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
            return (None if value is None or value <= 0 else value * 1000 for value in micros.to_pylist())
        if column is not None and pa.types.is_signed_integer(column.type):
            return iter(pc.if_else(pc.greater(column, 0), column, None).to_pylist())
        return map(_nanos, self.values(name))

    def attributes(self, *path: str) -> Iterator[Attributes]:
        column = self._column(*path)
        if column is None:
            return repeat({}, self._table.num_rows)
        return map(self._decoder(column.type), column.to_pylist())

    def events(self) -> Iterator[tuple[SpanEvent, ...]]:
        column = self._column("events")
        if (
            column is None
            or not pa.types.is_list(column.type)
            or not pa.types.is_struct(column.type.value_type)
        ):
            return repeat((), self._table.num_rows)
        kind = column.type.value_type
        index = kind.get_field_index("attributes")
        decode = self._decoder(kind.field(index).type) if index >= 0 else _nothing
        return (
            tuple(
                SpanEvent(
                    name=event.get("name") or "",
                    time_unix_nano=_nanos(event.get("time_unix_nano")),
                    attributes=decode(event.get("attributes")),
                )
                for event in events or ()
                if event is not None
            )
            for events in column.to_pylist()
        )

    def _column(self, *path: str) -> pa.ChunkedArray | None:
        if path[0] not in self._table.column_names:
            return None
        column = self._table.column(path[0])
        for name in path[1:]:
            if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
                return None
            column = pc.struct_field(column, name)
        return column

    def _decoder(self, kind: pa.DataType) -> Callable[[Any], Attributes]:
        """How attributes are read that came as JSON text, as MAP, as VARIANT, or as a plain struct."""
        if pa.types.is_map(kind):
            return _of_map
        if pa.types.is_struct(kind):
            return self._of_variant if is_variant(kind) else _without_nulls
        return self._of_json

    def _of_json(self, text: Any) -> Attributes:
        if not text:
            return {}
        try:
            value = orjson.loads(text)
        except (orjson.JSONDecodeError, TypeError):
            value = text
        return self._checked(value, text)

    def _of_variant(self, group: Any) -> Attributes:
        try:
            value = variant(group)
        except VariantError:
            self.malformed += 1
            return {}
        return self._checked(value, value)

    def _checked(self, value: Any, text: Any) -> Attributes:
        if isinstance(value, dict):
            return value
        if value is None:
            return {}
        self.malformed += 1
        return {MALFORMED: text}


def _of_map(pairs: Any) -> Attributes:
    """A MAP as Arrow gives it. Its values are texts, which may be JSON: whoever reads one decides."""
    return {key: value for key, value in pairs or () if value is not None}


def _without_nulls(struct: Any) -> Attributes:
    return {key: value for key, value in (struct or {}).items() if value is not None}


def _nothing(_: Any) -> Attributes:
    return {}


_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{16}")
_PLAIN_ID = f"^({_HEX.pattern})?$"
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{22}==|[A-Za-z0-9+/_-]{11}=")


def _id(value: Any) -> str | None:
    """An id as lowercase hex, from hex, bytes or base64 (as JSON writers that do not know OTLP have it).

    None for what OTLP calls invalid: empty, or all zeros. An id of another form stays as it is.
    """
    if not value:
        return None
    if isinstance(value, bytes):
        value = value.hex()
    text = str(value).strip()
    if not _HEX.fullmatch(text):
        text = _from_base64(text) if _BASE64.fullmatch(text) else _lowered(text)
    return text if text.strip("0") else None


def _are_plain_ids(column: pa.ChunkedArray) -> bool:
    """Whether ids are as `_id` gives them, or empty, all of them: then they need not be looked at one by one."""
    if not pa.types.is_string(column.type):
        return False
    plain = pc.and_not(pc.match_substring_regex(column, _PLAIN_ID), pc.match_substring_regex(column, "^0+$"))
    return pc.all(plain).as_py() is not False


def _lowered(text: str) -> str:
    lower = text.lower()
    return lower if _HEX.fullmatch(lower) else text


def _from_base64(text: str) -> str:
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True).hex()
    except binascii.Error:
        return text


def _nanos(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number > 0 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _either(nanos: int | None, fallback: int | None) -> int | None:
    return fallback if nanos is None else nanos


def _service(name: Any, resource: Attributes) -> str:
    return _text(name) or _text(resource.get("service.name"))


_KINDS = {"1": "INTERNAL", "2": "SERVER", "3": "CLIENT", "4": "PRODUCER", "5": "CONSUMER"}
_STATUSES: dict[str, Status] = {"OK": "OK", "1": "OK", "ERROR": "ERROR", "2": "ERROR"}


@lru_cache(maxsize=256)
def _kind(value: str | int | None) -> str:
    """SPAN_KIND_SERVER, SERVER, server and 2 are the same."""
    name = str(value).upper().removeprefix("SPAN_KIND_")
    name = _KINDS.get(name, name)
    return name if name in _KINDS.values() else "INTERNAL"


@lru_cache(maxsize=256)
def _status(value: str | int | None) -> Status:
    """STATUS_CODE_OK, OK, Ok and 1 are the same."""
    return _STATUSES.get(str(value).upper().removeprefix("STATUS_CODE_"), "UNSET")
