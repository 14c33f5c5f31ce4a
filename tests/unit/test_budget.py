"""The caps hold, whatever runs at once."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.config import BudgetSettings, DailyBudget
from evaluator.errors import TableError
from evaluator.feedback import Reason
from evaluator.models.account import ALL, NOTHING, Account, Amount, PrivateAccounts
from evaluator.models.budget import Budget, NoRoom
from evaluator.models.endpoint import ModelFailure

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)
TODAY = NOON.date()

Call = tuple[int, float, int, bool, str]
calls = st.lists(
    st.tuples(
        st.integers(1, 400),
        st.floats(0, 1),
        st.integers(0, 5),
        st.booleans(),
        st.sampled_from(["tone", "facts"]),
    ),
    min_size=1,
    max_size=40,
)


def a_budget(accounts: PrivateAccounts | None = None, **caps: float | None) -> Budget:
    settings = BudgetSettings.model_validate({"usd_per_day": None, **caps})
    return Budget(settings, accounts=accounts or PrivateAccounts(), now=lambda: NOON)


async def spend(
    budget: Budget, tokens: int, taken: int | None = None, usd: float = 0.0, judge: str = ""
) -> None:
    async with budget.reserve(tokens, usd, [judge] if judge else []) as reservation:
        await asyncio.sleep(0)
        reservation.settle(tokens if taken is None else taken, usd)


@settings(deadline=None, max_examples=60)
@given(
    calls, st.integers(0, 2_000), st.floats(0, 2), st.integers(0, 1_000), st.randoms(use_true_random=False)
)
async def test_concurrent_calls_never_overshoot(
    calls: list[Call], max_tokens: int, max_usd: float, for_tone: int, chance: random.Random
) -> None:
    accounts = PrivateAccounts()
    budget = Budget(
        BudgetSettings(usd_per_day=max_usd, tokens_per_day=max_tokens),
        judges={"tone": DailyBudget(tokens_per_day=for_tone)},
        accounts=accounts,
        now=lambda: NOON,
    )
    taken = {"tone": 0, "facts": 0}
    refused = 0

    async def call(tokens: int, used: float, yields: int, fails: bool, judge: str) -> None:
        nonlocal refused
        try:
            async with budget.reserve(tokens, tokens / 1_000, [judge]) as reservation:
                for _ in range(yields):
                    await asyncio.sleep(0)
                if fails:
                    return
                reservation.settle(int(tokens * used), int(tokens * used) / 1_000)
                taken[judge] += int(tokens * used)
        except ModelFailure as failure:
            refused += failure.reason is Reason.BUDGET

    chance.shuffle(calls)
    await asyncio.wait_for(asyncio.gather(*(call(*one) for one in calls)), timeout=10)
    account = accounts.read(TODAY)

    both = sum(taken.values())
    assert both <= max_tokens
    assert both / 1_000 <= max_usd + 1e-9
    assert taken["tone"] <= for_tone
    assert both <= account.taken().tokens <= max_tokens or account == Account()
    assert refused == 0 or both + 400 > min(max_tokens, max_usd * 1_000) or taken["tone"] + 400 > for_tone
    await budget.settle()
    account = accounts.read(TODAY)
    assert account.spent.get(ALL, NOTHING).tokens == both
    assert account.spent.get("tone", NOTHING).tokens == taken["tone"]
    assert account.blocks == {}


async def test_a_call_waits_for_those_in_flight_rather_than_being_refused() -> None:
    budget = a_budget(tokens_per_day=100)

    await asyncio.gather(spend(budget, 80, 10), spend(budget, 80, 10))

    with pytest.raises(NoRoom, match=r"judge\.budget\.tokens_per_day") as refused:
        await spend(budget, 81)
    assert refused.value.calls == 0
    assert refused.value.wanted == Amount(0.0, 81)


async def test_a_new_day_begins_anew_and_the_old_one_keeps_what_it_took() -> None:
    now = [NOON]
    accounts = PrivateAccounts()
    budget = Budget(BudgetSettings(usd_per_day=1.0), accounts=accounts, now=lambda: now[0])
    async with budget.reserve(10, 0.9) as late:
        late.settle_whole()
        now[0] = datetime(2026, 11, 7, tzinfo=UTC)

    await spend(budget, 10, usd=0.8)
    await budget.settle()

    assert accounts.read(TODAY).taken().usd == pytest.approx(0.9)
    assert accounts.read(date(2026, 11, 7)).taken().usd == pytest.approx(0.8)


async def test_no_cap_is_none_and_what_was_spent_is_known_all_the_same() -> None:
    accounts = PrivateAccounts()
    budget = a_budget(accounts)

    await spend(budget, 10**12, usd=10.0**9, judge="tone")
    await budget.settle()

    assert accounts.read(TODAY).spent == {ALL: Amount(1e9, 10**12), "tone": Amount(1e9, 10**12)}


async def test_a_run_has_caps_of_its_own() -> None:
    budget = a_budget(tokens_per_run=100)
    await spend(budget, 60)

    with pytest.raises(NoRoom, match=r"judge\.budget\.tokens_per_run"):
        await spend(budget, 60)
    assert not budget.affords(Amount(0.0, 60))
    budget.begin()

    assert budget.affords(Amount(0.0, 60))
    await spend(budget, 60)


async def test_what_can_wait_leaves_half_of_the_day_alone() -> None:
    accounts = PrivateAccounts()
    capped = BudgetSettings(usd_per_day=None, tokens_per_day=100)
    judges = {"tone": DailyBudget(tokens_per_day=20)}
    budget = Budget(capped, judges=judges, accounts=accounts, now=lambda: NOON)
    budget.begin()
    fresh = budget.spares(["tone"])
    await spend(budget, 11, judge="tone")
    after_its_own_half = budget.spares(["tone"]), budget.spares(["facts"])
    await spend(budget, 40)
    await budget.settle()
    budget.begin()

    assert fresh
    assert after_its_own_half == (False, True)
    assert not budget.spares(["facts"])
    assert a_budget().spares(["tone"])


async def test_the_judges_of_a_shared_call_pay_equal_parts() -> None:
    accounts = PrivateAccounts()
    caps = {"tone": DailyBudget(tokens_per_day=30)}
    budget = Budget(BudgetSettings(), judges=caps, accounts=accounts, now=lambda: NOON)

    async with budget.reserve(60, 0.0, ["tone", "facts"]) as reservation:
        reservation.settle(40, 0.0)
    with pytest.raises(NoRoom, match=r'budget\.tokens_per_day of judge "tone"'):
        await spend(budget, 11, judge="tone")
    await budget.settle()

    tokens = {purse: amount.tokens for purse, amount in accounts.read(TODAY).spent.items()}
    assert tokens == {ALL: 40, "tone": 20, "facts": 20}


async def test_what_a_killed_worker_held_counts_as_spent() -> None:
    accounts = PrivateAccounts()
    killed, other = a_budget(accounts, tokens_per_day=100), a_budget(accounts, tokens_per_day=100)
    await spend(killed, 40, 1)

    with pytest.raises(NoRoom):
        await spend(other, 61)
    await spend(other, 60)


async def test_what_is_given_back_is_there_for_others() -> None:
    accounts = PrivateAccounts()
    one, other = a_budget(accounts, tokens_per_day=100), a_budget(accounts, tokens_per_day=100)
    await spend(one, 90, 10)
    await one.settle()

    other.begin()

    assert other.affords(Amount(0.0, 90))
    await spend(other, 90)


async def test_thousands_of_refusals_ask_the_account_once() -> None:
    class Counted(PrivateAccounts):
        asked = 0

        def update(self, day: date, change: Callable[[Account], Account]) -> Account:
            self.asked += 1
            return super().update(day, change)

    accounts = Counted()
    budget = a_budget(accounts, tokens_per_day=100)

    async def refused(tokens: int) -> None:
        with pytest.raises(NoRoom):
            await spend(budget, tokens)

    await asyncio.gather(*(refused(200 + number) for number in range(2_000)))

    assert accounts.asked == 1


@pytest.mark.parametrize("made", [True, False])
async def test_nothing_is_lost_when_nobody_knows_whether_a_step_was_made(made: bool) -> None:
    class Unsure(PrivateAccounts):
        unsure = False

        def update(self, day: date, change: Callable[[Account], Account]) -> Account:
            if self.unsure and not made:
                raise TableError("the store is out of reach")
            account = super().update(day, change)
            if self.unsure:
                raise TableError("the store is out of reach")
            return account

    accounts = Unsure()
    budget = a_budget(accounts, tokens_per_day=1_000)
    await spend(budget, 100)
    accounts.unsure = True
    with pytest.raises(NoRoom, match="could not be asked"):
        await spend(budget, 500)
    accounts.unsure = False
    await spend(budget, 50)
    await budget.settle()

    assert 150 <= accounts.read(TODAY).taken().tokens <= 1_000


async def test_a_step_whose_reply_was_lost_is_made_once() -> None:
    class Twice(PrivateAccounts):
        def update(self, day: date, change: Callable[[Account], Account]) -> Account:
            super().update(day, change)
            return super().update(day, change)

    accounts = Twice()
    budget = a_budget(accounts, tokens_per_day=1_000)
    for _ in range(5):
        await spend(budget, 100)
    await budget.settle()

    assert accounts.read(TODAY) == Account(spent={ALL: Amount(0.0, 500)})


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
async def test_what_is_spent_is_never_more_than_told_whatever_breaks(seed: int) -> None:
    """Steps that fail before or after they were made, calls that are cancelled, workers that are killed."""
    chance = random.Random(seed)  # of its own: the steps are made in threads, whose order nobody decides

    class Shaky(PrivateAccounts):
        def update(self, day: date, change: Callable[[Account], Account]) -> Account:
            luck = chance.random()
            if luck < 0.1:
                raise TableError("out of reach")
            account = super().update(day, change)
            if luck < 0.2:
                raise TableError("the reply was lost")
            return super().update(day, change) if luck < 0.3 else account

    accounts = Shaky()
    workers = [a_budget(accounts, tokens_per_day=1_000) for _ in range(3)]
    paid = [0]

    async def call(budget: Budget, tokens: int) -> None:
        async with budget.reserve(tokens, 0.0) as reservation:
            taken = chance.randint(0, tokens)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                taken = tokens
                raise
            finally:
                paid[0] += taken
                reservation.settle(taken, 0.0)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(30):
        number = chance.randrange(3)
        match chance.choice(["call"] * 6 + ["settle", "kill", "cancel"]):
            case "call":
                tasks.append(asyncio.create_task(call(workers[number], chance.randint(1, 250))))
            case "settle":
                tasks.append(asyncio.create_task(workers[number].settle()))
            case "kill":
                workers[number] = a_budget(accounts, tokens_per_day=1_000)
            case "cancel" if tasks:
                chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=10)

    assert {type(one) for one in ended if one is not None} <= {NoRoom, asyncio.CancelledError}
    assert paid[0] <= 1_000
    assert paid[0] <= accounts.read(TODAY).taken().tokens
