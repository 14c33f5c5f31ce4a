"""MLflow's span attributes, whose values are JSON-encoded strings.

Source: mlflow/tracing/constant.py (3.17): SpanAttributeKey, TokenUsageKey, CostKey.
"""

from collections.abc import Mapping
from typing import Any

from evaluator.traces.conventions.messages import documents_in, messages_in
from evaluator.traces.conventions.reading import Reading, Said, span_type_of
from evaluator.traces.conventions.values import amount_of, count_of, id_of, json_of, mapping_of, text_of
from evaluator.traces.trace import Span

TAG = "mlflow.traceTag."


def read(span: Span) -> Reading:
    """What MLflow's attributes tell."""
    attributes = span.attributes
    inputs, outputs = (
        json_of(attributes.get("mlflow.spanInputs")),
        json_of(attributes.get("mlflow.spanOutputs")),
    )
    span_type = span_type_of(json_of(attributes.get("mlflow.spanType")))
    usage = mapping_of(attributes.get("mlflow.chat.tokenUsage"))
    cost = mapping_of(attributes.get("mlflow.llm.cost"))
    return Reading(
        span_type=span_type,
        input=_said(attributes.get("mlflow.spanInputs"), inputs),
        output=_said(attributes.get("mlflow.spanOutputs"), outputs),
        model=_model(attributes, inputs, outputs) if span_type in ("LLM", "EMBEDDING") else None,
        input_tokens=count_of(usage.get("input_tokens")),
        output_tokens=count_of(usage.get("output_tokens")),
        total_tokens=count_of(usage.get("total_tokens")),
        cost_usd=amount_of(cost.get("total_cost")),
        documents=documents_in(outputs) if span_type == "RETRIEVER" else (),
        session_id=id_of(attributes.get("mlflow.trace.session")),
        user_id=id_of(attributes.get("mlflow.trace.user")),
        tags={key.removeprefix(TAG): value for key, value in attributes.items() if key.startswith(TAG)},
    )


def _said(recorded: Any, value: Any) -> Said | None:
    """A text is the text that was encoded, anything else its JSON as it was recorded."""
    if value is None:
        return None
    return Said(value if isinstance(value, str) else text_of(recorded), messages_in(value))


def _model(attributes: Mapping[str, Any], inputs: Any, outputs: Any) -> str | None:
    """The model as MLflow names it, else as the provider's reply or request does."""
    replied, asked = (side.get("model") if isinstance(side, dict) else None for side in (outputs, inputs))
    named = json_of(attributes.get("mlflow.llm.model"))
    return next((name for name in (named, replied, asked) if isinstance(name, str) and name.strip()), None)
