"""The parsed tree of a condition, held to an allow-list: what is not known here is refused."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluator.config import nearest
from evaluator.dataset.functions import FUNCTIONS

MAX_DEPTH = 60
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"

_PLAIN = {"class", "type", "alias", "query_location", "query_location_length"}
_PARTS = {
    "BETWEEN": ("input", "lower", "upper"),
    "CASE": ("case_checks", "else_expr"),
    "CAST": ("child",),
    "COMPARISON": ("left", "right"),
    "CONJUNCTION": ("children",),
    "FUNCTION": ("arguments",),
    "LAMBDA": ("lhs", "expr"),
    "OPERATOR": ("children",),
}
"""The classes of nodes that a condition is made of, and where their parts are; a column and a constant have none."""

_OWN = {
    "CAST": {"type_expr", "try_cast"},
    "COLUMN_REF": {"column_names"},
    "CONSTANT": {"literal", "value"},
    "FUNCTION": {"function_name", "is_operator", "qualified_name"},
    "LAMBDA": {"syntax_type"},
}
_OPERATORS = {
    "ARRAY_EXTRACT",
    "ARRAY_SLICE",
    "COMPARE_IN",
    "COMPARE_NOT_IN",
    "OPERATOR_COALESCE",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_IS_NULL",
    "OPERATOR_NOT",
    "OPERATOR_TRY",
    "STRUCT_EXTRACT",
}
_TYPES = {
    *(
        "BOOLEAN",
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "HUGEINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
    ),
    *("FLOAT", "DOUBLE", "DECIMAL", "VARCHAR", "STRING", "TEXT", "JSON", "LIST"),
    *("DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE", "INTERVAL"),
}
_SAID = {
    "DEFAULT": "DEFAULT",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a column by its position",
    "STAR": "*",
    "SUBQUERY": "a subquery",
    "WINDOW": "a window",
}


class ConditionError(ValueError):
    """What is wrong with a condition, for the person who wrote it."""


def columns_of(expression: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that an expression (a node of DuckDB's `json_serialize_sql`) looks at, by name.

    `columns` are DuckDB types by name.

    Raises ConditionError unless every node, function, type and column of it is known and allowed.
    """
    used: set[str] = set()
    _check(expression, columns, used, frozenset(), 0)
    return tuple(sorted(used))


def _check(
    node: Mapping[str, Any], columns: Mapping[str, str], used: set[str], local: frozenset[str], depth: int
) -> None:
    """Raise ConditionError unless the node and all below it are known and allowed; note the columns."""
    kind = node["class"]
    if depth > MAX_DEPTH:
        raise ConditionError(TOO_DEEP)
    if kind not in _PARTS and kind not in ("COLUMN_REF", "CONSTANT"):
        what = _SAID.get(kind, kind.replace("_", " ").lower())
        raise ConditionError(f"holds {what}; a condition is one expression over a single row")
    parts = _PARTS.get(kind, ())
    own = _PLAIN.union(parts, _OWN.get(kind, ()))
    for key, value in node.items():
        if key not in own and not _empty(value):
            raise ConditionError(f"holds {key.replace('_', ' ')}, which a condition may not")
    match kind:
        case "COLUMN_REF":
            _check_column(node["column_names"], columns, used, local)
        case "FUNCTION":
            _check_function(node)
        case "OPERATOR" if node["type"] not in _OPERATORS:
            raise ConditionError(f"holds {node['type'].replace('_', ' ').lower()}, which a condition may not")
        case "CAST":
            _check_type(node["type_expr"])
        case "LAMBDA" if node["syntax_type"] != "LAMBDA_KEYWORD":
            raise ConditionError(
                "holds ->: write ->> for text out of JSON, json_extract for JSON, lambda x: … for a function"
            )
        case "LAMBDA":
            inner = local | {name for leaf in _columns(node["lhs"]) for name in leaf}
            _check(node["expr"], columns, used, inner, depth + 1)
            return
    for part in parts:
        for child in _children(node[part]):
            _check(child, columns, used, local, depth + 1)


def _check_column(
    path: Sequence[str], columns: Mapping[str, str], used: set[str], local: frozenset[str]
) -> None:
    name = path[0]
    if name in local:
        return
    known = next((column for column in columns if column.lower() == name.lower()), None)
    if known is None:
        raise ConditionError(f'unknown column "{name}"{nearest(name, [*columns]) or _listed(columns)}')
    if len(path) > 1 and not columns[known].startswith("STRUCT"):
        raise ConditionError(
            f"\"{'.'.join(path)}\": a column has no fields; of JSON text take {known}->>'$.{path[1]}'"
        )
    used.add(known)


def _check_function(node: Mapping[str, Any]) -> None:
    name = node["function_name"]
    path = node.get("qualified_name", {}).get("path", [name])
    if name == "row" and not node["arguments"]:
        raise ConditionError("is empty: write one SQL condition")
    if name not in FUNCTIONS or len(path) != 1:
        shown = ".".join(path)
        raise ConditionError(
            f'function "{shown}" is not one that a condition may use{nearest(shown, sorted(FUNCTIONS))}'
        )


def _check_type(node: Mapping[str, Any]) -> None:
    name = str(node["type_name"])
    if name.upper() not in _TYPES or len(node.get("qualified_name", {}).get("path", [name])) != 1:
        raise ConditionError(f'type "{name}" is not one that a condition may use')
    for child in _children(node.get("children", [])) + _children(node.get("arguments", [])):
        if child.get("class") == "TYPE":
            _check_type(child)
        elif child.get("class") != "CONSTANT":
            raise ConditionError(f'type "{name}" takes numbers only')


def _children(part: Any) -> list[Mapping[str, Any]]:
    """The expressions in a part of a node: one, a list, named arguments, or WHEN and THEN."""
    if isinstance(part, dict):
        if "class" in part:
            return [part]
        return [child for value in part.values() if isinstance(value, dict) for child in _children(value)]
    return [child for item in part or [] for child in _children(item)]


def _columns(node: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    if node["class"] == "COLUMN_REF":
        yield node["column_names"]
    for part in _PARTS.get(node["class"], ()):
        for child in _children(node[part]):
            yield from _columns(child)


def _empty(value: Any) -> bool:
    """Whether a field of a node says nothing, as `ORDER BY` of nothing does."""
    if isinstance(value, dict):
        return all(key == "type" or _empty(item) for key, item in value.items())
    return not value or value == "INVALID"


def _listed(columns: Mapping[str, str]) -> str:
    return f" (there are: {', '.join(columns)})"
