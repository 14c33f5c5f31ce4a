"""OTLP/JSON into protobuf messages, guided by their descriptors.

It is protobuf's JSON mapping, except that ids are hex; names stand in camelCase or as in the .proto files,
unknown ones are ignored. Sources: opentelemetry.io/docs/specs/otlp, protobuf.dev/programming-guides/json.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from evaluator.collector.signals import RECORD_FIELDS, MalformedRequestError, Signal

MAX_DEPTH = 100
"""Messages within messages, as protobuf's own parsers bound it: some 30 maps within maps of an attribute."""

_HEX_FIELDS = {"trace_id", "span_id", "parent_span_id"}


def read_json(signal: Signal, body: bytes) -> tuple[Message, int]:
    """The request, and how many records were left out because a value of theirs is of another kind.

    Raises MalformedRequestError when the rest is not as it should be.
    """
    document = _load_json(body)
    if not isinstance(document, dict):
        raise MalformedRequestError("the body is not an OTLP request: it is not a JSON object")
    request = signal.request()
    try:
        return request, _fill(request, document, 1)
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedRequestError(f"the body is not an OTLP request in JSON: {error}") from error


def _load_json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:  # halves of surrogate pairs (a JavaScript client cut a text) and bytes that are not UTF-8
        document = json.loads(body.decode("utf-8", "replace"))
        return orjson.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise MalformedRequestError(f"the body is not JSON: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """How a JSON member becomes a field; `value` is None for a message."""

    name: str
    repeated: bool
    record: bool
    value: Callable[[Any], Any] | None


def _fill(message: Any, members: dict[str, Any], depth: int) -> int:
    """Set the fields that the JSON object names; how many records were left out. Unknown members are ignored.

    Raises ValueError, TypeError or AttributeError for a value of another kind.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"messages are nested deeper than {MAX_DEPTH} levels")
    fields = _fields(message.DESCRIPTOR)
    refused = 0
    for key, value in members.items():
        field = fields.get(key)
        if field is None or value is None:
            continue
        convert = field.value
        if field.repeated:
            if not isinstance(value, list):
                raise ValueError(f"{key} is not an array")
            into = getattr(message, field.name)
            if convert is not None:
                into.extend([convert(item) for item in value])
            elif field.record:
                refused += _fill_records(into, value, depth)
            else:
                for item in value:
                    refused += _fill(into.add(), item, depth + 1)
        elif convert is not None:
            setattr(message, field.name, convert(value))
        else:
            child = getattr(message, field.name)
            child.SetInParent()
            refused += _fill(child, value, depth + 1)
    return refused


def _fill_records(into: Any, items: list[Any], depth: int) -> int:
    refused = 0
    for item in items:
        try:
            _fill(into.add(), item, depth + 1)
        except (ValueError, TypeError, AttributeError):
            del into[-1]
            refused += 1
    return refused


@cache
def _fields(descriptor: Any) -> dict[str, _Field]:
    fields: dict[str, _Field] = {}
    for field in descriptor.fields:
        known = _Field(
            name=field.name,
            repeated=field.is_repeated,
            record=descriptor.name.startswith("Scope") and field.name in RECORD_FIELDS,
            value=_value(field),
        )
        fields[field.name] = fields[field.json_name] = known
    return fields


def _value(field: Any) -> Callable[[Any], Any] | None:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return None
        case FieldDescriptor.TYPE_STRING:
            return _text
        case FieldDescriptor.TYPE_BYTES:
            return bytes.fromhex if field.name in _HEX_FIELDS else _bytes
        case FieldDescriptor.TYPE_BOOL:
            return _boolean
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return _float
        case FieldDescriptor.TYPE_ENUM:
            numbers = {value.name: value.number for value in field.enum_type.values}
            return lambda value: numbers[value] if value in numbers else _integer(value)
        case _:
            return _integer


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is not a JSON string")
    return value


def _bytes(value: Any) -> bytes:
    return base64.b64decode(
        value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True
    )


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a boolean is neither true nor false")
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("a number is a boolean")
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("an integer is not a whole number")
    return int(value)
