"""What a guideline file may say: the types at the door, and the JSON Schema for editors made from them.

`python -m evaluator.guidelines.schema` writes the schema to `guidelines/guidelines.schema.json`.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
)

from evaluator.config import Duration
from evaluator.scorers.builtin import BUILTINS

SCHEMA_FILE = "guidelines.schema.json"
KINDS = ("sql", "regex", "python", "builtin")

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Name = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=100, pattern=r"^[^\s/\x00-\x1f]([^/\x00-\x1f]*[^\s/\x00-\x1f])?$"
    ),
    Field(description="Unique among all files; the assessment's name."),
]
Ago = Annotated[
    Duration,
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h|d|w)$"}),
]
Sql = Annotated[
    str, StringConstraints(min_length=1), Field(examples=["status = 'OK' AND duration_ms < 10000"])
]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _shape(value: object) -> str | None:
    """The tag of a form of `values`, which no key of a file can be."""
    match value:
        case str():
            return "<yes_no>"
        case list():
            return "<categories>"
        case dict() | RangeEntry():
            return "<range>"
        case _:
            return None


def _kind(value: object) -> str | None:
    """The tag of a scorer's one kind, in a form that no key of a file has."""
    found = [kind for kind in KINDS if isinstance(value, dict) and kind in value]
    return f"<{found[0]}>" if len(found) == 1 else None


class Door(BaseModel):
    """A part of a guideline file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entry(Door):
    """What every judge and scorer has."""

    name: Name
    filter: Sql | None = Field(
        None, description="Which traces it looks at: one SQL condition over their columns."
    )
    sample_rate: float = Field(
        1.0, ge=0, le=1, description="The share of these traces, the same on every run."
    )
    target: Literal["trace", "session", "span"] = Field("trace", description="What a result is about.")
    span_filter: Sql | None = Field(
        None,
        description="With `target: span`: which spans of the trace, by one SQL condition over a span's columns.",
        examples=["span_type = 'TOOL'", "span_type = 'RETRIEVER' AND duration_ms > 100"],
    )
    since: Ago | None = Field(
        None, description="How far to catch up on the past when first seen, such as 7d."
    )
    enabled: bool = Field(True, description="false: kept here, not run.")


class ExampleEntry(Door):
    """A case with a known verdict, run by `evaluator check --examples`."""

    inputs: Any = Field(description="The request.")
    outputs: Any = Field(description="The response.")
    expect: Literal["pass", "fail"]


class BudgetEntry(Door):
    """Hard caps for a UTC day."""

    usd_per_day: float | None = Field(None, ge=0, description="In USD.")
    tokens_per_day: int | None = Field(None, ge=0, description="Input and output together.")


class RangeEntry(Door):
    """A number, bounds included."""

    min: float
    max: float


ValuesEntry = Annotated[
    Annotated[Literal["yes/no"], Tag("<yes_no>")]
    | Annotated[list[Text], Field(min_length=2), Tag("<categories>")]
    | Annotated[RangeEntry, Tag("<range>")],
    Discriminator(
        _shape,
        custom_error_type="values",
        custom_error_message="should be a list of words, such as [warm, neutral, cold], or {min: 1, max: 5}",
    ),
]


class JudgeEntry(Entry):
    """A judge: a model asked about `guidelines` that must hold, or with `instructions` of your own."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["guidelines"]}, {"required": ["instructions"]}]}
    )

    guidelines: (
        Annotated[
            list[Text],
            BeforeValidator(_listed, json_schema_input_type=Text | list[Text]),
            Field(min_length=1),
        ]
        | None
    ) = Field(
        None,
        description="One text or a list; all must hold.",
        examples=["The response must provide at least one concrete, data-backed recommendation."],
    )
    instructions: Text | None = Field(
        None,
        description="A free-form question about {{ inputs }}, {{ outputs }}, {{ expectations }} or {{ trace }}.",
        examples=["How does {{ outputs }} treat the user, given {{ inputs }}?"],
    )
    values: ValuesEntry = Field(
        "yes/no",
        description="With `instructions`: the words to choose from, or the bounds of a number; else yes or no.",
        examples=[["warm", "neutral", "cold"], {"min": 1, "max": 5}],
    )
    pass_if: Sql | None = Field(
        None,
        description="When the answer passes: a SQL condition over `value`.",
        examples=["value != 'cold'"],
    )
    model: Text | None = Field(
        None, description="The model, if not judge.model.", examples=["anthropic/claude-sonnet-4-5"]
    )
    models: Annotated[list[Text], Field(min_length=2)] | None = Field(
        None,
        description="A panel instead of one model: each of them votes.",
        examples=[["openai/gpt-5-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"]],
    )
    decide: Literal["majority", "unanimous", "any_fail"] | None = Field(
        None,
        description="With `models`: what more than half of them say (of numbers the median; the default), "
        "only what all of them say, or a fail as soon as one of them says so.",
    )
    escalate_to: Text | None = Field(
        None,
        description="The model that is asked when the judge says that it is unsure, or the panel is split.",
        examples=["anthropic/claude-opus-4-5"],
    )
    trace_view: Literal["full", "answer", "index"] | None = Field(
        None,
        description="What it sees of a trace. full: all of it (the default). answer: the request and the response. "
        "index: these, and one line for each span (the default with `target: span`, whose span it sees whole).",
    )
    batch: Literal["single", "joint"] = Field(
        "single",
        description="single: a call of its own. joint: one call with the other joint judges of the same model "
        "and target, which share filter, sample_rate and trace_view.",
    )
    budget: BudgetEntry | None = Field(
        None,
        description="Hard caps of its own for a UTC day, within those of judge.budget.",
        examples=[{"usd_per_day": 5}],
    )
    examples: list[ExampleEntry] = Field([], description="Cases with a known verdict.")


class SqlEntry(Entry):
    """A scorer that is one SQL condition over the trace's columns."""

    sql: Sql = Field(description="Passes where it holds.", examples=["duration_ms < 10000"])


class RegexEntry(Entry):
    """A scorer that looks for a pattern."""

    regex: str = Field(min_length=1, description="Passes where it occurs (RE2).", examples=[r"\d"])
    on: Literal["request", "response"] = Field("response", description="Where to look.")


class PythonEntry(Entry):
    """A scorer that is your own function, or one that MLflow's @scorer decorates."""

    python: str = Field(
        description="module:name; the configuration's python_modules must allow the module.",
        examples=["my_team.scorers:follows_schema"],
    )


def _options_by_builtin(schema: dict[str, Any]) -> None:
    """Let an editor know each builtin's own options."""
    schema["allOf"] = [
        {
            "if": {"properties": {"builtin": {"const": name}}},
            "then": {"properties": {"options": builtin.options.model_json_schema()}},
        }
        for name, builtin in BUILTINS.items()
    ]


class BuiltinEntry(Entry):
    """A scorer that comes with the program."""

    model_config = ConfigDict(json_schema_extra=_options_by_builtin)

    builtin: Literal[tuple(BUILTINS)] = Field(description="Which one.")  # type: ignore[valid-type]
    options: dict[str, Any] = Field({}, description="The builtin's own options.")


ScorerEntry = Annotated[
    Annotated[SqlEntry, Tag("<sql>")]
    | Annotated[RegexEntry, Tag("<regex>")]
    | Annotated[PythonEntry, Tag("<python>")]
    | Annotated[BuiltinEntry, Tag("<builtin>")],
    Discriminator(
        _kind,
        custom_error_type="kinds",
        custom_error_message="should have exactly one of sql, regex, python, builtin",
    ),
]


class GuidelineFile(Door):
    """The judges and scorers of one file."""

    model_config = ConfigDict(title="Judges and scorers")

    judges: list[JudgeEntry] | None = Field(None, description="What a model judges.")
    scorers: list[ScorerEntry] | None = Field(None, description="What code decides.")


def json_schema() -> str:
    """The published JSON Schema, as text."""
    schema = GuidelineFile.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def main(folder: Path) -> None:
    (folder / SCHEMA_FILE).write_text(json_schema(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "guidelines")
