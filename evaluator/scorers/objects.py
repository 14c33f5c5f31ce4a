"""The JSON objects in a model's text, with the slips that models make in them."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

MOST_BRACES = 50

_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)


class UnreadableError(Exception):
    """Why a reply gives no result."""


def json_objects(text: str, speaks: re.Pattern[str]) -> Iterator[tuple[Any, int, int]]:
    """Every outermost JSON object in a text with its start and end, whatever stands around them.

    What looks like one and cannot be decoded is passed over, unless `speaks` finds something in it: an unescaped
    quotation in a rationale must not let the quoted object speak for the reply. Raises UnreadableError for that, for
    a field that has two values, and for too many braces.
    """
    position = text.find("{")
    for _ in range(MOST_BRACES):
        if position < 0:
            return
        rest = text[position:]
        end, found = _first_object(rest)
        if found is None and speaks.search(rest[:end] if end else rest):
            raise UnreadableError("its JSON is broken")
        if found is not None:
            yield found, position, position + (end or 0)
        position = text.find("{", position + (end or 1))
    raise UnreadableError("it holds too many braces")


def _first_object(text: str) -> tuple[int | None, Any]:
    """Where the object that begins a text ends, and the object; None for what is not found or not decoded."""
    try:
        found, after = _DECODER.raw_decode(text)
        return after, found
    except (ValueError, RecursionError):
        pass  # not JSON as it should be
    for spelling in (text, _straight(text)):
        end = _object_end(spelling)
        if end and (found := _decoded(spelling[:end])) is not None:
            return end, found
    return end, None


def _object_end(text: str) -> int | None:
    """Where the object that begins a text ends: at the brace that closes it, braces in strings not counted."""
    depth = 0
    quote = before = ""
    escaped = False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = bool(quote)
        elif quote:
            quote = "" if character == quote else quote
        elif character == '"' or (character == "'" and before in "{[:,"):
            quote = character
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return index + 1
        before = before if character.isspace() else character
    return None


def _straight(text: str) -> str:
    """Typographic double quotes as plain ones, character for character."""
    return text.translate({ord(quote): '"' for quote in "“”„‟«»＂"})


def _decoded(text: str) -> Any:
    """An object as JSON, as JSON with the usual slips, or as a Python literal; None when it is none of them."""
    for spelling in (text, _TRAILING_COMMA.sub(lambda found: found[1] or "", text)):
        try:
            return json.loads(spelling, strict=False, object_pairs_hook=unambiguous)
        except (json.JSONDecodeError, RecursionError):
            continue
    try:
        tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                if len(keys) != len(set(keys)):
                    raise UnreadableError("it names a field twice")
        return ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def unambiguous(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object. Raises UnreadableError where one of them has two values."""
    fields = dict(pairs)
    if any(fields[key] != value for key, value in pairs):
        raise UnreadableError("it names a field twice")
    return fields


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=unambiguous)
