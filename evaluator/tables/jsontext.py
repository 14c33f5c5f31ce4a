"""VARIANT columns as JSON text, at any depth, so that SQL and our own readers see one form."""

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from evaluator.tables.variant import VariantError, variant


def json_columns(table: pa.Table) -> pa.Table:
    """The same table with JSON text where it has VARIANT; a value that is malformed becomes null."""
    for index, field in enumerate(table.schema):
        kind = _text_type(field.type)
        if kind != field.type:
            values = [_texts(value, field.type) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(values, kind))
    return table


def is_variant(kind: pa.DataType) -> bool:
    """Whether an Arrow type is Parquet's VARIANT group."""
    return pa.types.is_struct(kind) and {"metadata", "value"} <= {field.name for field in kind}


def _text_type(kind: pa.DataType) -> pa.DataType:
    if is_variant(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _text_type(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_text_type(kind.value_type))
    return kind


def _texts(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if is_variant(kind):
        return _text(value)
    if pa.types.is_struct(kind):
        return {field.name: _texts(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_texts(item, kind.value_type) for item in value]
    return value


def _text(group: Mapping[str, Any]) -> str | None:
    try:
        return orjson.dumps(variant(group)).decode()
    except (VariantError, orjson.JSONEncodeError):
        return None
