"""Several workers share a day's budget through one real ledger: whoever is killed when, it is never overshot."""

import asyncio
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluator.config import BudgetSettings, DailyBudget
from evaluator.models.account import ALL, NOTHING, Account, Amount, Block
from evaluator.models.budget import Budget, NoRoom
from evaluator.tables.accounts import LedgerAccounts
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Ledger
from evaluator.tables.rows import Row

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)
TODAY = NOON.date()
CAP = 1_000


def a_ledger(folder: Path) -> Ledger:
    ledger = Ledger(DeltaStore(str(folder / "agent_eval_ledger")), lambda: NOON)
    ledger.provision()
    return ledger


def a_budget(ledger: Ledger) -> Budget:
    return Budget(
        BudgetSettings(usd_per_day=None, tokens_per_day=CAP),
        judges={"tone": DailyBudget(tokens_per_day=CAP // 2)},
        accounts=LedgerAccounts(ledger),
        now=lambda: NOON,
    )


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["call", "call", "call", "settle", "kill"]),
        st.integers(1, 250),
        st.floats(0, 1),
    ),
    min_size=5,
    max_size=20,
)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
async def test_several_workers_never_overshoot_whoever_is_killed_when(
    steps: list[tuple[int, str, int, float]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = a_ledger(Path(folder))
        workers = [a_budget(ledger) for _ in range(3)]
        paid = {"all": 0, "tone": 0}

        async def call(budget: Budget, tokens: int, used: float) -> None:
            judge = "tone" if tokens % 2 else "facts"
            with suppress(NoRoom):
                async with budget.reserve(tokens, 0.0, [judge]) as reservation:
                    taken = int(tokens * used)
                    paid["all"] += taken
                    paid["tone"] += taken if judge == "tone" else 0
                    await asyncio.sleep(0)
                    reservation.settle(taken, 0.0)

        async with asyncio.TaskGroup() as group:
            for number, step, tokens, used in steps:
                budget = workers[number]
                match step:
                    case "call":
                        group.create_task(call(budget, tokens, used))
                        await asyncio.sleep(0)
                    case "settle":
                        group.create_task(budget.settle())
                    case _:  # The process is gone, with what it knew; its calls may still be paid for.
                        workers[number] = a_budget(ledger)
        account = LedgerAccounts(ledger).read(TODAY)

        assert paid["all"] <= CAP
        assert paid["tone"] <= CAP // 2
        assert paid["all"] <= account.taken().tokens <= CAP
        assert account.taken("tone").tokens <= CAP // 2


async def test_an_account_is_read_as_it_was_written(tmp_path: Path) -> None:
    accounts = LedgerAccounts(a_ledger(tmp_path))
    account = Account(
        spent={ALL: Amount(0.1, 7), 'töne "x"': Amount(0.05, 3.5)},
        blocks={"a": Block(step=3, amounts={ALL: Amount(1.0, 0)})},
    )

    accounts.update(TODAY, lambda _: account)

    assert accounts.read(TODAY) == account
    assert accounts.read(NOON.replace(day=7).date()) == Account()


async def test_two_who_change_an_account_at_once_both_count(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    accounts = LedgerAccounts(ledger)

    def more(account: Account) -> Account:
        return Account(spent={ALL: account.spent.get(ALL, NOTHING) + Amount(0.0, 1)})

    await asyncio.gather(*(asyncio.to_thread(accounts.update, TODAY, more) for _ in range(8)))

    assert accounts.read(TODAY).taken().tokens == 8


async def test_the_decisions_of_a_worker_and_the_account_do_not_stop_each_other(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    book = ledger.open()
    budget = a_budget(ledger)
    async with budget.reserve(10, 0.0) as reservation:
        reservation.settle_whole()
    await budget.settle()

    row = Row(day=TODAY, scope="live", target_type="TRACE", target_id="a", trace_id="a", state="done")
    written = book.commit([[row]])

    assert [row.state for row in written] == ["done"]
    assert "budget/2026-11-06" not in ledger.open().notes()
    assert LedgerAccounts(ledger).read(TODAY).taken().tokens == 10


async def test_a_ledger_out_of_reach_lets_no_call_out(tmp_path: Path) -> None:
    budget = a_budget(Ledger(DeltaStore(str(tmp_path / "nowhere")), lambda: NOON))

    with pytest.raises(NoRoom, match="could not be asked"):
        async with budget.reserve(1, 0.0):
            raise AssertionError("a call went out")
