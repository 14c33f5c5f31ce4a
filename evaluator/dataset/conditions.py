"""One SQL condition: parsed, held to an allow-list, bound to its columns, and asked of rows.

A condition comes from a file that somebody edits and runs where the traces are. What it may be is
decided on DuckDB's own parsed tree, node by node, and never on its text; what is not known here is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Timer
from typing import TYPE_CHECKING, Any

import orjson

from evaluator.dataset.expressions import TOO_DEEP, ConditionError, columns_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MAX_LENGTH = 4_000
DEADLINE_SECONDS = 30.0
"""How long one query over a chunk of rows may take before it is stopped."""

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "memory_limit": "1GB",
    "threads": "1",
}
_TYPE_NAMES = {
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "date32[day]": "DATE",
    "timestamp[us, tz=UTC]": "TIMESTAMP WITH TIME ZONE",
}
_PREFIX = re.compile(r"^[A-Za-z ]+ Error: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A checked condition. `columns` are those it looks at, in the order of their names."""

    text: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionFailure:
    """Why a condition has no answer for a row. `detail` holds nothing of the row."""

    detail: str


Answer = bool | None | ConditionFailure


def parse_condition(text: str, columns: "Mapping[str, str] | pa.Schema") -> Condition:
    """A condition over `columns` (DuckDB types by name, or an Arrow schema).

    Raises ConditionError: not one scalar expression, an unknown column (with the nearest one), a function
    that a condition may not use, a type that does not fit, a result that is not true or false.
    """
    text = text.strip()
    if not text:
        raise ConditionError("is empty: write one SQL condition")
    if len(text) > MAX_LENGTH:
        raise ConditionError(f"is longer than {MAX_LENGTH:,} characters")
    types = columns if isinstance(columns, Mapping) else column_types(columns)
    used = columns_of(_expression(text), types)
    _bind(text, {name: types[name] for name in used} or types)
    return Condition(text=text, columns=used)


def evaluate(conditions: Sequence[Condition], rows: "pa.Table") -> list[list[Answer]]:
    """The answers of each condition to each row: `evaluate(...)[condition][row]`.

    One query for all. A row that makes a condition raise fails for that condition alone.
    """
    if not conditions or rows.num_rows == 0:
        return [[] for _ in conditions]
    import duckdb

    try:
        return _ask([condition.text for condition in conditions], _looked_at(conditions, rows))
    except duckdb.Error as error:
        if len(conditions) > 1:
            return [evaluate([condition], rows)[0] for condition in conditions]
        return [_row_by_row(conditions[0], rows, error)]


@lru_cache(maxsize=4096)
@lru_cache(maxsize=4096)
def holds(condition: Condition, value: str | float) -> bool | None:
    """What a condition over the one column `value`, such as a judge's `pass_if`, says; None where it says nothing."""
    import pyarrow as pa

    column = pa.array([value], pa.string() if isinstance(value, str) else pa.float64())
    [[answer]] = evaluate([condition], pa.table({"value": column}))
    return None if isinstance(answer, ConditionFailure) else answer


def failing(condition: Condition, values: Sequence[str | float]) -> tuple[str | float, str] | None:
    """The first of some values for which a condition over `value` cannot be computed, and why; None: it always can."""
    import pyarrow as pa

    column = pa.array(values, pa.string() if isinstance(values[0], str) else pa.float64())
    [answers] = evaluate([condition], pa.table({"value": column}))
    for value, answer in zip(values, answers, strict=True):
        if isinstance(answer, ConditionFailure):
            return value, answer.detail
    return None


def column_types(schema: "pa.Schema") -> dict[str, str]:
    """DuckDB's types of an Arrow schema's columns. Raises KeyError for a type that no table of ours has."""
    return {column.name: _type_name(column.type) for column in schema}


def _type_name(kind: "pa.DataType") -> str:
    """Asked of DuckDB itself, this would import pandas (0.3 s)."""
    import pyarrow.types as types

    if types.is_list(kind):
        return f"{_type_name(kind.value_type)}[]"
    if types.is_struct(kind):
        parts = ", ".join(f'"{part.name}" {_type_name(part.type)}' for part in kind)
        return f"STRUCT({parts})"
    return _TYPE_NAMES[str(kind)]


@cache
def _database() -> "duckdb.DuckDBPyConnection":
    """A database in memory that holds nothing, reaches nothing, and cannot be told otherwise."""
    import duckdb

    database = duckdb.connect(":memory:", config=_LOCKED)
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    # It would take a part of an expression out of the TRY that is there to catch it (DuckDB 2.0.0).
    database.execute("SET GLOBAL disabled_optimizers = 'common_subexpressions'")
    database.execute("SET GLOBAL lock_configuration = true")
    return database


def _cursor() -> "duckdb.DuckDBPyConnection":
    return _database().cursor()


def _looked_at(conditions: Sequence[Condition], rows: "pa.Table") -> "pa.Table":
    used = sorted({column for condition in conditions for column in condition.columns})
    # A table of no columns has no rows for DuckDB, so one stays where only constants are asked for.
    return rows.select(used or rows.column_names[:1])


def _ask(expressions: Sequence[str], rows: "pa.Table") -> list[list[Any]]:
    """The value of each expression for each row, or what DuckDB raises for any of them."""
    wanted = ", ".join(f"({text}\n) AS c{number}" for number, text in enumerate(expressions))
    with _cursor() as cursor:
        cursor.register("rows", rows)
        found = _run(cursor, f"SELECT {wanted} FROM rows")  # noqa: S608 -- only checked expressions come here
    return [list(column) for column in zip(*found, strict=True)]


def _row_by_row(condition: Condition, rows: "pa.Table", cause: "duckdb.Error") -> list[Answer]:
    """The answers where some row raises. DuckDB's TRY gives null for it, also where it asks whether it is null.

    What TRY does not catch (an unknown time zone, for one) is found by halving the rows.
    """
    import duckdb

    if isinstance(cause, duckdb.InterruptException | duckdb.OutOfMemoryException):
        return [ConditionFailure(detail=_failure(cause))] * rows.num_rows
    looked_at = _looked_at([condition], rows)
    try:
        (values,) = _ask([f"TRY({condition.text}\n)"], looked_at)
        (known,) = _ask([f"TRY(({condition.text}\n) IS NULL)"], looked_at)
    except duckdb.Error as error:
        if rows.num_rows == 1:
            return [ConditionFailure(detail=_failure(error))]
        half = rows.num_rows // 2
        return [
            *_row_by_row(condition, rows.slice(0, half), error),
            *_row_by_row(condition, rows.slice(half), error),
        ]
    failure = ConditionFailure(detail=_failure(cause))
    return [failure if is_null is None else value for value, is_null in zip(values, known, strict=True)]


def _run(cursor: "duckdb.DuckDBPyConnection", statement: str) -> list[tuple[Any, ...]]:
    """The rows of a statement, which is stopped when it takes too long."""
    timer = Timer(DEADLINE_SECONDS, cursor.interrupt)
    timer.daemon = True
    timer.start()
    try:
        return cursor.execute(statement).fetchall()
    finally:
        timer.cancel()
        timer.join()  # else it may still hold the cursor when the program ends


def _failure(error: "duckdb.Error") -> str:
    """The kind of an error; DuckDB's own sentence may quote the row."""
    import duckdb

    match error:
        case duckdb.InterruptException():
            return f"took longer than {DEADLINE_SECONDS:g} s"
        case duckdb.ConversionException():
            return "a value could not be converted to the type that the condition asks for"
        case duckdb.OutOfRangeException():
            return "a number is out of range"
        case duckdb.OutOfMemoryException():
            return "needs more memory than a condition may use"
        case duckdb.InvalidInputException():
            return "a value is not what a function takes (text that is not JSON, for one)"
        case _:
            return f"DuckDB could not compute it ({type(error).__name__})"


def _expression(text: str) -> dict[str, Any]:
    """The tree of the one expression that the text is."""
    not_one = ConditionError("is not one SQL condition, such as status = 'OK' AND duration_ms < 10000")
    try:
        tree = _parse(f"SELECT {text}\nFROM rows")
    except ConditionError:
        _parse(f"SELECT {text}")
        raise not_one from None
    found = tree[0].get("node", {}) if len(tree) == 1 else {}
    expressions = found.get("select_list", [])
    if len(expressions) != 1 or _frame(found) != _bare_select() or expressions[0].get("alias"):
        raise not_one
    return dict(expressions[0])


@cache
def _bare_select() -> Mapping[str, Any]:
    (statement,) = _parse("SELECT true\nFROM rows")
    return _frame(statement["node"])


def _parse(statement: str) -> list[dict[str, Any]]:
    """DuckDB's tree of the statements in a text. Raises ConditionError where there is none."""
    with _cursor() as cursor:
        (row,) = cursor.execute("SELECT json_serialize_sql(?::VARCHAR)", [statement]).fetchall()
    try:
        parsed = orjson.loads(row[0])
    except orjson.JSONDecodeError as error:
        raise ConditionError(TOO_DEEP) from error
    if not parsed["error"]:
        return list(parsed["statements"])
    message = parsed.get("error_message", "")
    if "expression depth" in message:
        raise ConditionError(TOO_DEEP)
    if parsed.get("error_type") != "parser":
        raise ConditionError("is a statement, not one SQL condition")
    raise ConditionError(f"is not SQL: {_first_line(message)}")


def _frame(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """All of a SELECT but what it selects and where things stand in the text."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items() if not key.startswith("query_location")}
        return [bare(item) for item in value] if isinstance(value, list) else value

    return {key: bare(value) for key, value in node.items() if key != "select_list"}


def _bind(text: str, columns: Mapping[str, str]) -> None:
    """Compute the condition for a row of nulls, so that its types and its constants are known to fit."""
    import duckdb

    fields = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns.items())
    with _cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE rows AS SELECT {fields}")
        try:
            ((_, kind),) = _run(cursor, f"SELECT ({text}\n), typeof(({text}\n)) FROM rows")  # noqa: S608 -- checked by the caller
        except duckdb.Error as error:
            raise ConditionError(_first_line(str(error))) from error
    if kind != "BOOLEAN":
        raise ConditionError(f"gives {kind}, not true or false: compare it with something")


def _first_line(message: str) -> str:
    return _PREFIX.sub("", message).partition("\n")[0].strip().rstrip(".")
