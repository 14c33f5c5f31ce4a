"""What one convention tells of a span, and how a span's types are called in any of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from evaluator.traces.conventions.messages import messages_in
from evaluator.traces.conventions.values import structure_of, text_of
from evaluator.traces.trace import Document, Message, SpanType

SPAN_TYPES: dict[str, SpanType] = {
    "AGENT": "AGENT",
    "CREATE_AGENT": "AGENT",
    "INVOKE_AGENT": "AGENT",
    "CHAT": "LLM",
    "CHAT_MODEL": "LLM",
    "COMPLETION": "LLM",
    "GENERATE_CONTENT": "LLM",
    "LLM": "LLM",
    "RESPONSE": "LLM",
    "TEXT_COMPLETION": "LLM",
    "EXECUTE_TOOL": "TOOL",
    "TOOL": "TOOL",
    "RETRIEVAL": "RETRIEVER",
    "RETRIEVER": "RETRIEVER",
    "EMBEDDING": "EMBEDDING",
    "EMBEDDINGS": "EMBEDDING",
    "CHAIN": "CHAIN",
    "INVOKE_WORKFLOW": "CHAIN",
    "TASK": "CHAIN",
    "WORKFLOW": "CHAIN",
}
"""Span types, operations and kinds of all conventions; what is not here (guardrail, parser, …) is OTHER."""


class Said(NamedTuple):
    """One side of a span: the text as it was recorded, and the messages that it carries."""

    text: str | None
    messages: tuple[Message, ...] = ()


def said(recorded: Any) -> Said | None:
    """A recorded value, which may be the text of JSON that carries messages; None when there is none."""
    if recorded is None:
        return None
    return Said(text_of(recorded), messages_in(structure_of(recorded)))


@dataclass(slots=True, kw_only=True)
class Reading:
    """None, or empty, is what the convention does not tell."""

    span_type: SpanType | None = None
    input: Said | None = None
    output: Said | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cost_usd: float | None = None
    tool_name: str | None = None
    documents: tuple[Document, ...] = ()
    session_id: str | None = None
    user_id: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def completed(self, other: "Reading") -> "Reading":
        """This reading, with the other's word where this one has none."""
        told = {name: getattr(self, name) for name in _NAMES}
        return replace(other, **{name: value for name, value in told.items() if value not in _UNTOLD})


_NAMES = [each.name for each in fields(Reading)]
_UNTOLD: tuple[Any, ...] = (None, (), {})


def span_type_of(value: Any) -> SpanType | None:
    """The span type that a convention's name for it stands for, in any case."""
    return SPAN_TYPES.get(value.upper()) if isinstance(value, str) else None
