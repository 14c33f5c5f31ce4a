"""A model's reply read into a feedback, or into why it cannot be read. Nothing is guessed."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from evaluator.feedback import Feedback, Outcome, Reason, Unscored, Value
from evaluator.guidelines.definitions import Categories, NumberRange, Values, YesNo
from evaluator.models.endpoint import Completion

Passes = Callable[[Value], bool | None]

RATIONALES = ("rationale", "reasoning", "reason", "explanation", "justification", "comment", "analysis")
RESULTS = ("result", "value")
ALSO_RESULTS = (
    "verdict",
    "answer",
    "score",
    "rating",
    "label",
    "passed",
    "pass",
    "decision",
    "judgement",
    "judgment",
)
LONGEST_REPLY = 50_000
MOST_BRACES = 50
LONGEST_RATIONALE = 10_000

_THOUGHT = re.compile(r"\s*<(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)
_REFUSAL = re.compile(
    r"^(i['’]?m (very |really )?sorry|i am sorry|sorry|i apologi[sz]e|unfortunately,? i)?\W{0,3}(but )?"
    r"(i (can['’]?t|cannot|can not|am unable|['’]?m unable|won['’]?t|will not|am not able)|i['’]m (unable|not able))"
    r"[^.]{0,40}\b(assist|help|comply|provide|fulfil|fulfill|answer|continue|judge|evaluate|do that|with (this|that))",
    re.IGNORECASE,
)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAY_HOLD_RESULT = re.compile(rf"\b({'|'.join((*RESULTS, *ALSO_RESULTS))})\b\W{{0,3}}[:=]", re.IGNORECASE)
_YES = frozenset({"yes", "true", "pass", "passed"})
_NO = frozenset({"no", "false", "fail", "failed"})
_ECHO = "..."


class _Unreadable(Exception):  # noqa: N818 -- it becomes an Unscored
    """Why a reply gives no result."""


def reply_schema(values: Values) -> dict[str, Any]:
    """The JSON Schema of a reply: the rationale first, so that a model thinks before it answers."""
    match values:
        case YesNo():
            result: dict[str, Any] = {"type": "string", "enum": ["yes", "no"]}
        case Categories():
            result = {"type": "string", "enum": list(values.values)}
        case NumberRange():
            # Bounds are in the prompt: not every provider takes them in a schema.
            result = {"type": "number"}
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, "result": result},
        "required": ["rationale", "result"],
        "additionalProperties": False,
    }


def read_reply(completion: Completion, values: Values, passes: Passes | None = None) -> Outcome:
    """The feedback in a completion, or Unscored: refused, filtered, cut off, or not to be read beyond doubt.

    `passes` tells of a value whether it passes; without it yes passes, no fails, and other values do neither.
    """
    match completion.finish_reason:
        case "refusal":
            return Unscored(reason=Reason.REFUSED, detail="the model refused to judge")
        case "content_filter":
            return Unscored(
                reason=Reason.CONTENT_FILTER, detail="the provider's content filter cut the reply"
            )
        case "length":
            detail = "the reply was cut off at its longest (judge.parameters: max_tokens)"
            return Unscored(reason=Reason.BAD_REPLY, detail=detail)
    try:
        value, rationale = _verdict(completion.text, values)
    except _Unreadable as problem:
        if "{" not in completion.text and _REFUSAL.match(completion.text[:300].lstrip()):
            return Unscored(reason=Reason.REFUSED, detail="the model refused to judge")
        return Unscored(reason=Reason.BAD_REPLY, detail=str(problem))
    if passes is None and isinstance(values, YesNo):
        return Feedback(value=value, passed=value == "yes", rationale=rationale)
    return Feedback(value=value, passed=passes(value) if passes else None, rationale=rationale)


def _verdict(text: str, values: Values) -> tuple[Value, str]:
    answer = _without_thought(text)
    if not answer.strip():
        raise _Unreadable("it is empty")
    if len(answer) > LONGEST_REPLY:
        raise _Unreadable(f"it is longer than {LONGEST_REPLY:,} characters")
    objects = [found for root in _json_objects(answer) for found in _with_result(root)]
    read = [(_result(found, values), _rationale(found)) for found in objects if not _is_echo(found)]
    if not read:
        raise _Unreadable('it holds no JSON object with a "result"')
    if len({value for value, _ in read}) > 1:
        raise _Unreadable("it holds different results")
    return read[0][0], next((rationale for _, rationale in read if rationale), "")


def _without_thought(text: str) -> str:
    """What a reasoning model says after it has thought; a thought that does not end leaves nothing.

    A tag behind a brace may be one that a rationale quotes: it ends nothing.
    """
    start = 0
    thought = False
    while _THOUGHT.match(text, start):
        thought = True
        end = _THOUGHT_END.search(text, start)
        if end is None:
            return ""
        start = end.end()
    if not thought and (end := _THOUGHT_END.search(text)) and "{" not in text[: end.start()]:
        start = end.end()
    return text[start:]


def _json_objects(text: str) -> Iterator[Any]:
    """Every outermost JSON object in a text, whatever stands around them.

    What looks like one and cannot be decoded is passed over, unless it may hold a result: an unescaped quotation
    in a rationale must not let the quoted object speak for the reply.
    """
    position = text.find("{")
    for _ in range(MOST_BRACES):
        if position < 0:
            return
        rest = text[position:]
        end, found = _first_object(rest)
        if found is None and _MAY_HOLD_RESULT.search(rest[:end] if end else rest):
            raise _Unreadable("its JSON is broken")
        if found is not None:
            yield found
        position = text.find("{", position + (end or 1))
    raise _Unreadable("it holds too many braces")


def _first_object(text: str) -> tuple[int | None, Any]:
    """Where the object that begins a text ends, and the object; None for what is not found or not decoded."""
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
            return json.loads(spelling, strict=False, object_pairs_hook=_unambiguous)
        except (json.JSONDecodeError, RecursionError):
            continue
    try:
        tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                if len(keys) != len(set(keys)):
                    raise _Unreadable("it names a field twice")
        return ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if any(fields[key] != value for key, value in pairs):
        raise _Unreadable("it names a field twice")
    return fields


def _with_result(found: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects that hold a result, in whatever a model wrapped them."""
    if depth > 5:
        return
    if isinstance(found, dict):
        fields = {str(key).strip().casefold(): value for key, value in found.items()}
        if any(not isinstance(fields.get(key, {}), dict | list) for key in (*RESULTS, *ALSO_RESULTS)):
            yield fields
            return
        found = list(found.values())
    if isinstance(found, list):
        for child in found:
            yield from _with_result(child, depth + 1)


def _is_echo(fields: Mapping[str, Any]) -> bool:
    """The form that the prompt shows, repeated."""
    return fields.get("result") == _ECHO


def _result(fields: Mapping[str, Any], values: Values) -> Value:
    named = [_value(fields[key], values) for key in RESULTS if key in fields]
    others = [_value(fields[key], values) for key in ALSO_RESULTS if key in fields]
    if not named:
        named = others
    known = {value for value in [*named, *others] if value is not None}
    if None in named or not known:
        raise _Unreadable(f"its result is not {_wanted(values)}")
    if len(known) > 1:
        raise _Unreadable("it contradicts itself")
    return known.pop()


def _value(said: Any, values: Values) -> Value | None:
    """What was said as one of the values; None when it is none of them, or could be two."""
    match values:
        case YesNo():
            word = str(said).strip(" \t\r\n\"'`*.!").casefold() if isinstance(said, str | bool) else ""
            return "yes" if word in _YES else "no" if word in _NO else None
        case Categories():
            return _category(said, values.values)
        case NumberRange():
            number = _number(said, values.max)
            return number if number is not None and values.min <= number <= values.max else None


def _category(said: Any, values: tuple[str, ...]) -> str | None:
    if isinstance(said, bool) or not isinstance(said, str | int | float):
        return None
    word = str(said).strip()
    for spelled in (str, str.casefold, lambda text: re.sub(r"[\W_]+", " ", text.casefold()).strip()):
        matches = [value for value in values if spelled(value) == spelled(word)]
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def _number(said: Any, highest: float) -> float | int | None:
    if isinstance(said, str):
        match = re.fullmatch(
            r"\s*([+-]?\d{1,15}(?:\.\d{1,15})?)\s*(?:(?:/|out of)\s*(\d+(?:\.\d+)?))?\s*", said
        )
        if match is None or (match[2] and float(match[2]) != highest):
            return None
        said = float(match[1])
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        return None
    return int(said) if float(said).is_integer() else float(said)


def _rationale(fields: Mapping[str, Any]) -> str:
    said = next((fields[key] for key in RATIONALES if fields.get(key)), "")
    if isinstance(said, list) and all(isinstance(line, str) for line in said):
        said = "\n".join(said)
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str)
    return _UNSTORABLE.sub("\ufffd", text).strip()[:LONGEST_RATIONALE]


def _wanted(values: Values) -> str:
    match values:
        case YesNo():
            return "yes or no"
        case Categories():
            return f"one of {', '.join(values.values)}"
        case NumberRange():
            return f"a number from {values.min:g} to {values.max:g}"
