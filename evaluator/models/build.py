"""From a model's name to the model: which endpoint answers, at what price, within which limits."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from urllib.parse import urlsplit

from evaluator.config import DailyBudget, JudgeSettings
from evaluator.errors import ConfigurationError
from evaluator.models import local
from evaluator.models.address import OPENAI, Address, azure_address, databricks_address, openai_address
from evaluator.models.budget import Budget
from evaluator.models.client import OUTPUT_CAP, Model
from evaluator.models.endpoint import Endpoint
from evaluator.models.exchange import Listener
from evaluator.models.learned import LearnedGrants
from evaluator.models.limiter import Limiter
from evaluator.models.litellm import LiteLLMEndpoint
from evaluator.models.local import LOCAL_MODEL, LocalEndpoint
from evaluator.models.openai import OpenAIEndpoint
from evaluator.models.parameters import Dialect
from evaluator.models.prices import Prices, provider_of

KEYS: dict[str, tuple[str, ...]] = {
    # What litellm reads for each provider; any one of them is enough. Providers that also take other
    # credentials (AWS, Google Cloud, Azure identities, Databricks profiles) are not here: only a call can tell.
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "mistral": ("MISTRAL_API_KEY",),
    "groq": ("GROQ_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY"),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "xai": ("XAI_API_KEY",),
    "cerebras": ("CEREBRAS_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
    "deepinfra": ("DEEPINFRA_API_KEY",),
    "replicate": ("REPLICATE_API_KEY", "REPLICATE_API_TOKEN"),
}
LOCAL_NAMES = ("local/smollm2", LOCAL_MODEL)
LOCAL_TIMEOUT = timedelta(minutes=5)
"""The embedded model reads some 150 tokens a second, and fewer beside other work."""
CHARACTERS_PER_TOKEN = 2.5
"""Low for prose, about right for JSON and code: what a window holds at least."""


def canonical(name: str) -> str:
    """A model's name as results carry it: `provider/name`; MLflow's `provider:/name` and short names are read.

    Raises ConfigurationError for what names no model.
    """
    provider, separator, model = name.strip().replace(":/", "/", 1).partition("/")
    if not separator or not provider or not model.strip("/"):
        known = provider_of(name.strip())
        hint = f"{known}/{name.strip()}" if known else "openai/gpt-5-mini or anthropic/claude-sonnet-4-5"
        raise ConfigurationError(f'model "{name}" names no provider: write provider/name, such as {hint}')
    model = f"{provider}/{model.lstrip('/')}"
    if provider == "local":
        if model not in LOCAL_NAMES:
            raise ConfigurationError(f'model "{name}": the embedded model is {LOCAL_MODEL}')
        return LOCAL_MODEL
    return model


def check_model(name: str, settings: JudgeSettings, environment: Mapping[str, str] | None = None) -> None:
    """Raises ConfigurationError for a name or an address that cannot be one; nothing is asked or imported."""
    _own_address(canonical(name), settings, os.environ if environment is None else environment)


def missing_key(
    name: str, settings: JudgeSettings, environment: Mapping[str, str] | None = None
) -> str | None:
    """The environment variable to set before the model can be asked; None when nothing is known to be missing."""
    environment = os.environ if environment is None else environment
    model = canonical(name)
    provider = model.partition("/")[0]
    if model == LOCAL_MODEL or _own_address(model, settings, environment):
        return None
    keys = KEYS.get(provider, ())
    return keys[0] if keys and not any(environment.get(key) for key in keys) else None


def price_missing(
    name: str, settings: JudgeSettings, prices: Prices, own: DailyBudget | None = None
) -> str | None:
    """Why no cap in USD can be held for a model, and what to do; None where it can, or where there is none.

    `own` is the budget of the judge that names it. A cap in tokens is enough where no cap in USD was asked for: the
    day's has a default.
    """
    model, budget = canonical(name), settings.budget
    if prices.price_of(model) is not None:
        return None
    asked = "usd_per_day" in budget.model_fields_set or budget.tokens_per_day is None
    caps = {
        "judge.budget.usd_per_day": budget.usd_per_day if asked else None,
        "judge.budget.usd_per_run": budget.usd_per_run,
        "the judge's budget.usd_per_day": own.usd_per_day if own else None,
    }
    cap = next((cap for cap, usd in caps.items() if usd is not None), None)
    if cap is None:
        return None
    place = "judge.price" if model == canonical(settings.model) else f'prices (as judge.price, for "{model}")'
    return (
        f"nobody knows the price of {model}, so {cap} cannot be held: set {place} to "
        "{input_per_million: …, output_per_million: …} (0 where it costs nothing), or cap tokens_per_day in its place"
    )


def build_model(
    name: str,
    settings: JudgeSettings,
    prices: Prices,
    budget: Budget | None = None,
    environment: Mapping[str, str] | None = None,
    listeners: Sequence[Listener] = (),
    grants: LearnedGrants | None = None,
) -> Model:
    """The model of that name; `listeners` are told of its calls, `grants` knows what its provider granted of late.

    Raises ConfigurationError for a name, an address or an installation that cannot work. A missing key is
    not looked for here: `missing_key` does that where a call is wanted.
    """
    environment = os.environ if environment is None else environment
    model = canonical(name)
    if model == LOCAL_MODEL:
        return Model(
            LocalEndpoint(),
            parameters={**settings.parameters, "max_tokens": local.OUTPUT_TOKENS},
            timeout=max(settings.timeout, LOCAL_TIMEOUT),
            limiter=Limiter(max_concurrency=1),
            budget=budget,
            price=prices.price_of(model),
            input_characters=local.INPUT_CHARACTERS,
            note=local.WIRING_CHECK,
            listeners=listeners,
        )
    window = prices.window_of(model)
    endpoint = build_endpoint(model, settings, environment)
    return Model(
        endpoint,
        parameters=settings.parameters,
        timeout=settings.timeout,
        limiter=Limiter(
            max_concurrency=settings.max_concurrency,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            known=grants.of(model, endpoint.url or "") if grants else None,
        ),
        budget=budget,
        price=prices.price_of(model),
        input_characters=None if window is None else _characters(window),
        listeners=listeners,
    )


def _characters(window: int) -> int:
    """How much material certainly fits a window of so many tokens, beside the task and the reply."""
    return max(int((window - OUTPUT_CAP - 1_000) * CHARACTERS_PER_TOKEN), 2_000)


def build_endpoint(model: str, settings: JudgeSettings, environment: Mapping[str, str]) -> Endpoint:
    """Who is asked for a model of that (canonical) name: directly where we can, else through litellm."""
    provider, _, served = model.partition("/")
    base_url = _own_address(model, settings, environment)
    if provider == "openai":
        return OpenAIEndpoint(
            model,
            address=openai_address(served, base_url or OPENAI, environment.get("OPENAI_API_KEY")),
            # OpenAI's reasoning models know only the newer name; all of its others know both.
            dialect=Dialect({"max_tokens": "max_completion_tokens"} if base_url is None else {}),
        )
    address = _workspace_address(provider, served, base_url, environment)
    return OpenAIEndpoint(model, address=address) if address else LiteLLMEndpoint(model, base_url=base_url)


def _workspace_address(
    provider: str, served: str, base_url: str | None, environment: Mapping[str, str]
) -> Address | None:
    """Where an Azure or Databricks model answers, if its address and a key of it are known.

    Other ways in (identities, profiles, OAuth) are litellm's.
    """
    if provider == "azure":
        host, key = base_url or environment.get("AZURE_API_BASE"), environment.get("AZURE_API_KEY")
        version = environment.get("AZURE_API_VERSION")
        return azure_address(served, host, key, version) if host and key else None
    if provider == "databricks":
        host = base_url or environment.get("DATABRICKS_HOST") or environment.get("DATABRICKS_API_BASE")
        key = environment.get("DATABRICKS_TOKEN") or environment.get("DATABRICKS_API_KEY")
        return databricks_address(served, host, key) if host and key else None
    return None


def _own_address(model: str, settings: JudgeSettings, environment: Mapping[str, str]) -> str | None:
    """`base_url` is about openai/ names, and about the model that the configuration names beside it."""
    provider = model.partition("/")[0]
    if provider == "openai":
        address = (
            settings.base_url or environment.get("OPENAI_BASE_URL") or environment.get("OPENAI_API_BASE")
        )
    else:
        address = settings.base_url if canonical(settings.model) == model else None
    if not address:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"judge.base_url: {address!r} is not an address (write http://host:port/v1, "
            "the part before /chat/completions)"
        )
    return address.rstrip("/").removesuffix("/chat/completions")
