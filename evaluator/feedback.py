"""What came out of a scorer for one target: a feedback, or why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

Value = str | float | int | bool
SourceType = Literal["LLM_JUDGE", "CODE", "HUMAN"]
TargetType = Literal["TRACE", "SPAN", "SESSION"]


class Reason(StrEnum):
    """Why something could not be judged. An error is never a fail."""

    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    AUTHENTICATION = "authentication"
    MISCONFIGURED = "misconfigured"
    CONTEXT_OVERFLOW = "context_overflow"
    CONTENT_FILTER = "content_filter"
    REFUSED = "refused"
    BAD_REPLY = "bad_reply"
    SCORER_FAILED = "scorer_failed"
    SCORER_TIMEOUT = "scorer_timeout"
    NOT_APPLICABLE = "not_applicable"
    BUDGET = "budget"
    PAUSED = "paused"
    ENDPOINT_DOWN = "endpoint_down"
    UNDECIDED = "undecided"

    @property
    def transient(self) -> bool:
        """Whether another attempt later may end otherwise, with nothing changed by anybody."""
        return self in _TRANSIENT

    @property
    def configuration(self) -> bool:
        """Whether the operator has to mend something first: stop before any trace is touched."""
        return self in (Reason.AUTHENTICATION, Reason.MISCONFIGURED)

    @property
    def held_back(self) -> bool:
        """Whether there was no attempt at all: the work is deferred, and due as soon as what holds it back is gone."""
        return self in _HELD_BACK

    @property
    def unanswered(self) -> bool:
        """Whether a model that was called gave no answer at all."""
        return self in _UNANSWERED


_HELD_BACK = frozenset(
    {Reason.BUDGET, Reason.PAUSED, Reason.ENDPOINT_DOWN, Reason.AUTHENTICATION, Reason.MISCONFIGURED}
)
_UNANSWERED = frozenset({Reason.RATE_LIMITED, Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.ENDPOINT_DOWN})
_TRANSIENT = frozenset(
    {Reason.RATE_LIMITED, Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.BAD_REPLY, Reason.SCORER_TIMEOUT}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A result. A pass/fail value is "yes" or "no", as MLflow's judges write it.

    `passed` is None where the scorer has no notion of passing (a category or number without `pass_if`).
    """

    value: Value
    passed: bool | None
    rationale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """No result, and why: `detail` is for people and holds no trace content."""

    reason: Reason
    detail: str


Outcome = Feedback | Unscored


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one result took. `calls` counts requests to models, retries included; `cost_usd` None is unknown."""

    model: str | None = None
    calls: int = 0
    cached: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An outcome with what it took. `metadata` holds JSON values that explain the result further."""

    outcome: Outcome
    usage: Usage = Usage()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a result is attached to. `target_id` is the trace id, `trace:span`, or the session id.

    A session's result is attached to the session's first trace, as MLflow does; that is its `trace_id`.
    """

    type: TargetType
    target_id: str
    trace_id: str
    span_id: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """A trace that was erased, with its spans, for good; or a session, up to a revision: it may have gone on since."""

    target: Target
    revision: int = 0

    def covers(self, target: Target, revision: int) -> bool:
        """Whether a result is one of those that were erased."""
        if self.target.type == "SESSION":
            same = (target.type, target.target_id) == ("SESSION", self.target.target_id)
            return same and revision <= self.revision
        return target.trace_id == self.target.trace_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A final result as the ledger holds it: scored, or finally unscored."""

    seq: int
    target: Target
    name: str
    version: str
    revision: int
    source_type: SourceType
    scored: Scored
    run_id: str
    at: datetime
    trace_start: datetime | None = None
