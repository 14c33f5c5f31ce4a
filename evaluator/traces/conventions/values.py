"""Single attribute values, whatever they turn out to be: nothing in here raises."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

MAX_COUNT = 2**40
"""More tokens than this is no count; it keeps sums within 64 bits."""

_JSON_START = ("{", "[", '"')
_MAX_SEGMENTS = 12


def text_of(value: Any) -> str | None:
    """A value as text: texts as they are, nothing as None, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # nested beyond 254 levels, an integer beyond 64 bits, or a text that is no Unicode
        return "(a value that cannot be written as JSON)"


def json_of(value: Any) -> Any:
    """What a text that is JSON stands for; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def structure_of(value: Any) -> Any:
    """Like `json_of`, for texts that are JSON only by chance: a plain `12` or `true` stays text."""
    return json_of(value) if isinstance(value, str) and value.lstrip()[:1] in _JSON_START else value


def name_of(*values: Any) -> str | None:
    """The first that is a name: a text that is not blank, or a whole number as text."""
    for value in values:
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)[:100] if abs(value) < 10**99 else None
    return None


def id_of(*values: Any) -> str | None:
    """Like `name_of`, also for a text that was JSON-encoded once more, as MLflow's `set_attribute` does."""
    return name_of(*(_unquoted(value) for value in values))


def _unquoted(value: Any) -> Any:
    inner = json_of(value) if isinstance(value, str) and value[:1] == '"' else value
    return inner if isinstance(inner, str) else value


def count_of(*values: Any) -> int | None:
    """The first that is a count: a whole number from 0 on, or a text of one."""
    for value in values:
        number = _number(value)
        if number is not None and 0 <= number <= MAX_COUNT:
            return int(number)
    return None


def amount_of(*values: Any) -> float | None:
    """The first that is an amount of money: a finite number from 0 on, or a text of one."""
    for value in values:
        number = _number(value)
        if number is not None and 0 <= number <= MAX_COUNT:
            return float(number)
    return None


def score_of(value: Any) -> float | None:
    """A finite number, or a text of one."""
    return _number(value)


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def mapping_of(value: Any) -> Mapping[str, Any]:
    """The object that a value or its JSON text is, else an empty one."""
    value = structure_of(value)
    return value if isinstance(value, dict) else {}


def nested(attributes: Mapping[str, Any], prefixes: Iterable[str]) -> dict[str, Any]:
    """Flattened attributes (`llm.input_messages.0.message.role`) as the lists and objects they were.

    One entry for each prefix that has attributes.
    """
    starts = {prefix + ".": prefix for prefix in prefixes}
    wanted = tuple(starts)
    tree: dict[str, Any] = {}
    for key, value in attributes.items():
        if key.startswith(wanted):
            start = next(start for start in wanted if key.startswith(start))
            node = tree.setdefault(starts[start], {})
            *path, leaf = key[len(start) :].split(".", _MAX_SEGMENTS)
            for segment in path:
                below = node.get(segment)
                if not isinstance(below, _Node):
                    below = node[segment] = _Node()
                node = below
            node[leaf] = value
    return {prefix: _unflattened(node) for prefix, node in tree.items()}


class _Node(dict[str, Any]):
    """A level of flattened keys, told apart from a value that is an object itself."""


def _unflattened(node: Any) -> Any:
    if all(key.isascii() and key.isdigit() and len(key) < 10 for key in node):
        items: list[Any] = [node[key] for key in sorted(node, key=int)]
        return [_unflattened(item) if isinstance(item, _Node) else item for item in items]
    return {key: _unflattened(item) if isinstance(item, _Node) else item for key, item in node.items()}
