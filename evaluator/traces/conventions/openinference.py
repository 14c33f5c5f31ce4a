"""OpenInference's span attributes: flattened, with an index in the key.

Source: openinference.semconv.trace (openinference-semantic-conventions).
"""

from collections.abc import Mapping
from typing import Any

from evaluator.traces.conventions.messages import documents_in, messages_in
from evaluator.traces.conventions.reading import Reading, Said, said, span_type_of
from evaluator.traces.conventions.values import amount_of, count_of, json_of, name_of, nested, text_of
from evaluator.traces.trace import Message, Span

_FLATTENED = (
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompts",
    "llm.choices",
    "retrieval.documents",
)


def read(span: Span) -> Reading:
    """What OpenInference's attributes tell."""
    attributes = span.attributes
    lists = nested(attributes, _FLATTENED)
    span_type = span_type_of(attributes.get("openinference.span.kind"))
    model = name_of(
        attributes.get("llm.response.model_name"),
        attributes.get("llm.model_name"),
        attributes.get("llm.request.model_name"),
        attributes.get("embedding.model_name"),
    )
    return Reading(
        span_type=span_type or ("LLM" if "llm.model_name" in attributes else None),
        input=_side(
            attributes.get("input.value"),
            messages_in(lists.get("llm.input_messages"))
            or _texts(lists.get("llm.prompts"), "prompt", "user"),
        ),
        output=_side(
            attributes.get("output.value"),
            messages_in(lists.get("llm.output_messages"))
            or _texts(lists.get("llm.choices"), "completion", "assistant"),
        ),
        model=model,
        input_tokens=count_of(attributes.get("llm.token_count.prompt")),
        output_tokens=count_of(attributes.get("llm.token_count.completion")),
        total_tokens=count_of(attributes.get("llm.token_count.total")),
        cost_usd=_cost(attributes),
        tool_name=name_of(attributes.get("tool.name")),
        documents=documents_in(lists.get("retrieval.documents")),
        tags=_tags(json_of(attributes.get("tag.tags"))),
    )


def _side(recorded: Any, messages: tuple[Message, ...]) -> Said | None:
    if not messages:
        return said(recorded)
    text = text_of([{"role": message.role, "content": message.content} for message in messages])
    return Said(text if recorded is None else text_of(recorded), messages)


def _texts(items: Any, key: str, role: str) -> tuple[Message, ...]:
    """The texts of a completions call: `[{"prompt": {"text": …}}]`."""
    inner = [item.get(key) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    texts = [part.get("text") for part in inner if isinstance(part, dict)]
    return tuple(Message(role=role, content=text) for text in texts if isinstance(text, str))


def _cost(attributes: Mapping[str, Any]) -> float | None:
    total = amount_of(attributes.get("llm.cost.total"))
    parts = [amount_of(attributes.get(f"llm.cost.{side}")) for side in ("prompt", "completion")]
    told = [part for part in parts if part is not None]
    return total if total is not None or not told else sum(told)


def _tags(tags: Any) -> Mapping[str, Any]:
    """Labels without values: each of them is true."""
    return {tag: True for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else {}
