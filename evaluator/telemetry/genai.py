"""A call to a judge model, and a result that it led to, in the words of OpenTelemetry's conventions for generative AI.

Source: github.com/open-telemetry/semantic-conventions-genai, the span `gen_ai.client.inference` and the event
`gen_ai.evaluation.result`. What they have no word for begins with `evaluator.`; what nobody knows is left out.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Outcome
from evaluator.models.endpoint import Completion, ModelFailure
from evaluator.models.exchange import Exchange

RESULT = "gen_ai.evaluation.result"

PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""The conventions' names of providers, where they are not litellm's."""

PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "reasoning_effort": "reasoning.level",
}
"""Their names of a request's parameters."""


def span_name(exchange: Exchange) -> str:
    return f"chat {exchange.model.partition('/')[2]}"


def call_attributes(exchange: Exchange) -> dict[str, Any]:
    """What is told of a call: what was asked of whom, what it took, and why it failed if it did."""
    provider, _, model = exchange.model.partition("/")
    outcome = exchange.outcome
    return _known(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDERS.get(provider, provider),
            "gen_ai.request.model": model,
            "gen_ai.output.type": None if exchange.request.schema is None else "json",
            **_asked(exchange.request.parameters),
            **_server(exchange.url),
            "evaluator.judges": list(exchange.judges) or None,
            "evaluator.attempt": exchange.attempt,
            "evaluator.requests": outcome.calls,
            **(_answered(outcome) if isinstance(outcome, Completion) else _failed(outcome)),
        }
    )


def result_attributes(
    name: str, outcome: Outcome, record: Record, redact: Callable[[str], str]
) -> dict[str, Any]:
    """A result: its label and its number (1 where it passes, 0 where it fails), or why there is none."""
    told = {"gen_ai.evaluation.name": name, "gen_ai.response.id": _judged_response(record)}
    if not isinstance(outcome, Feedback):
        why = {"gen_ai.evaluation.explanation": redact(outcome.detail), "error.type": outcome.reason.value}
        return _known({**told, **why})
    if isinstance(outcome.value, str):
        label, score = outcome.value, None if outcome.passed is None else float(outcome.passed)
    else:
        label, score = {True: "pass", False: "fail", None: ""}[outcome.passed], float(outcome.value)
    return _known(
        {
            **told,
            "gen_ai.evaluation.score.label": label or None,
            "gen_ai.evaluation.score.value": score,
            "gen_ai.evaluation.explanation": redact(outcome.rationale),
        }
    )


def _answered(completion: Completion) -> dict[str, Any]:
    finish = completion.finish_reason
    return {
        "gen_ai.response.id": completion.response_id,
        "gen_ai.response.model": completion.response_model,
        "gen_ai.response.finish_reasons": None if finish is None else [finish],
        "gen_ai.usage.input_tokens": completion.input_tokens,
        "gen_ai.usage.output_tokens": completion.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": completion.cached_input_tokens,
        "gen_ai.usage.cache_write.input_tokens": completion.cache_write_tokens,
        "evaluator.cost_usd": completion.cost_usd,
    }


def _failed(failure: ModelFailure) -> dict[str, Any]:
    return {"error.type": failure.reason.value, "http.response.status_code": failure.status}


def _asked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        f"gen_ai.request.{PARAMETERS[name]}": value
        for name, value in parameters.items()
        if name in PARAMETERS and isinstance(value, int | float | str)
    }
    stop = parameters.get("stop")
    if stop:
        told["gen_ai.request.stop_sequences"] = (
            [stop] if isinstance(stop, str) else [str(one) for one in stop]
        )
    return told


def _server(url: str | None) -> dict[str, Any]:
    if url is None:
        return {}
    parts = urlsplit(url)
    return {
        "server.address": parts.hostname,
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def _judged_response(record: Record) -> str | None:
    """The id of the completion that was judged, as the agent's (last) call to a model recorded it."""
    steps = reversed(record.trace.steps) if record.step is None else (record.step,)
    calls = (step.span.attributes for step in steps if step.span_type == "LLM")
    found = (call.get("gen_ai.response.id") for call in calls)
    return next((one for one in found if isinstance(one, str)), None)


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}
