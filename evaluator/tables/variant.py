"""Parquet's VARIANT, plain or shredded, as the JSON values that it stands for.

Source: Apache Parquet, VariantEncoding.md and VariantShredding.md. A decoder of our own because Arrow (25)
hands VARIANT over as bytes, and DuckDB (2.0) takes such bytes from Arrow neither shredded nor one by one: a
malformed value would cost its whole batch.
"""

import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Any
from uuid import UUID

MAX_DEPTH = 200
"""Deeper nesting is taken for malformed; what writes JSON again stops at 254."""


class VariantError(ValueError):
    """Bytes that are not a VARIANT of version 1."""


def variant(group: Mapping[str, Any] | None) -> Any:
    """The JSON value of a Parquet VARIANT group as Arrow shows it: `metadata`, `value`, maybe `typed_value`.

    Decimals become numbers, times ISO text, binary hex text. Raises VariantError.
    """
    if group is None or group.get("metadata") is None:
        return None
    try:
        return _of_group(group, _names(group["metadata"]), 0, None)
    except VariantError:
        raise
    except (IndexError, struct.error, ValueError, ArithmeticError) as error:
        raise VariantError(f"not a VARIANT: {error}") from error


_MISSING = object()


def _of_group(group: Mapping[str, Any], names: tuple[str, ...], depth: int, missing: Any) -> Any:
    """One shredded value: `typed_value` where it has the type of its column, else `value`; objects may be both."""
    value, typed = group.get("value"), group.get("typed_value")
    rest = missing if value is None else _Reader(value, names).value(0, depth)
    if typed is None:
        return rest
    if isinstance(typed, Mapping):
        fields = {key: _of_group(field, names, depth + 1, _MISSING) for key, field in typed.items()}
        told = {key: field for key, field in fields.items() if field is not _MISSING}
        return {**rest, **told} if isinstance(rest, dict) else told
    if isinstance(typed, list):
        return [_of_group(element, names, depth + 1, None) for element in typed]
    return _plain(typed)


@lru_cache(maxsize=1024)
def _names(metadata: bytes) -> tuple[str, ...]:
    """The field names of a VARIANT; the rows of a table mostly share a few sets of them."""
    header = metadata[0]
    if header & 0x0F != 1:
        raise VariantError(f"not a VARIANT: version {header & 0x0F}")
    size = (header >> 6) + 1
    count = _unsigned(metadata, 1, size)
    start = 1 + size * (count + 2)
    if start > len(metadata):
        raise VariantError("not a VARIANT: more names than bytes")
    offsets = [_unsigned(metadata, at, size) for at in range(1 + size, start, size)]
    if offsets != sorted(offsets):
        raise VariantError("not a VARIANT: names that overlap")
    return tuple(metadata[start + begin : start + end].decode() for begin, end in pairwise(offsets))


class _Reader:
    """Reads the values of one `value` field. What it reads costs its bytes, and it has no more than there
    are: hostile offsets that lead to the same bytes again and again end in an error, not in memory."""

    def __init__(self, data: bytes, names: tuple[str, ...]) -> None:
        self._data = data
        self._names = names
        self._left = len(data)

    def value(self, at: int, depth: int) -> Any:
        """The value that begins at a position."""
        header, kind = self._data[at] >> 2, self._data[at] & 0x03
        self._spend(1)
        if kind == 0:
            return self._primitive(at + 1, header)
        if kind == 1:
            return self._text(at + 1, header)
        if depth > MAX_DEPTH:
            raise VariantError("not a VARIANT: nested too deeply")
        return self._object(at + 1, header, depth) if kind == 2 else self._array(at + 1, header, depth)

    def _object(self, at: int, header: int, depth: int) -> dict[str, Any]:
        count, ids = self._count(at, large=header >> 4 & 1)
        offsets = ids + count * (id_size := (header >> 2 & 0x03) + 1)
        elements = self._elements(offsets, count, (header & 0x03) + 1, depth)
        return {
            self._names[_unsigned(self._data, ids + index * id_size, id_size)]: element
            for index, element in enumerate(elements)
        }

    def _array(self, at: int, header: int, depth: int) -> list[Any]:
        count, offsets = self._count(at, large=header >> 2 & 1)
        return self._elements(offsets, count, (header & 0x03) + 1, depth)

    def _count(self, at: int, *, large: int) -> tuple[int, int]:
        size = 4 if large else 1
        return _unsigned(self._data, at, size), at + size

    def _elements(self, offsets: int, count: int, size: int, depth: int) -> list[Any]:
        start = offsets + (count + 1) * size
        if start > len(self._data):
            raise VariantError("not a VARIANT: more elements than bytes")
        return [
            self.value(start + _unsigned(self._data, at, size), depth + 1)
            for at in range(offsets, offsets + count * size, size)
        ]

    def _primitive(self, at: int, kind: int) -> Any:
        if kind == 16:
            return self._text(at + 4, _unsigned(self._data, at, 4))
        if kind == 15:
            return self._bytes(at + 4, _unsigned(self._data, at, 4)).hex()
        read = _PRIMITIVES.get(kind)
        if read is None:
            raise VariantError(f"not a VARIANT: primitive type {kind}")
        return _plain(read(self._data, at))

    def _text(self, at: int, length: int) -> str:
        return self._bytes(at, length).decode()

    def _bytes(self, at: int, length: int) -> bytes:
        self._spend(length)
        if at + length > len(self._data):
            raise VariantError("not a VARIANT: it ends too early")
        return self._data[at : at + length]

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise VariantError("not a VARIANT: values that overlap")


def _unsigned(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise VariantError("not a VARIANT: it ends too early")
    return int.from_bytes(data[at : at + size], "little")


def _number(form: str) -> Callable[[bytes, int], Any]:
    unpack = struct.Struct("<" + form).unpack_from
    return lambda data, at: unpack(data, at)[0]


_days, _ticks = _number("i"), _number("q")


def _decimal(size: int) -> Callable[[bytes, int], Any]:
    def read(data: bytes, at: int) -> Any:
        unscaled = _unsigned(data, at + 1, size)
        signed = unscaled - (1 << 8 * size) if unscaled >> (8 * size - 1) else unscaled
        return Decimal(signed).scaleb(-data[at])

    return read


def _moment(epoch: datetime, ticks_a_microsecond: int) -> Callable[[bytes, int], str]:
    return lambda data, at: (
        epoch + timedelta(microseconds=_ticks(data, at) // ticks_a_microsecond)
    ).isoformat()


_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL = _UTC.replace(tzinfo=None)

_PRIMITIVES: dict[int, Callable[[bytes, int], Any]] = {
    0: lambda data, at: None,
    1: lambda data, at: True,
    2: lambda data, at: False,
    3: _number("b"),
    4: _number("h"),
    5: _number("i"),
    6: _number("q"),
    7: _number("d"),
    8: _decimal(4),
    9: _decimal(8),
    10: _decimal(16),
    11: lambda data, at: (date(1970, 1, 1) + timedelta(days=_days(data, at))).isoformat(),
    12: _moment(_UTC, 1),
    13: _moment(_LOCAL, 1),
    14: _number("f"),
    17: lambda data, at: (_LOCAL + timedelta(microseconds=_ticks(data, at))).time().isoformat(),
    18: _moment(_UTC, 1000),
    19: _moment(_LOCAL, 1000),
    20: lambda data, at: str(UUID(bytes=data[at : at + 16])),
}


def _plain(value: Any) -> Any:
    """A value of a typed column or a primitive as a JSON value, which knows no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, UUID):
        return str(value)
    return value.isoformat() if hasattr(value, "isoformat") else value
