"""One reply to several judges: the form that it is asked in, and what it says for each of them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from evaluator.scorers.objects import json_objects
from evaluator.scorers.prompts import Question
from evaluator.scorers.reply import CALLS, answer_of, reply_schema

LONGEST_KEY = 64
"""Providers take property names of letters, digits, `_`, `.` and `-`, no longer than this (Anthropic's tool schemas)."""
_SPEAKS = re.compile(r"\bresult\b", re.IGNORECASE)


def keys_of(names: Sequence[str]) -> dict[str, str]:
    """The field of each judge: its name, as far as providers take it as one."""
    keys: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[: LONGEST_KEY - 4]
        key = next(key for n in range(1000) if (key := f"{plain}_{n}" if n else plain) not in keys.values())
        keys[name] = key
    return keys


def joint_schema(questions: Mapping[str, Question]) -> dict[str, Any]:
    """An object with one required field for each judge, named by it, with that judge's own rationale and result."""
    return {
        "type": "object",
        "properties": {key: reply_schema(question.values) for key, question in questions.items()},
        "required": list(questions),
        "additionalProperties": False,
    }


def parts_of_reply(text: str, keys: Iterable[str]) -> dict[str, str]:
    """The reply as each judge's own: what an object says for this judge in place of each object that speaks for several.

    Raises UnreadableError where an object cannot be decoded.
    """
    answer = answer_of(text)
    keys = list(keys)
    pieces: dict[str, list[str]] = {key: [] for key in keys}
    position = 0
    for found, start, end in json_objects(answer, _SPEAKS):
        between = answer[position:start]
        fields = list(_fields(found, keys))
        for key in keys:
            said = [each[key] for each in fields if isinstance(each.get(key), dict)]
            pieces[key] += [between, "\n".join(orjson.dumps(one).decode() for one in said)]
        position = end
    return {key: "".join([*own, answer[position:]]) for key, own in pieces.items()}


def _fields(found: Any, keys: Sequence[str], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects with judges' fields, in what models wrap them: a single field, or a call written as text."""
    if not isinstance(found, dict) or depth > 3:
        return
    if any(isinstance(found.get(key), dict) for key in keys):
        yield found
        return
    inner = [found[name] for name in CALLS if name in found] or (
        list(found.values()) if len(found) == 1 else []
    )
    for child in inner:
        if isinstance(child, str):
            yield from (
                deeper
                for each, _, _ in json_objects(child, _SPEAKS)
                for deeper in _fields(each, keys, depth + 1)
            )
        else:
            yield from _fields(child, keys, depth + 1)
