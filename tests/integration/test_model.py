"""A model around a real endpoint: retries, deadlines, pauses and the budget, against a stub provider."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from evaluator.config import BudgetSettings, JudgeSettings, PriceSettings
from evaluator.feedback import Reason
from evaluator.guidelines.definitions import YesNo
from evaluator.models.account import ALL, PrivateAccounts
from evaluator.models.address import openai_address
from evaluator.models.budget import Budget
from evaluator.models.build import build_model
from evaluator.models.client import TRIES, Model
from evaluator.models.endpoint import ModelFailure
from evaluator.models.limiter import Limiter
from evaluator.models.openai import OpenAIEndpoint
from evaluator.models.prices import Price, Prices
from evaluator.scorers.reply import reply_schema
from tests.stub_provider import StubProvider, prompt_of

SCHEMA = reply_schema(YesNo())
ROUNDING = 1e-12
"""By how much a sum of fractions of a cent may miss itself, in USD."""


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@asynccontextmanager
async def a_model(stub: StubProvider, *, in_flight: int = 16, **options: Any) -> AsyncIterator[Model]:
    options = {"timeout": timedelta(seconds=5), "longest_backoff": timedelta(milliseconds=20), **options}
    options.setdefault("limiter", Limiter(max_concurrency=in_flight))
    model = Model(OpenAIEndpoint("openai/stub", address=openai_address("stub", stub.base_url)), **options)
    try:
        yield model
    finally:
        await model.close()


def a_prompt(text: str = "Is the sky blue?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("fault", ["500", "429", "reset", "half", "gzip", "error_in_200", "html"])
async def test_what_passes_by_is_tried_again(fault: str, stub: StubProvider) -> None:
    stub.retry_after = "0.05"
    stub.script = [fault, fault, fault]
    async with a_model(stub) as model:
        completion = await model.complete(a_prompt(), SCHEMA)

    assert completion.calls == TRIES == len(stub.requests)
    assert (model.counts.calls, model.counts.retries) == (4, 3)
    assert model.counts.rate_limited == (3 if fault == "429" else 0)


async def test_after_the_last_try_the_failure_tells_its_reason_and_calls(stub: StubProvider) -> None:
    stub.script = ["500"] * 10
    async with a_model(stub) as model:
        with pytest.raises(ModelFailure) as caught:
            await model.complete(a_prompt(), SCHEMA)

    assert caught.value.reason is Reason.UNAVAILABLE
    assert caught.value.calls == TRIES == len(stub.requests)


@pytest.mark.parametrize("fault", ["overflow", "filter"])
async def test_what_lasts_is_not_tried_again(fault: str, stub: StubProvider) -> None:
    stub.script = [fault]
    async with a_model(stub) as model:
        try:
            await model.complete(a_prompt(), SCHEMA)
        except ModelFailure as failure:
            fault = failure.reason

    assert fault in (Reason.CONTEXT_OVERFLOW, "filter")
    assert len(stub.requests) == 1


async def test_a_hung_call_ends_at_the_deadline_and_holds_up_nobody_else(stub: StubProvider) -> None:
    stub.script = ["ok", "hang"]
    async with a_model(stub, in_flight=2, timeout=timedelta(seconds=0.3)) as model:
        await model.complete(a_prompt("first"), SCHEMA)
        started = time.monotonic()
        answers = await asyncio.gather(
            *(model.complete(a_prompt(str(number)), SCHEMA) for number in range(20))
        )

    assert time.monotonic() - started < 3
    assert sorted(answer.calls for answer in answers) == [1] * 19 + [2]


async def test_a_pause_is_shared_by_all_calls(stub: StubProvider) -> None:
    stub.retry_after = "0.5"
    stub.script = ["ok", "429"]
    async with a_model(stub, in_flight=4) as model:
        await model.complete(a_prompt("first"), SCHEMA)
        limited = asyncio.create_task(model.complete(a_prompt("limited"), SCHEMA))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await model.complete(a_prompt("another"), SCHEMA)
        waited = time.monotonic() - started
        await limited

    assert waited > 0.2
    assert model.counts.rate_limited == 1


async def test_a_pause_longer_than_a_tick_waits_is_not_waited_for(stub: StubProvider) -> None:
    stub.retry_after = "3600"
    stub.script = ["429"]
    async with a_model(stub) as model:
        for calls, reason in ((1, Reason.RATE_LIMITED), (0, Reason.ENDPOINT_DOWN)):
            with pytest.raises(ModelFailure) as caught:
                await model.complete(a_prompt(), SCHEMA)
            assert (caught.value.reason, caught.value.calls) == (reason, calls)

    assert len(stub.requests) == 1


@pytest.mark.parametrize("asked", [None, "date"])
async def test_a_refusal_without_a_pause_or_with_a_date_is_waited_for(
    asked: str | None, stub: StubProvider
) -> None:
    at = datetime.now(UTC) + timedelta(seconds=1)
    stub.retry_after = None if asked is None else format_datetime(at, usegmt=True)
    stub.script = ["429"]
    async with a_model(stub) as model:
        completion = await model.complete(a_prompt(), SCHEMA)

    assert completion.calls == 2


async def test_a_provider_that_only_fails_is_left_alone_and_found_again_with_one_question(
    stub: StubProvider,
) -> None:
    clock = [0.0]
    stub.script = ["500"] * 1_000
    async with a_model(stub, seconds=lambda: clock[0]) as model:
        failures = await asyncio.gather(
            *(model.complete(a_prompt(str(number)), SCHEMA) for number in range(60)), return_exceptions=True
        )
        asked = len(stub.requests)
        clock[0] += 61
        still_down = await asyncio.gather(
            *(model.complete(a_prompt(str(number)), SCHEMA) for number in range(20)), return_exceptions=True
        )
        probes = len(stub.requests) - asked
        stub.script = []
        clock[0] += 200
        again = await asyncio.gather(*(model.complete(a_prompt(str(number)), SCHEMA) for number in range(20)))

    reasons = Counter(failure.reason for failure in failures if isinstance(failure, ModelFailure))
    assert set(reasons) == {Reason.UNAVAILABLE, Reason.ENDPOINT_DOWN}
    assert 36 <= asked <= 60
    assert all(
        failure.calls == 0
        for failure in failures
        if isinstance(failure, ModelFailure) and failure.reason is Reason.ENDPOINT_DOWN
    )
    assert probes == 1
    assert {failure.reason for failure in still_down if isinstance(failure, ModelFailure)} == {
        Reason.ENDPOINT_DOWN
    }
    assert sum(answer.calls for answer in again) == 21


async def test_a_turn_that_does_not_come_in_time_is_given_back(stub: StubProvider) -> None:
    stub.script = ["ok", "hang"]
    async with a_model(stub, in_flight=1, timeout=timedelta(seconds=1)) as model:
        await model.complete(a_prompt("first"), SCHEMA)
        model.limiter.patience = timedelta(seconds=0.1)
        hung = asyncio.create_task(model.complete(a_prompt("hung"), SCHEMA))
        await asyncio.sleep(0.05)
        with pytest.raises(ModelFailure, match="its turn did not come") as caught:
            await model.complete(a_prompt("waits"), SCHEMA)
        answer = await hung

    assert (caught.value.reason, caught.value.calls) == (Reason.ENDPOINT_DOWN, 0)
    assert answer.calls == 2
    assert model.limiter.in_flight == 0


@pytest.mark.parametrize("fault", ["401", "404", "400"])
async def test_a_misconfigured_model_costs_two_calls_however_many_ask(fault: str, stub: StubProvider) -> None:
    stub.script = [fault] * 100
    async with a_model(stub) as model:
        failures = await asyncio.gather(
            *(model.complete(a_prompt(str(number)), SCHEMA) for number in range(50)), return_exceptions=True
        )

    assert all(isinstance(failure, ModelFailure) and failure.reason.configuration for failure in failures)
    assert len(stub.requests) == 2


@pytest.mark.parametrize("fault", ["400", "403"])
async def test_one_prompt_that_a_provider_rejects_does_not_stop_the_others(
    fault: str, stub: StubProvider
) -> None:
    stub.script = [fault, "ok", fault, "ok"]
    async with a_model(stub) as model:
        with pytest.raises(ModelFailure, match="for this prompt only") as caught:
            await model.complete(a_prompt("poison"), SCHEMA)
        await model.complete(a_prompt("plain"), SCHEMA)

    assert caught.value.reason is Reason.REFUSED
    assert caught.value.calls == 4
    assert "poison" not in caught.value.detail
    assert "poison" not in str(stub.requests[1])


async def test_a_key_that_is_accepted_for_one_prompt_is_no_matter_of_the_other(stub: StubProvider) -> None:
    stub.script = ["401", "ok"] * 4
    async with a_model(stub) as model:
        with pytest.raises(ModelFailure, match="HTTP 401") as caught:
            await model.complete(a_prompt("a"), SCHEMA)

    assert (caught.value.reason, caught.value.calls) == (Reason.UNAVAILABLE, 8)


async def test_many_rejected_at_once_are_told_apart_by_one_plain_question(stub: StubProvider) -> None:
    stub.latency = 0.02
    async with a_model(stub, in_flight=8) as model:
        await model.complete(a_prompt("first"), SCHEMA)
        stub.script = ["401"] * 100
        failures = await asyncio.gather(
            *(model.complete(a_prompt(str(number)), SCHEMA) for number in range(40)), return_exceptions=True
        )

    assert all(isinstance(failure, ModelFailure) and failure.reason.configuration for failure in failures)
    plain = [request for request in stub.requests if "ready" in prompt_of(request)]
    assert len(plain) == 1
    assert len(stub.requests) <= 1 + 8 + 1 + 8  # in flight, the plain question, and who took their places
    assert sum(failure.calls for failure in failures if isinstance(failure, ModelFailure)) == stub.count - 1


async def test_a_probe_tells_what_the_provider_said(stub: StubProvider) -> None:
    stub.script = ["404"]
    async with a_model(stub) as model:
        with pytest.raises(ModelFailure, match="The model `stub` does not exist"):
            await model.probe()
        assert (await model.probe()).calls == 1


async def test_concurrency_stays_within_its_bound(stub: StubProvider) -> None:
    stub.latency = 0.02
    async with a_model(stub, in_flight=3) as model:
        await asyncio.gather(*(model.complete(a_prompt(str(number)), SCHEMA) for number in range(12)))

    assert stub.most_in_flight == 3


async def test_requests_a_minute_are_kept(stub: StubProvider) -> None:
    limiter = Limiter(max_concurrency=16, requests_per_minute=1_200)
    async with a_model(stub, limiter=limiter) as model:
        started = time.monotonic()
        await asyncio.gather(*(model.complete(a_prompt(str(number)), SCHEMA) for number in range(11)))

    assert time.monotonic() - started >= 0.5


async def test_a_call_costs_what_the_price_says_cached_input_included(stub: StubProvider) -> None:
    stub.cached_tokens = 2
    price = Price(input_usd=10.0, output_usd=100.0, cached_input_usd=1.0)
    async with a_model(stub, price=price) as model:
        answer = await model.complete(a_prompt(), SCHEMA)

    assert answer.input_tokens is not None
    assert answer.output_tokens is not None
    assert answer.cost_usd == (answer.input_tokens - 2) * 10 + 2 + answer.output_tokens * 100


async def test_a_cost_that_nobody_knows_is_unknown(stub: StubProvider) -> None:
    async with a_model(stub) as model:
        assert (await model.complete(a_prompt(), SCHEMA)).cost_usd is None


async def test_the_budget_ends_the_calls_and_is_never_overshot(stub: StubProvider) -> None:
    accounts = PrivateAccounts()
    budget = Budget(BudgetSettings(usd_per_day=0.01), accounts=accounts)
    price = Price(input_usd=1e-6, output_usd=2e-6)
    async with a_model(stub, price=price, budget=budget, parameters={"max_tokens": 1_000}) as model:
        answers = await asyncio.gather(
            *(model.complete(a_prompt("word " * 200 + str(number)), SCHEMA) for number in range(60)),
            return_exceptions=True,
        )

    refused = [answer for answer in answers if isinstance(answer, ModelFailure)]
    assert {failure.reason for failure in refused} == {Reason.BUDGET}
    assert 0 < len(refused) < 60
    assert len(stub.requests) == 60 - len(refused)
    today = datetime.now(UTC).date()
    assert accounts.read(today).taken().usd <= 0.01 + ROUNDING
    await budget.settle()
    assert 0.005 < accounts.read(today).spent[ALL].usd <= 0.01 + ROUNDING


async def test_a_model_is_built_from_the_configuration(stub: StubProvider) -> None:
    settings = JudgeSettings(
        model="openai:/mine",
        base_url=f"{stub.base_url}/",
        parameters={"temperature": 0.5},
    )
    prices = Prices({"openai/mine": PriceSettings(input_per_million=1e6, output_per_million=0)})
    model = build_model(settings.model, settings, prices, environment={"OPENAI_API_KEY": "sk-1"})

    answer = await model.complete(a_prompt(), SCHEMA)
    await model.close()

    assert model.name == answer.model == "openai/mine"
    assert answer.cost_usd == answer.input_tokens
    assert stub.requests[0]["model"] == "mine"
    assert stub.requests[0]["temperature"] == 0.5
    assert stub.headers[0]["Authorization"] == "Bearer sk-1"
