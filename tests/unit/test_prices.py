"""What a model costs, from litellm's table and the configuration."""

import subprocess
import sys

import pytest

from evaluator.config import PriceSettings
from evaluator.models.prices import Price, Prices


def test_prices_are_read_without_importing_litellm() -> None:
    code = (
        "import sys\n"
        "from evaluator.models.prices import Prices\n"
        "assert Prices().price_of('openai/gpt-5-mini')\n"
        "loaded = {'litellm', 'openai', 'httpx', 'tiktoken'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-5-mini",
        "anthropic/claude-sonnet-4-5",
        "gemini/gemini-2.5-flash",
        "azure/gpt-4o",
        "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0",
    ],
)
def test_well_known_models_have_a_price_and_a_window(model: str) -> None:
    prices = Prices()

    price = prices.price_of(model)

    assert price is not None
    assert 0 < price.input_usd < price.output_usd < 1e-3
    assert (prices.window_of(model) or 0) >= 100_000


@pytest.mark.parametrize("model", ["openai/my-own", "anthropic/gpt-5-mini", "sample_spec", "nobody/nothing"])
def test_what_nobody_knows_is_unknown_and_not_free(model: str) -> None:
    assert Prices().price_of(model) is None


def test_the_embedded_model_is_free() -> None:
    price = Prices().price_of("local/smollm2-135m")

    assert price is not None
    assert price.cost(1_000, 1_000) == 0.0


def test_the_configuration_s_price_comes_first_however_the_model_is_spelled() -> None:
    own = PriceSettings(input_per_million=1.0, output_per_million=2.0)

    prices = Prices({"anthropic/claude-sonnet-4-5": own, "openai:/gpt-5-mini": own})

    assert prices.price_of("openai/gpt-5-mini") == Price(input_usd=1e-6, output_usd=2e-6)
    assert prices.price_of("anthropic/claude-sonnet-4-5") == Price(input_usd=1e-6, output_usd=2e-6)


def test_cached_input_costs_what_it_costs() -> None:
    price = Price(input_usd=10.0, output_usd=100.0, cached_input_usd=1.0)

    assert price.cost(5, 2, 3) == 2 * 10 + 3 * 1 + 200
    assert price.cost(5, 2) == 250
    assert Price(input_usd=10.0, output_usd=0.0).cost(5, 0, 3) == 50


def test_what_is_written_to_a_cache_and_read_from_it_has_prices_of_its_own() -> None:
    price = Price(input_usd=2.0, output_usd=10.0, cached_input_usd=0.5, cache_write_usd=3.0)

    assert price.cost(10, 1, cached_input_tokens=4, cache_write_tokens=2) == 4 * 2 + 4 * 0.5 + 2 * 3 + 10
    assert price.cost(10, 1, cached_input_tokens=8, cache_write_tokens=9) == 8 * 0.5 + 2 * 3 + 10
    assert price.most(10, 1) == 10 * 3 + 10
    assert Price(input_usd=2.0, output_usd=10.0).most(10, 1) == 30
