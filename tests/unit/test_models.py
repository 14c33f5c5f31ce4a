"""From a name to a model, and what a model was found to take."""

import pytest

from evaluator.config import JudgeSettings
from evaluator.errors import ConfigurationError
from evaluator.models.build import build_endpoint, build_model, canonical, missing_key
from evaluator.models.litellm import LiteLLMEndpoint
from evaluator.models.local import LOCAL_MODEL, available, bounded
from evaluator.models.openai import OpenAIEndpoint
from evaluator.models.parameters import Dialect
from evaluator.models.prices import Prices

GATEWAY = JudgeSettings(model="openai/mine", base_url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("openai/gpt-5-mini", "openai/gpt-5-mini"),
        ("openai:/gpt-5-mini", "openai/gpt-5-mini"),
        (" anthropic:/claude-sonnet-4-5 ", "anthropic/claude-sonnet-4-5"),
        ("openrouter/meta-llama/llama-3.3-70b", "openrouter/meta-llama/llama-3.3-70b"),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", "bedrock/anthropic.claude-3-haiku-20240307-v1:0"),
        ("local/smollm2", LOCAL_MODEL),
        ("local:/smollm2-135m", LOCAL_MODEL),
    ],
)
def test_every_spelling_of_a_model_has_one_name(name: str, model: str) -> None:
    assert canonical(name) == model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt-5-mini", "such as openai/gpt-5-mini"),
        ("", "names no provider"),
        ("openai/", "names no provider"),
        ("local/llama", "the embedded model is local/smollm2-135m"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_with_a_way_out(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_model(name, JudgeSettings(), Prices(), environment={})


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"judge\.base_url.*write http://"):
        build_model(
            "openai/mine",
            JudgeSettings(model="openai/mine", base_url="localhost:8000"),
            Prices(),
            environment={},
        )


@pytest.mark.parametrize(
    ("name", "settings", "environment", "key"),
    [
        ("openai/gpt-5-mini", JudgeSettings(), {}, "OPENAI_API_KEY"),
        ("openai:/gpt-5-mini", JudgeSettings(), {"OPENAI_API_KEY": "sk"}, None),
        ("openai/mine", GATEWAY, {}, None),
        ("anthropic/claude-sonnet-4-5", GATEWAY, {}, "ANTHROPIC_API_KEY"),
        ("gemini/gemini-2.5-flash", GATEWAY, {"GOOGLE_API_KEY": "k"}, None),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", GATEWAY, {}, None),
        (LOCAL_MODEL, GATEWAY, {}, None),
    ],
)
def test_a_missing_key_is_named(
    name: str, settings: JudgeSettings, environment: dict[str, str], key: str | None
) -> None:
    assert missing_key(name, settings, environment) == key


@pytest.mark.skipif(not available(), reason="no embedded model on this platform")
def test_the_embedded_model_says_what_it_is_worth() -> None:
    model = build_model("local/smollm2", JudgeSettings(), Prices(), environment={})

    assert model.name == LOCAL_MODEL
    assert "chance" in (model.note or "")


def test_free_texts_of_the_embedded_model_are_bounded() -> None:
    schema = {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, "result": {"type": "string", "enum": ["yes"]}},
    }

    bound = bounded(schema)

    assert bound["properties"]["rationale"]["maxLength"] > 0
    assert "maxLength" not in bound["properties"]["result"]
    assert "maxLength" not in schema["properties"]["rationale"]


@pytest.mark.parametrize(
    ("error", "spoken"),
    [
        (
            {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "param": "max_tokens"},
            {"temperature": 0, "max_completion_tokens": 4096},
        ),
        (
            {"message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.", "param": "temperature"},
            {"max_tokens": 4096},
        ),
        ({"message": "temperature: Extra inputs are not permitted"}, {"max_tokens": 4096}),
        ({"message": "max_tokens is too large: 4096. This model supports at most 2048"}, {"temperature": 0, "max_tokens": 2048}),
        (
            {"message": "maximum context length is 4096 tokens. However, you requested 5000 tokens (904 in the messages, 4096 in the completion)."},
            {"temperature": 0, "max_tokens": 2048},
        ),
    ],
)  # fmt: skip
def test_a_rejection_is_learned_from(error: dict[str, str], spoken: dict[str, int]) -> None:
    dialect = Dialect()
    sent = {"temperature": 0, "max_tokens": 4096}

    assert dialect.learn(sent, error)
    assert dialect.spoken(sent) == spoken


@pytest.mark.parametrize(
    "message",
    ["", "Invalid request", "maximum context length is 4096 tokens, you sent 9000", "messages: invalid"],
)
def test_what_is_no_rejection_of_a_parameter_teaches_nothing(message: str) -> None:
    assert not Dialect().learn({"temperature": 0, "max_tokens": 4096}, {"message": message})


def test_an_output_cap_is_not_lowered_for_ever() -> None:
    dialect = Dialect()
    wanted = {"max_tokens": 4096}
    tries = 0

    while dialect.learn(dialect.spoken(wanted), {"message": "max_tokens is too large"}):
        tries += 1

    assert tries < 6
    assert dialect.spoken(wanted)["max_tokens"] == 256


@pytest.mark.parametrize(
    ("name", "environment", "url"),
    [
        (
            "azure/judge",
            {"AZURE_API_BASE": "https://us.openai.azure.com/", "AZURE_API_KEY": "k", "AZURE_API_VERSION": "2024-10-21"},
            "https://us.openai.azure.com/openai/deployments/judge/chat/completions?api-version=2024-10-21",
        ),
        (
            "azure/judge",
            {"AZURE_API_BASE": "https://us.openai.azure.com/openai/v1", "AZURE_API_KEY": "k"},
            "https://us.openai.azure.com/openai/v1/chat/completions",
        ),
        ("azure/judge", {"AZURE_API_BASE": "https://us.openai.azure.com"}, None),
        (
            "databricks/databricks-claude-sonnet-4-5",
            {"DATABRICKS_HOST": "adb-1.azuredatabricks.net", "DATABRICKS_TOKEN": "t"},
            "https://adb-1.azuredatabricks.net/serving-endpoints/databricks-claude-sonnet-4-5/invocations",
        ),
        (
            "databricks/mine",
            {"DATABRICKS_API_BASE": "https://w.databricks.com/serving-endpoints", "DATABRICKS_API_KEY": "t"},
            "https://w.databricks.com/serving-endpoints/mine/invocations",
        ),
        ("databricks/mine", {"DATABRICKS_HOST": "w.databricks.com", "DATABRICKS_CLIENT_ID": "c"}, None),
    ],
)  # fmt: skip
def test_a_workspace_s_model_is_asked_directly_where_its_address_and_key_are_known(
    name: str, environment: dict[str, str], url: str | None
) -> None:
    endpoint = build_endpoint(name, JudgeSettings(), environment)

    assert isinstance(endpoint, LiteLLMEndpoint if url is None else OpenAIEndpoint)
    if isinstance(endpoint, OpenAIEndpoint):
        assert endpoint.url == url


def test_the_cap_that_a_budget_reckons_with_is_renamed_and_never_left_out() -> None:
    dialect = Dialect()
    sent = {"max_tokens": 4096}

    assert dialect.learn(sent, {"param": "max_tokens", "message": "Unsupported parameter"})
    again = dialect.spoken(sent)
    learned = dialect.learn(again, {"param": "max_completion_tokens", "message": "Unsupported parameter"})

    assert again == dialect.spoken(sent) == {"max_completion_tokens": 4096}
    assert not learned
