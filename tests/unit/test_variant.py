"""VARIANT against an independent writer of it (DuckDB), and against bytes that nobody should have written."""

import struct
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.tables.variant import VariantError, variant
from tests.databricks_tables import shredded_variants, variants

NO_NAMES = b"\x01\x00\x00"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

VALUES: list[Any] = [
    {},
    {"a": 1, "b": [1, 2.5, None, True, False, {"d": "é"}], "c": {"deep": {"er": [[]]}}},
    {"long": "x" * 1000, "many": list(range(300)), **{f"k{index}": index for index in range(300)}},
    {"small": 1, "byte": 200, "int": 70_000, "long": 2**40, "negative": -5, "float": 1e300},
    [1, "two", None],
    "only a text",
    None,
]


@pytest.mark.parametrize("value", VALUES)
def test_what_duckdb_wrote_is_what_is_read(value: Any) -> None:
    assert variant(variants([value])[0]) == value


def test_shredded_rows_are_put_together_again() -> None:
    rows = [
        {"kind": "LLM", "tokens": 5, "tags": ["a", "b"], "more": {"x": 1}},
        {"kind": "LLM", "tokens": "not a number", "tags": ["c"], "more": {"x": 1, "y": None}},
        {"kind": None, "unlike": True},
        "not an object",
    ]

    column = shredded_variants(rows)

    assert column.type.get_field_index("typed_value") >= 0
    assert [variant(group) for group in column.to_pylist()] == rows


@given(value=JSON)
def test_any_json_survives_the_way(value: Any) -> None:
    assert variant(_encoded(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x20\x02" + struct.pack("<i", 1234), 12.34),
        (b"\x24\x00" + struct.pack("<q", -7), -7),
        (b"\x28\x01" + (15).to_bytes(16, "little", signed=True), 1.5),
        (b"\x2c" + struct.pack("<i", (date(2026, 11, 1) - date(1970, 1, 1)).days), "2026-11-01"),
        (b"\x30" + struct.pack("<q", 1), "1970-01-01T00:00:00.000001+00:00"),
        (b"\x34" + struct.pack("<q", 1_000_000), "1970-01-01T00:00:01"),
        (b"\x38" + struct.pack("<f", 0.5), 0.5),
        (b"\x3c" + struct.pack("<I", 2) + b"\xab\xcd", "abcd"),
        (b"\x44" + struct.pack("<q", 60_000_000), "00:01:00"),
        (b"\x48" + struct.pack("<q", 1_000), "1970-01-01T00:00:00.000001+00:00"),
        (b"\x50" + bytes(range(16)), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (b"\x1c" + struct.pack("<d", float("nan")), None),
    ],
)
def test_types_that_json_lacks_become_text_or_numbers(value: bytes, expected: Any) -> None:
    assert variant({"metadata": NO_NAMES, "value": value}) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xfc",  # a primitive type that does not exist
        b"\x18\x00",  # an integer that ends too early
        b"\xff\xff\xff\xff\xff",  # an array that claims four billion elements
        b"\x02\x01\x09\x00\x01\x00",  # an object whose field has no name
        b"\x09\xff\xfe",  # no UTF-8
        b"\x50\x00",  # a short UUID
        b"\x30" + b"\xff" * 7 + b"\x7f",  # a time that no calendar has
    ],
)
def test_malformed_bytes_are_an_error_of_their_own(value: bytes) -> None:
    with pytest.raises(VariantError, match="not a VARIANT"):
        variant({"metadata": NO_NAMES, "value": value})


def test_offsets_that_lead_to_the_same_bytes_again_cannot_blow_up_memory() -> None:
    value = b"\x05x"
    for _ in range(30):  # each level holds 200 times the one below
        value = b"\x1f" + _array_of_the_same(value, 200)

    with pytest.raises(VariantError, match="overlap"):
        variant({"metadata": NO_NAMES, "value": value})


def _array_of_the_same(element: bytes, count: int) -> bytes:
    return struct.pack("<I", count) + b"\x00\x00\x00\x00" * count + struct.pack("<I", len(element)) + element


@given(metadata=st.binary(max_size=30), value=st.binary(max_size=60))
def test_arbitrary_bytes_are_a_value_or_an_error(metadata: bytes, value: bytes) -> None:
    try:
        variant({"metadata": metadata, "value": value})
    except VariantError:
        return


def _encoded(value: Any) -> dict[str, bytes]:
    """A writer of VARIANT with the widest encodings, after the specification."""
    names: dict[str, int] = {}
    encoded = _encode(value, names)
    texts = [name.encode() for name in names]
    offsets = [sum(map(len, texts[:index])) for index in range(len(texts) + 1)]
    head = b"\xc1" + struct.pack("<I", len(texts))
    metadata = head + b"".join(struct.pack("<I", offset) for offset in offsets) + b"".join(texts)
    return {"metadata": metadata, "value": encoded}


def _encode(value: Any, names: dict[str, int]) -> bytes:
    match value:
        case None:
            return b"\x00"
        case bool():
            return b"\x04" if value else b"\x08"
        case int():
            return b"\x18" + struct.pack("<q", value)
        case str():
            data = value.encode()
            return b"\x40" + struct.pack("<I", len(data)) + data
        case list():
            return b"\x1f" + _elements([_encode(item, names) for item in value], b"")
        case _:
            ids = [names.setdefault(key, len(names)) for key in value]
            keys = b"".join(struct.pack("<I", index) for index in ids)
            return b"\x7e" + _elements([_encode(item, names) for item in value.values()], keys)


def _elements(elements: list[bytes], ids: bytes) -> bytes:
    offsets = [sum(map(len, elements[:index])) for index in range(len(elements) + 1)]
    return (
        struct.pack("<I", len(elements))
        + ids
        + b"".join(struct.pack("<I", offset) for offset in offsets)
        + b"".join(elements)
    )
