"""How a model is brought to answer in a schema: by the schema itself, by a tool call, or by words."""

import json
import re
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

from evaluator.models.endpoint import ChatRequest, Completion, Messages

TOOL = "verdict"
"""The one tool that a model is offered: calling it is the reply."""
MOST_BRACES = 50

_UNTOLD = ("length", "content_filter", "refusal")
"""A reply that ended so tells nothing of whether the form was heeded."""


class Rung(IntEnum):
    """The forms in which a schema is asked for, the strictest first. Each of them means the same."""

    SCHEMA = 0
    TOOL = 1
    TEXT = 2


_NOT_TAKEN: Mapping[Rung, re.Pattern[str]] = {
    Rung.SCHEMA: re.compile(
        r"response_?format|json_?schema|structured[ _]outputs?|guided|grammar|output_config", re.IGNORECASE
    ),
    Rung.TOOL: re.compile(r"\btools?\b|tool[_ ](choice|use|call)|function[ _]call", re.IGNORECASE),
}


class Ladder:
    """Which form one model takes. Shared by all calls to it, so that each way down is gone once.

    A form is left for good when the model rejects it and takes a later one; and for the next request when the model
    answered the first of that form with something else. Once a form was answered as asked it is kept: a single
    reply, which the judged text may have had a part in, cannot talk the model out of it.
    """

    def __init__(self) -> None:
        self._rung = Rung.SCHEMA
        self._proven = False

    @property
    def rung(self) -> Rung:
        """The form that the next request is asked in."""
        return self._rung

    def heard(self, rung: Rung, request: ChatRequest, completion: Completion) -> None:
        """Take note of the answer to a request that was asked in this form."""
        if request.schema is None or rung < self._rung:
            return
        if rung > self._rung:
            self._rung, self._proven = rung, False
        if holds(completion.text, request.schema):
            self._proven = True
        elif not self._proven and completion.finish_reason not in _UNTOLD and rung < Rung.TEXT:
            self._rung = Rung(rung + 1)


def rejected(rung: Rung, error: Mapping[str, Any]) -> bool:
    """Whether a provider's error is about the form, and a later one is worth sending.

    `error` is its error object (`message`, `param`).
    """
    pattern = _NOT_TAKEN.get(rung)
    return pattern is not None and bool(
        pattern.search(f"{error.get('param') or ''} {error.get('message') or ''}")
    )


def parameters_for(rung: Rung, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """What asks for a schema beside the messages, in OpenAI's form."""
    if schema is None or rung is Rung.TEXT:
        return {}
    if rung is Rung.SCHEMA:
        form = {"name": TOOL, "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": form}}
    function = {"name": TOOL, "description": "Give your reply.", "parameters": schema}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": TOOL}},
    }


def messages_for(rung: Rung, request: ChatRequest) -> Messages:
    """The messages; where nothing else carries the schema, the last one says it."""
    if request.schema is None or rung is not Rung.TEXT:
        return request.messages
    said = f"Reply with one JSON object that follows this JSON Schema, and nothing else:\n{json.dumps(request.schema, ensure_ascii=False)}"
    *before, last = request.messages
    return [*before, {**last, "content": f"{last['content']}\n\n{said}"}]


def called(tool_calls: object) -> str:
    """The arguments of the calls of our tool as text; empty where it was not called.

    Several calls stand below each other, so that their reader sees where they differ.
    """
    functions = [
        call.get("function") for call in tool_calls if isinstance(call, Mapping)
    ] if isinstance(tool_calls, list) else []  # fmt: skip
    said = [
        function.get("arguments")
        for function in functions
        if isinstance(function, Mapping) and function.get("name") == TOOL
    ]
    return "\n".join(text if isinstance(text, str) else json.dumps(text) for text in said)


def holds(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a reply holds an object with all that the schema requires; what is in it is not looked at."""
    required = set(schema.get("required", ()))
    return any(required <= found.keys() for found in _objects(text))


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    decoder = json.JSONDecoder(strict=False)
    position = text.find("{")
    for _ in range(MOST_BRACES):
        if position < 0:
            return
        try:
            found, end = decoder.raw_decode(text, position)
            yield found
        except (ValueError, RecursionError):
            end = position + 1
        position = text.find("{", end)
