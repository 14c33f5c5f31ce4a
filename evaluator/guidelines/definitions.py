"""The judges and scorers that were asked for, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from evaluator.config import DailyBudget

TargetKind = Literal["trace", "session", "span"]
TraceView = Literal["full", "answer", "index"]
"""What a judge sees of a trace: all of it; request and response; these and a line for each span."""
Decision = Literal["majority", "unanimous", "any_fail"]
"""How the votes of a panel become one result."""
UNSURE = "unsure"
"""What a judge may say instead of a value, where another model is asked then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNo:
    """A judge answers yes (pass) or no (fail)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Categories:
    """A judge answers one of these words."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRange:
    """A judge answers a number, bounds included."""

    min: float
    max: float


Values = YesNo | Categories | NumberRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What every judge and scorer has: whom it looks at, and where it was written."""

    name: str
    filter: str | None = None
    sample_rate: float = 1.0
    target: TargetKind = "trace"
    span_filter: str | None = None
    since: timedelta | None = None
    enabled: bool = True
    path: str = ""
    line: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A case with a known verdict, for `check --examples`."""

    inputs: Any
    outputs: Any
    expect: Literal["pass", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeDefinition(Rule):
    """A guideline judge (`guidelines`, all must hold) or a free one (`instructions`); never both.

    `models` are a panel that votes, `model` is one that judges alone; `escalate_to` is asked when they do not decide.
    """

    guidelines: tuple[str, ...] = ()
    instructions: str | None = None
    values: Values = YesNo()
    pass_if: str | None = None
    model: str | None = None
    models: tuple[str, ...] = ()
    decide: Decision = "majority"
    escalate_to: str | None = None
    trace_view: TraceView = "full"
    batch: Literal["single", "joint"] = "single"
    budget: DailyBudget | None = None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlDefinition(Rule):
    sql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexDefinition(Rule):
    regex: str
    on: Literal["request", "response"] = "response"


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonDefinition(Rule):
    """`python` is `module:name`: a plain function, or one that MLflow's @scorer decorates."""

    python: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinDefinition(Rule):
    builtin: str
    options: Mapping[str, Any] = field(default_factory=dict)


ScorerDefinition = SqlDefinition | RegexDefinition | PythonDefinition | BuiltinDefinition
Definition = JudgeDefinition | ScorerDefinition


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidelines:
    """All enabled judges and scorers of a folder, in the order of files and lines; names are unique."""

    definitions: tuple[Definition, ...] = ()
