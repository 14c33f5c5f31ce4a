"""The day's caps hold, whatever runs at once."""

import asyncio
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.config import BudgetSettings
from evaluator.feedback import Reason
from evaluator.models.budget import Budget
from evaluator.models.endpoint import ModelFailure

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)

calls = st.lists(
    st.tuples(st.integers(1, 400), st.floats(0, 1), st.integers(0, 5), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=60)
@given(calls, st.integers(0, 2_000), st.floats(0, 2), st.randoms(use_true_random=False))
async def test_concurrent_calls_never_overshoot(
    calls: list[tuple[int, float, int, bool]], max_tokens: int, max_usd: float, chance: random.Random
) -> None:
    budget = Budget(BudgetSettings(usd_per_day=max_usd, tokens_per_day=max_tokens), now=lambda: NOON)
    taken = [0, 0.0]
    refused = 0

    async def call(tokens: int, used: float, yields: int, fails: bool) -> None:
        nonlocal refused
        try:
            async with budget.reserve(tokens, tokens / 1_000) as reservation:
                assert budget.spent_tokens + budget.reserved_tokens <= max_tokens
                for _ in range(yields):
                    await asyncio.sleep(0)
                if fails:
                    return
                reservation.settle(int(tokens * used), tokens * used / 1_000)
                taken[0] += int(tokens * used)
                taken[1] += tokens * used / 1_000
        except ModelFailure as failure:
            refused += failure.reason is Reason.BUDGET

    chance.shuffle(calls)
    await asyncio.wait_for(asyncio.gather(*(call(*one) for one in calls)), timeout=10)

    assert taken[0] <= max_tokens
    assert taken[1] <= max_usd + 1e-9
    assert budget.spent_tokens == taken[0]
    assert budget.spent_usd == pytest.approx(taken[1])
    assert budget.reserved_tokens == 0
    assert refused == 0 or taken[0] + 400 > max_tokens or taken[1] + 0.4 > max_usd


async def test_a_call_waits_for_those_in_flight_rather_than_being_refused() -> None:
    budget = Budget(BudgetSettings(usd_per_day=None, tokens_per_day=100), now=lambda: NOON)
    order = []

    async def call(name: str) -> None:
        async with budget.reserve(80, 0.0) as reservation:
            order.append(name)
            await asyncio.sleep(0)
            reservation.settle(10, 0.0)

    await asyncio.gather(call("first"), call("second"))

    assert order == ["first", "second"]
    assert budget.spent_tokens == 20


async def test_what_was_spent_today_counts_and_a_new_day_begins_anew() -> None:
    now = [NOON]
    budget = Budget(BudgetSettings(usd_per_day=1.0), spent_usd=0.9, now=lambda: now[0])

    with pytest.raises(ModelFailure, match="usd_per_day") as caught:
        async with budget.reserve(10, 0.2):
            pass
    assert caught.value.calls == 0
    now[0] = datetime(2026, 11, 7, tzinfo=UTC)

    async with budget.reserve(10, 0.2) as reservation:
        reservation.settle_whole()

    assert budget.spent_usd == 0.2


async def test_no_cap_is_none() -> None:
    budget = Budget(BudgetSettings(usd_per_day=None, tokens_per_day=None), now=lambda: NOON)

    async with budget.reserve(10**12, 10.0**9) as reservation:
        reservation.settle_whole()

    assert budget.spent_tokens == 10**12
