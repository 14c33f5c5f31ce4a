"""The scorers that come with the program: small checks that need no model."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from evaluator.config import Duration, RedactionRule
from evaluator.dataset.records import Record
from evaluator.feedback import Scored, SourceType
from evaluator.guidelines.definitions import BuiltinDefinition, TargetKind
from evaluator.redaction import Redactor
from evaluator.scorers.language import LANGUAGES, language_of
from evaluator.scorers.scorer import about, fingerprint
from evaluator.scorers.verdict import not_applicable, shown, verdict
from evaluator.traces.trace import Step, Trace

On = Literal["request", "response"]
Count = Annotated[int, Field(ge=0)]
Limit = Annotated[
    Duration,
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h|d|w)$", "examples": ["10s"]}),
]
_EMPTY = {"", "null", "none", '""', "''", "[]", "{}", "undefined", "nan"}


class Options(BaseModel):
    """The options of a builtin scorer."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    """This scorer has no options."""


class PiiOptions(Options):
    kinds: list[RedactionRule] = Field(
        ["email", "phone", "credit_card", "ip_address", "iban", "secret"],
        min_length=1,
        description="What must not occur.",
    )
    on: On = Field("response", description="Where to look.")


class JsonOptions(Options):
    on: On = Field("response", description="What has to be JSON.")
    required: list[str] = Field([], description="Keys that the object must have.")
    code_fence: bool = Field(False, description="Whether a Markdown code fence around it is fine.")


class LatencyOptions(Options):
    at_most: Limit = Field(timedelta(seconds=10), description="The longest that the trace may take.")


class ToolErrorOptions(Options):
    at_most: Count = Field(0, description="How many tool calls may have failed.")


class TokenOptions(Options):
    total: Count | None = Field(100_000, description="The most tokens in all; null is no bound.")
    input: Count | None = Field(None, description="The most input tokens; null is no bound.")
    output: Count | None = Field(None, description="The most output tokens; null is no bound.")


class RepetitionOptions(Options):
    at_most: Annotated[int, Field(ge=1)] = Field(
        2, description="How often one tool may be called with the same arguments."
    )


class LanguageOptions(Options):
    expected: Literal[LANGUAGES] | None = Field(  # type: ignore[valid-type]
        None, description="The response's language (ISO 639-1); null: the request's."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """A builtin scorer: its options, what it says of a record, and what records may be about."""

    options: type[Options]
    score: Callable[[Record, Any], Scored]
    targets: tuple[TargetKind, ...] = ("trace", "span", "session")


class BuiltinScorer:
    """Runs one of `BUILTINS` over each record."""

    source_type: SourceType = "CODE"
    waits = False

    def __init__(self, definition: BuiltinDefinition) -> None:
        """Raises KeyError for an unknown builtin and pydantic's ValidationError for options that do not fit."""
        self.name = definition.name
        self._builtin = BUILTINS[definition.builtin]
        self._options = self._builtin.options.model_validate(dict(definition.options))
        self.definition: Mapping[str, Any] = {
            "kind": "builtin",
            "builtin": definition.builtin,
            "options": self._options.model_dump(mode="json"),
            **about(definition.target),
        }
        if isinstance(self._options, PiiOptions):
            self.definition = {**self.definition, "rules": _redactor(tuple(self._options.kinds)).definition}
        self.version = fingerprint(self.definition)

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        """One result for each record."""
        return [self._builtin.score(record, self._options) for record in records]


def _text(record: Record, on: On) -> str | None:
    return record.outputs if on == "response" else record.inputs


@lru_cache
def _redactor(kinds: tuple[str, ...]) -> Redactor:
    return Redactor(kinds)


def _pii(record: Record, options: PiiOptions) -> Scored:
    text = _text(record, options.on)
    if text is None:
        return not_applicable(f"the {record.subject} has no {options.on}")
    found = Counter(finding.label for finding in _redactor(tuple(options.kinds)).find(text))
    if not found:
        return verdict(True, f"The {options.on} holds no {', '.join(options.kinds)}.")
    counted = ", ".join(f"{count} x {label.lower()}" for label, count in found.most_common())
    return verdict(False, f"The {options.on} holds {counted}.")


def _valid_json(record: Record, options: JsonOptions) -> Scored:
    text = _text(record, options.on)
    if text is None:
        return not_applicable(f"the {record.subject} has no {options.on}")
    if options.code_fence:
        text = _unfenced(text)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return verdict(
            False, f"The {options.on} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        )
    except ValueError as error:
        return verdict(False, f"The {options.on} is not JSON: {error}.")
    except RecursionError:
        return verdict(False, f"The {options.on} is nested too deep to be read as JSON.")
    if not options.required:
        return verdict(True, f"The {options.on} is JSON ({_kind_of_json(value)}).")
    if not isinstance(value, dict):
        return verdict(False, f"The {options.on} is {_kind_of_json(value)}, not an object.")
    missing = [key for key in options.required if key not in value]
    if missing:
        return verdict(False, f"The {options.on} lacks {', '.join(missing)}.")
    return verdict(True, f"The {options.on} is an object with {', '.join(options.required)}.")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _unfenced(text: str) -> str:
    lines = text.strip().splitlines()
    fenced = len(lines) > 1 and lines[0].startswith("```") and lines[-1].strip() == "```"
    return "\n".join(lines[1:-1]) if fenced else text


def _kind_of_json(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case str():
            return "a string"
        case bool() | None:
            return json.dumps(value)
        case _:
            return "a number"


def _latency(record: Record, options: LatencyOptions) -> Scored:
    duration_ms = (record.step or record.trace).duration_ms
    if duration_ms is None:
        return not_applicable(f"the {record.subject}'s duration is not known")
    bound = options.at_most.total_seconds()
    relation = "within" if duration_ms <= bound * 1000 else "longer than"
    return verdict(
        duration_ms <= bound * 1000,
        f"The {record.subject} took {duration_ms / 1000:.3g} s, {relation} {bound:g} s.",
    )


def _tool_errors(record: Record, options: ToolErrorOptions) -> Scored:
    steps = record.trace.steps if record.step is None else [record.step]
    calls = [step for step in steps if step.span_type == "TOOL"]
    if not calls:
        return not_applicable(
            "the trace has no tool spans" if record.step is None else "the span is no tool call"
        )
    failed = [step for step in calls if step.span.status == "ERROR"]
    said = f"{len(failed)} of {len(calls)} tool calls failed"
    if failed:
        names = Counter(step.tool_name or step.span.name for step in failed)
        said += ": " + ", ".join(f"{shown(name)} {count} x" for name, count in names.most_common(5))
    return verdict(len(failed) <= options.at_most, f"{said}.")


def _token_budget(record: Record, options: TokenOptions) -> Scored:
    told = record.step or record.trace
    bounds = {
        "total": (_total_tokens(told), options.total),
        "input": (told.input_tokens, options.input),
        "output": (told.output_tokens, options.output),
    }
    bounded = {name: (used, most) for name, (used, most) in bounds.items() if most is not None}
    if not bounded or any(used is None for used, _ in bounded.values()):
        return not_applicable(
            f"the {record.subject}'s tokens are not known" if bounded else "no bound is set"
        )
    said = ", ".join(f"{used:,} of {most:,} {name} tokens" for name, (used, most) in bounded.items())
    return verdict(all(used <= most for used, most in bounded.values() if used is not None), f"Used {said}.")


def _total_tokens(told: Trace | Step) -> int | None:
    """Of a trace its own word; a span may tell only parts."""
    parts = [part for part in (told.input_tokens, told.output_tokens) if part is not None]
    if told.total_tokens is not None or isinstance(told, Trace) or not parts:
        return told.total_tokens
    return sum(parts)


def _empty_response(record: Record, options: NoOptions) -> Scored:
    text = record.outputs
    if text is None and record.step is None and record.trace.incomplete:
        return not_applicable("the trace is incomplete: its response may be missing only here")
    if text is None or text.strip().lower() in _EMPTY:
        return verdict(False, "The response is empty.")
    return verdict(True, f"The response has {len(text):,} characters.")


def _repeated_tool_calls(record: Record, options: RepetitionOptions) -> Scored:
    calls = _tool_calls(record)
    if not calls:
        return not_applicable("the trace has no tool calls")
    (name, _), count = Counter(calls).most_common(1)[0]
    if count <= options.at_most:
        return verdict(True, f"No tool was called more than {options.at_most} x with the same arguments.")
    return verdict(False, f"{shown(name)} was called {count} x with the same arguments.")


def _tool_calls(record: Record) -> list[tuple[str, str]]:
    """Names and arguments: of the tool spans, else of what the LLM spans asked for."""
    steps = record.trace.steps
    spans = [
        (step.tool_name or step.span.name, step.input or "") for step in steps if step.span_type == "TOOL"
    ]
    return spans or [
        (str(call.get("name")), json.dumps(call.get("arguments"), sort_keys=True, default=str))
        for step in steps
        if step.span_type == "LLM"
        for call in step.tool_calls
    ]


def _language(record: Record, options: LanguageOptions) -> Scored:
    if record.outputs is None:
        return not_applicable(f"the {record.subject} has no response")
    expected = options.expected or (language_of(record.inputs) if record.inputs else None)
    if expected is None:
        return not_applicable("the language of the request cannot be told")
    found = language_of(record.outputs)
    if found is None:
        return not_applicable("the language of the response cannot be told")
    wanted = "as expected" if options.expected else "as the request"
    if found == expected:
        return verdict(True, f"The response is in {found}, {wanted}.")
    return verdict(False, f"The response is in {found}, not in {expected} {wanted}.")


BUILTINS: Mapping[str, Builtin] = {
    "pii": Builtin(options=PiiOptions, score=_pii),
    "valid_json": Builtin(options=JsonOptions, score=_valid_json),
    "latency": Builtin(options=LatencyOptions, score=_latency),
    "tool_errors": Builtin(options=ToolErrorOptions, score=_tool_errors),
    "token_budget": Builtin(options=TokenOptions, score=_token_budget),
    "empty_response": Builtin(options=NoOptions, score=_empty_response),
    "repeated_tool_calls": Builtin(
        options=RepetitionOptions, score=_repeated_tool_calls, targets=("trace", "session")
    ),
    "language": Builtin(options=LanguageOptions, score=_language),
}
"""The builtin scorers by the name that a guideline file gives them."""
