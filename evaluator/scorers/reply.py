"""A model's reply read into a feedback, or into why it cannot be read. Nothing is guessed."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from evaluator.feedback import Feedback, Outcome, Reason, Unscored, Value
from evaluator.guidelines.definitions import Categories, NumberRange, Values, YesNo
from evaluator.models.endpoint import Completion
from evaluator.scorers.objects import UnreadableError, json_objects, unambiguous

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
CALLS = ("arguments", "parameters")
"""Where a tool call that was written as text holds what was meant."""
LONGEST_REPLY = 50_000
LONGEST_RATIONALE = 10_000

_THOUGHT = re.compile(r"\s*<(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^(i['’]?m (very |really )?sorry|i am sorry|sorry|i apologi[sz]e|unfortunately,? i)?\W{0,3}(but )?"
    r"(i (can['’]?t|cannot|can not|am unable|['’]?m unable|won['’]?t|will not|am not able)|i['’]m (unable|not able))"
    r"[^.]{0,40}\b(assist|help|comply|provide|fulfil|fulfill|answer|continue|judge|evaluate|do that|with (this|that))",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"(?:```|~~~)[A-Za-z0-9]*|<[^<>\n]{1,40}>")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAY_HOLD_RESULT = re.compile(rf"\b({'|'.join((*RESULTS, *ALSO_RESULTS))})\b\W{{0,3}}[:=]", re.IGNORECASE)
_YES = frozenset({"yes", "true", "pass", "passed"})
_NO = frozenset({"no", "false", "fail", "failed"})
_ECHO = "..."
_AROUND_A_WORD = " \t\r\n\"'`*.!\u200b\u200c\u200d\u2060\ufeff\u00a0"


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


def read_reply(
    completion: Completion, values: Values, passes: Passes | None = None, material: Iterable[str] = ()
) -> Outcome:
    """The feedback in a completion, or Unscored: refused, filtered, cut off, or not to be read beyond doubt.

    `passes` tells of a value whether it passes; without it yes passes, no fails, and other values do neither.
    `material` is what was judged: an object that stands there word for word is a quotation and no verdict.
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
        value, rationale = _verdict(completion.text, values, material)
    except UnreadableError as problem:
        if "{" not in completion.text and _REFUSAL.match(completion.text[:300].lstrip()):
            return Unscored(reason=Reason.REFUSED, detail="the model refused to judge")
        return Unscored(reason=Reason.BAD_REPLY, detail=str(problem))
    if passes is None and isinstance(values, YesNo):
        return Feedback(value=value, passed=value == "yes", rationale=rationale)
    return Feedback(value=value, passed=passes(value) if passes else None, rationale=rationale)


def _verdict(text: str, values: Values, material: Iterable[str]) -> tuple[Value, str]:
    answer = answer_of(text)
    if not answer.strip():
        raise UnreadableError("it is empty")
    if len(answer) > LONGEST_REPLY:
        raise UnreadableError(f"it is longer than {LONGEST_REPLY:,} characters")
    said = [
        (fields, start, end)
        for root, start, end in json_objects(answer, _MAY_HOLD_RESULT)
        for fields in _with_result(root)
        if not _is_echo(fields)
    ]
    if not said:
        raise UnreadableError('it holds no JSON object with a "result"')
    judged = [_packed(part) for part in material if "{" in part]
    own = [one for one in said if not any(_packed(answer[one[1] : one[2]]) in part for part in judged)]
    if not own:
        raise UnreadableError("it only repeats what stands in the material")
    read = [(_result(fields, values), _rationale(fields)) for fields, _, _ in own]
    if len({value for value, _ in read}) > 1:
        raise UnreadableError("it holds different results")
    if all(_within_a_sentence(answer, start, end) for _, start, end in own):
        raise UnreadableError("its JSON object stands within a sentence, as a quotation does")
    return read[0][0], next((rationale for _, rationale in read if rationale), "")


def answer_of(text: str) -> str:
    """What a reply says after its thoughts; the text within where all of it is one JSON string."""
    return _decoded_twice(_without_thought(text))


def _decoded_twice(text: str) -> str:
    """The text within, where the whole reply is one JSON string."""
    if text.lstrip().startswith('"'):
        try:
            inner = json.loads(text, strict=False)
        except ValueError:
            return text
        return inner if isinstance(inner, str) else text
    return text


def _packed(text: str) -> str:
    """A text without what differs between a thing and its quotation: white space, and backslashes of escapes."""
    return "".join(text.split()).replace("\\", "")


def _within_a_sentence(text: str, start: int, end: int) -> bool:
    """Whether words stand before and after it on its line."""
    before = text[text.rfind("\n", 0, start) + 1 : start]
    after = text[end:].partition("\n")[0]
    return all(any(map(str.isalpha, _MARKUP.sub("", side))) for side in (before, after))


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


def _with_result(found: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects that hold a result, in what models wrap them: a list, a single field, a call written as text.

    Nothing else is searched: a result further in, beside other fields, is something that the reply speaks about.
    """
    if depth > 5:
        return
    if isinstance(found, list):
        for child in found:
            yield from _with_result(child, depth + 1)
    if not isinstance(found, dict):
        return
    fields = unambiguous([(_bare(str(key)), value) for key, value in found.items()])
    named = [key for key in (*RESULTS, *ALSO_RESULTS) if key in fields]
    if any(not isinstance(fields[key], dict | list) for key in named):
        yield fields
    else:
        for child in _wrapped(fields, named):
            yield from _with_result(child, depth + 1)


def _wrapped(fields: Mapping[str, Any], named: Sequence[str]) -> list[Any]:
    """What an object without a plain result is the wrapper of."""
    calls = [fields[key] for key in CALLS if key in fields]
    if "name" in fields and calls:
        return [_call_arguments(call) for call in calls]
    if named:
        return [fields[key] for key in named]
    inner = [value for key, value in fields.items() if key not in RATIONALES]
    return inner if len(fields) == 1 else [value for key, value in fields.items() if key == "function"]


def _call_arguments(said: Any) -> Any:
    if not isinstance(said, str):
        return said
    try:
        return json.loads(said, strict=False, object_pairs_hook=unambiguous)
    except (ValueError, RecursionError):
        raise UnreadableError("its JSON is broken") from None


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
        raise UnreadableError(f"its result is not {_wanted(values)}")
    if len(known) > 1:
        raise UnreadableError("it contradicts itself")
    return known.pop()


def _value(said: Any, values: Values) -> Value | None:
    """What was said as one of the values; None when it is none of them, or could be two."""
    match values:
        case YesNo():
            word = _bare(str(said)) if isinstance(said, str | bool) else ""
            return "yes" if word in _YES else "no" if word in _NO else None
        case Categories():
            return _category(said, values.values)
        case NumberRange():
            number = _number(said, values.max)
            return number if number is not None and values.min <= number <= values.max else None


def _category(said: Any, values: tuple[str, ...]) -> str | None:
    if isinstance(said, bool) or not isinstance(said, str | int | float):
        return None
    for spelled in (str, _bare, lambda text: re.sub(r"[\W_]+", " ", _bare(text)).strip()):
        matches = [value for value in values if spelled(value) == spelled(str(said))]
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def _bare(text: str) -> str:
    return text.strip(_AROUND_A_WORD).casefold()


def _number(said: Any, highest: float) -> float | int | None:
    if isinstance(said, str):
        match = re.fullmatch(
            r"\s*([+-]?\d{1,15}(?:\.\d{1,15})?)\s*(?:(?:/|out of)\s*(\d+(?:\.\d+)?))?\s*",
            said,
            re.ASCII,
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
