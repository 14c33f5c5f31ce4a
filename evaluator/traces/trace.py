"""A span as it was recorded, a trace as everything after it sees it, and a session of several."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

Status = Literal["OK", "ERROR", "UNSET"]
SpanType = Literal["AGENT", "LLM", "TOOL", "RETRIEVER", "EMBEDDING", "CHAIN", "OTHER"]
NO_ATTRIBUTES: Mapping[str, Any] = {}
"""Of a span that says nothing more; one for all, and never changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanEvent:
    """Something that happened within a span, such as an exception or an older GenAI message event."""

    name: str
    time_unix_nano: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Span(NamedTuple):
    """One span of the spans table, its attributes decoded from JSON text, MAP or VARIANT.

    Ids are lowercase hex; `parent_span_id` is None for a root. Times are None where they are missing.
    A tuple: there are millions, and a frozen dataclass takes five times as long to make.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    name: str = ""
    kind: str = "INTERNAL"
    service_name: str = ""
    start_time_unix_nano: int | None = None
    end_time_unix_nano: int | None = None
    attributes: Mapping[str, Any] = NO_ATTRIBUTES
    events: tuple[SpanEvent, ...] = ()
    status: Status = "UNSET"
    status_message: str = ""
    resource: Mapping[str, Any] = NO_ATTRIBUTES
    scope_name: str = ""

    @property
    def duration_ms(self) -> float | None:
        """From start to end; 0 when the clock went back, None when either time is missing."""
        if self.start_time_unix_nano is None or self.end_time_unix_nano is None:
            return None
        return max(0, self.end_time_unix_nano - self.start_time_unix_nano) / 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation, its roles `system`, `user`, `assistant` or `tool` mostly.

    `tool_calls` holds objects with `name`, `arguments` (JSON) and, where it is known, `id`.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A retrieved document."""

    content: str
    document_id: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one span was, whatever convention wrote it.

    `input` and `output` are text as it was recorded (JSON where that is what it was). Where messages are
    carried, `messages` is the conversation, `request` its last user message, `response` the answer this step
    gave (None: it only called tools) and `tool_calls` what this step asked for; elsewhere `request` and
    `response` are the input and the output.
    """

    span: Span
    span_type: SpanType
    input: str | None = None
    output: str | None = None
    request: str | None = None
    response: str | None = None
    messages: tuple[Message, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cost_usd: float | None = None
    tool_name: str | None = None
    documents: tuple[Document, ...] = ()
    duration_ms: float | None = None
    session_id: str | None = None
    user_id: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A whole trace: the columns that filters, scorers and SQL see, and its steps in the order of time.

    `request` and `response` are text: the last user message and the final answer where the convention
    carries messages, else the JSON. Tokens and cost are summed over LLM spans only; None where no span
    told any. `incomplete`: judged without an ended root, or while it was still growing. Without a root
    `root_span_id` is None, `status` UNSET and `attributes` empty; the rest comes from the spans there are.
    """

    trace_id: str
    service_name: str
    name: str
    session_id: str | None
    user_id: str | None
    status: Status
    status_message: str
    start_time: datetime | None
    end_time: datetime | None
    duration_ms: float | None
    request: str | None
    response: str | None
    model: str | None
    models: tuple[str, ...]
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    span_count: int
    llm_calls: int
    tool_calls: int
    tools: tuple[str, ...]
    retrievals: int
    error_count: int
    tags: Mapping[str, Any]
    attributes: Mapping[str, Any]
    incomplete: bool
    root_span_id: str | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation: its traces in the order of time, each of them a turn, and all of them seen as one trace."""

    session_id: str
    turns: tuple[Trace, ...]
    whole: Trace
