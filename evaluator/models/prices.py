"""What a model costs and how much it can read, from litellm's table, without importing litellm."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from evaluator.config import Config, PriceSettings

TABLE = "model_prices_and_context_window_backup.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A model's price in USD for one token. Input that the provider had cached may cost less."""

    input_usd: float
    output_usd: float
    cached_input_usd: float | None = None
    cache_write_usd: float | None = None

    @property
    def caches(self) -> bool:
        """Whether cached input is known to cost less."""
        return self.cached_input_usd is not None and self.cached_input_usd < self.input_usd

    def cost(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_input_tokens: int | None = None,
        cache_write_tokens: int | None = None,
    ) -> float:
        """USD; `input_tokens` include those that were cached, and those that the provider wrote to its cache."""
        cached = min(cached_input_tokens or 0, input_tokens)
        written = min(cache_write_tokens or 0, input_tokens - cached)
        cached_usd = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        write_usd = self.input_usd if self.cache_write_usd is None else self.cache_write_usd
        plain = input_tokens - cached - written
        return (
            plain * self.input_usd
            + cached * cached_usd
            + written * write_usd
            + output_tokens * self.output_usd
        )

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """USD that so many tokens can cost: a provider may take more for input that it writes to its cache."""
        return max(
            self.cost(input_tokens, output_tokens),
            self.cost(input_tokens, output_tokens, cache_write_tokens=input_tokens),
        )


FREE = Price(input_usd=0.0, output_usd=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What litellm's table says of one model; windows are in tokens."""

    provider: str
    price: Price | None
    max_input_tokens: int | None


class Prices:
    """Prices by model name as results carry it (`provider/name`); what the configuration says comes first."""

    def __init__(self, overrides: Mapping[str, PriceSettings] | None = None) -> None:
        self._overrides = {
            name.replace(":/", "/", 1): Price(
                input_usd=price.input_per_million / 1e6, output_usd=price.output_per_million / 1e6
            )
            for name, price in (overrides or {}).items()
        }

    def price_of(self, model: str) -> Price | None:
        """The price, or None where nobody knows it: then a cost is unknown and never zero."""
        if model in self._overrides:
            return self._overrides[model]
        if model.startswith("local/"):
            return FREE
        entry = lookup(model)
        return entry.price if entry else None

    def window_of(self, model: str) -> int | None:
        """How many tokens the model can read, or None where the table does not know it."""
        entry = lookup(model)
        return entry.max_input_tokens if entry else None


def prices_of(config: Config) -> Prices:
    """What models cost: as the configuration says, else as litellm's table does."""
    own = {config.judge.model: config.judge.price} if config.judge.price else {}
    return Prices({**config.prices, **own})


def lookup(model: str) -> Entry | None:
    """The table's entry of `provider/name`: under its full name, or under the bare one where the provider is the same."""
    table = _table()
    if model in table:
        return table[model]
    provider, _, name = model.partition("/")
    entry = table.get(name)
    return entry if entry and entry.provider.startswith(provider) else None


def provider_of(name: str) -> str | None:
    """The provider that the table has for a bare model name, for a hint."""
    entry = _table().get(name)
    return entry.provider if entry else None


@cache
def _table() -> Mapping[str, Entry]:
    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    file = Path(spec.submodule_search_locations[0]) / TABLE
    if not file.is_file():
        return {}
    entries: dict[str, Any] = orjson.loads(file.read_bytes())
    return {
        name: _entry(entry)
        for name, entry in entries.items()
        if isinstance(entry, dict) and name != "sample_spec" and entry.get("mode") in ("chat", "responses")
    }


def _entry(entry: Mapping[str, Any]) -> Entry:
    input_usd = entry.get("input_cost_per_token")
    output_usd = entry.get("output_cost_per_token")
    window = entry.get("max_input_tokens")
    known = isinstance(input_usd, int | float) and isinstance(output_usd, int | float)
    return Entry(
        provider=str(entry.get("litellm_provider", "")),
        price=Price(
            input_usd=input_usd or 0.0,
            output_usd=output_usd or 0.0,
            cached_input_usd=entry.get("cache_read_input_token_cost"),
            cache_write_usd=entry.get("cache_creation_input_token_cost"),
        )
        if known
        else None,
        max_input_tokens=window if isinstance(window, int) else None,
    )
