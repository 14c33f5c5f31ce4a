"""OpenTelemetry's GenAI conventions: today's attributes, the events before them, and the indexed ones before those.

Source: opentelemetry.io, semantic conventions for generative AI (the registry, and the events of 1.27 to
1.36); the indexed `gen_ai.prompt.N.*` and `traceloop.*` as OpenLLMetry writes them.
"""

from collections.abc import Mapping
from typing import Any

from evaluator.traces.conventions.messages import documents_in, messages_in
from evaluator.traces.conventions.reading import Reading, Said, said, span_type_of
from evaluator.traces.conventions.values import (
    amount_of,
    count_of,
    json_of,
    mapping_of,
    name_of,
    nested,
    structure_of,
    text_of,
)
from evaluator.traces.trace import Message, Span, SpanEvent, SpanType

_DETAILS = "gen_ai.client.inference.operation.details"
_ROLE_OF_EVENT = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}


def read(span: Span) -> Reading:
    """What the GenAI attributes and events tell."""
    attributes = _with_details(span)
    return Reading(
        span_type=_span_type(attributes),
        input=_input(attributes, span.events),
        output=_output(attributes, span.events),
        model=name_of(attributes.get("gen_ai.response.model"), attributes.get("gen_ai.request.model")),
        input_tokens=count_of(
            attributes.get("gen_ai.usage.input_tokens"), attributes.get("gen_ai.usage.prompt_tokens")
        ),
        output_tokens=count_of(
            attributes.get("gen_ai.usage.output_tokens"), attributes.get("gen_ai.usage.completion_tokens")
        ),
        total_tokens=count_of(
            attributes.get("gen_ai.usage.total_tokens"), attributes.get("llm.usage.total_tokens")
        ),
        cost_usd=amount_of(attributes.get("gen_ai.usage.cost")),
        tool_name=name_of(attributes.get("gen_ai.tool.name")),
        documents=documents_in(attributes.get("gen_ai.retrieval.documents")),
        session_id=name_of(attributes.get("gen_ai.conversation.id")),
    )


def _with_details(span: Span) -> Mapping[str, Any]:
    """The attributes, with those that were recorded as the event of the operation's details."""
    for event in span.events:
        if event.name == _DETAILS:
            return {**event.attributes, **span.attributes}
    return span.attributes


def _span_type(attributes: Mapping[str, Any]) -> SpanType | None:
    operation = attributes.get("gen_ai.operation.name")
    if isinstance(operation, str) and operation:
        return span_type_of(operation) or "OTHER"
    if "gen_ai.tool.name" in attributes:
        return "TOOL"
    if "gen_ai.request.model" in attributes:
        return "LLM"
    return span_type_of(attributes.get("traceloop.span.kind"))


def _input(attributes: Mapping[str, Any], events: tuple[SpanEvent, ...]) -> Said | None:
    recorded = attributes.get("gen_ai.input.messages")
    if recorded is not None:
        return Said(text_of(recorded), (*_instructions(attributes), *messages_in(structure_of(recorded))))
    if "gen_ai.tool.call.arguments" in attributes:
        return said(attributes["gen_ai.tool.call.arguments"])
    return (
        _of_events(events, _ROLE_OF_EVENT, "gen_ai.content.prompt", "gen_ai.prompt")
        or _of_indexed(attributes, "gen_ai.prompt", "user")
        or said(attributes.get("gen_ai.prompt"))
        or said(attributes.get("gen_ai.retrieval.query.text"))
        or said(attributes.get("traceloop.entity.input"))
    )


def _output(attributes: Mapping[str, Any], events: tuple[SpanEvent, ...]) -> Said | None:
    for key in ("gen_ai.output.messages", "gen_ai.tool.call.result"):
        if key in attributes:
            return said(attributes[key])
    return (
        _of_events(events, {"gen_ai.choice": "assistant"}, "gen_ai.content.completion", "gen_ai.completion")
        or _of_indexed(attributes, "gen_ai.completion", "assistant")
        or said(attributes.get("gen_ai.completion"))
        or said(attributes.get("gen_ai.retrieval.documents"))
        or said(attributes.get("traceloop.entity.output"))
    )


def _instructions(attributes: Mapping[str, Any]) -> tuple[Message, ...]:
    given = structure_of(attributes.get("gen_ai.system_instructions"))
    return messages_in([{"role": "system", "content": given}]) if given else ()


def _of_events(
    events: tuple[SpanEvent, ...], roles: Mapping[str, str], content_event: str, content_key: str
) -> Said | None:
    """One message an event; before that all of them in one event's attribute."""
    spoken = [_event_message(event, roles[event.name]) for event in events if event.name in roles]
    if spoken:
        return Said(text_of(spoken), messages_in(spoken))
    whole = next((event.attributes.get(content_key) for event in events if event.name == content_event), None)
    return said(whole)


def _event_message(event: SpanEvent, role: str) -> Mapping[str, Any]:
    """A message event's body: attributes of its own, or JSON in one attribute, or a choice's `message`."""
    body = {**event.attributes, **mapping_of(event.attributes.get("gen_ai.event.content"))}
    inner = structure_of(body.get("message"))
    if isinstance(inner, dict):
        body = {**body, **inner}
    elif isinstance(inner, str):
        body["content"] = inner
    own_role = body.get("role")
    message = {
        "role": own_role if isinstance(own_role, str) else role,
        "content": _parts_or_text(body.get("content")),
    }
    calls = json_of(body.get("tool_calls"))
    return {**message, "tool_calls": calls} if calls else message


def _parts_or_text(content: Any) -> Any:
    """A content that was written as JSON is a list of parts; other JSON is what somebody said."""
    parts = structure_of(content)
    return parts if isinstance(parts, list) and all(isinstance(part, dict) for part in parts) else content


def _of_indexed(attributes: Mapping[str, Any], prefix: str, role: str) -> Said | None:
    """`gen_ai.prompt.0.role`, `gen_ai.prompt.0.content`, `gen_ai.completion.0.tool_calls.0.name`."""
    items = nested(attributes, (prefix,)).get(prefix)
    if not isinstance(items, list):
        return None
    spoken = [
        {"role": role, **item, "content": _parts_or_text(item.get("content"))}
        for item in items
        if isinstance(item, dict)
    ]
    return Said(text_of(spoken), messages_in(spoken)) if spoken else None
