"""Hard caps on what judging costs, in a run and in a UTC day: reserved before a call, settled after it.

Several processes share a day's caps through its account. A process takes a block of what is free in one step of the
account, spends it without asking again, and tells what it spent when it takes another or is done. A block that nobody
settled counts as spent: what calls really take can be less than the account says, and never more.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from time import monotonic

from evaluator.config import BudgetSettings, DailyBudget
from evaluator.errors import TableError
from evaluator.feedback import Reason
from evaluator.models.account import ALL, NOTHING, RUN, Accounts, Amount, PrivateAccounts
from evaluator.models.endpoint import ModelFailure
from evaluator.models.purse import DayPart, Purse, Shares

log = logging.getLogger(__name__)

ASKED_AGAIN_AFTER = timedelta(minutes=1)
"""How long the account is not asked again for what it did not have: others may give something back."""


class NoRoom(ModelFailure):
    """The budget has no room for a call that may take so much."""

    def __init__(self, detail: str, wanted: Amount) -> None:
        super().__init__(Reason.BUDGET, detail, calls=0)
        self.wanted = wanted


@dataclass(slots=True, kw_only=True)
class Reservation:
    """What one call may take at most. Unsettled at its end, it counts as nothing."""

    tokens: int
    usd: float
    taken: Amount = NOTHING

    def settle(self, tokens: int, usd: float) -> None:
        """The call took this much."""
        self.taken = Amount(usd, tokens)

    def settle_whole(self) -> None:
        """What the call took is not known: it counts as all that it could have taken."""
        self.taken = Amount(self.usd, self.tokens)


class Budget:
    """The caps over all models of one process: of its run, of the day, and of each judge's day.

    A call that does not fit beside those in flight waits for them; what would not fit even if those cost nothing
    fails. So the caps hold whenever no call takes more than it reserved. `accounts` are shared with other processes.
    """

    def __init__(
        self,
        settings: BudgetSettings,
        *,
        judges: Mapping[str, DailyBudget] | None = None,
        accounts: Accounts | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._caps = {ALL: _cap(settings.usd_per_day, settings.tokens_per_day)}
        self._caps |= {
            name: _cap(own.usd_per_day, own.tokens_per_day) for name, own in (judges or {}).items()
        }
        self._run_cap = _cap(settings.usd_per_run, settings.tokens_per_run)
        self._accounts = accounts or PrivateAccounts()
        self._now = now
        self._seconds = seconds
        self._days: dict[date, DayPart] = {}
        self._free: Mapping[str, Amount] = {}
        self._changed = asyncio.Event()
        self._run = self._fresh_run()

    def begin(self) -> None:
        """A run begins: its own caps are whole again, and the day's are as the account tells. Raises TableError."""
        self._run = self._fresh_run()
        day = self._today()
        account = self._accounts.read(day.day)
        self._free = {name: cap - account.taken(name) for name, cap in self._caps.items()}
        for purse in day.purses.values():
            purse.refused = None

    def affords(self, wanted: Amount, judges: Sequence[str] = ()) -> bool:
        """Whether there may be room for a call that wants so much, so far as is known without asking the account."""
        if not self._run.could_fit(wanted):
            return False
        day = self._today()
        for name, parts in _payers(judges):
            purse = day.purse(name)
            if not (purse.spent + wanted / parts).within(purse.block + self._free.get(name, NOTHING)):
                return False
        return True

    def spares(self, judges: Sequence[str] = ()) -> bool:
        """Whether half of the day's cap, and of these judges' own, is still free: what can wait leaves the rest alone."""
        day = self._today()
        for name in {ALL, *judges} & self._caps.keys():
            purse = day.purse(name)
            if not (purse.spent + self._caps[name] / 2).within(purse.block + self._free.get(name, NOTHING)):
                return False
        return True

    @asynccontextmanager
    async def reserve(
        self, tokens: int, usd: float, judges: Sequence[str] = ()
    ) -> AsyncIterator[Reservation]:
        """Room for one call, paid by the named judges in equal parts. Raises NoRoom when there is none left for it."""
        reservation = Reservation(tokens=tokens, usd=usd)
        wanted = Amount(usd, tokens)
        day, run = self._today(), self._run
        payers = [(day.purse(name), parts) for name, parts in _payers(judges)]
        day.users += 1
        try:
            await self._take(day, run, wanted, [(purse, wanted / parts) for purse, parts in payers])
            try:
                yield reservation
            finally:
                for purse, parts in (*payers, (run, 1)):
                    purse.settle(wanted / parts, reservation.taken / parts)
                self._changed.set()
                self._changed = asyncio.Event()
        finally:
            day.users -= 1

    async def settle(self) -> None:
        """Tell the account what was spent, and give back the rest. What cannot be told counts as spent."""
        for day in list(self._days.values()):
            async with day.asking:
                last = day.users == 0
                if last and self._days.get(day.day) is day:  # Who comes now begins anew.
                    del self._days[day.day]
                if not day.known:
                    continue
                for purse in day.purses.values():
                    purse.shrink()
                try:
                    await self._step(day, (), last=last)
                except TableError as error:
                    log.warning(
                        "the budget could not be settled: all of it counts as spent",
                        extra={"cause": str(error)},
                    )

    async def _take(self, day: DayPart, run: Purse, wanted: Amount, shares: Shares) -> None:
        """Take the room for a call of all purses, once they have it."""
        every = [*shares, (run, wanted)]
        if not _fit(every):
            await self._wait_for_room(day, run, wanted, shares)
        for purse, share in every:
            purse.take(share)

    async def _wait_for_room(self, day: DayPart, run: Purse, wanted: Amount, shares: Shares) -> None:
        """Wait until all purses have room for a call, growing the blocks of the day's."""
        every = [*shares, (run, wanted)]
        for purse, share in shares:
            purse.waiting += share
        try:
            while not _fit(every):
                changed = self._changed
                if not run.could_fit(wanted):
                    raise self._no_room(run, wanted, wanted)
                await self._grow(day, wanted, shares)
                if _fit(every):
                    break
                for purse, share in shares:
                    if not purse.could_fit(share):
                        raise self._no_room(purse, share, wanted)
                await changed.wait()
        finally:
            for purse, share in shares:
                purse.waiting -= share

    async def _grow(self, day: DayPart, wanted: Amount, shares: Shares) -> None:
        """Take more of the account where these shares do not fit; one asks at a time, for all who wait."""
        async with day.asking:
            short = [(purse, share) for purse, share in shares if not purse.fits(share)]
            if not short or any(self._refused(purse, share) for purse, share in short):
                return
            try:
                await self._step(day, short)
            except TableError as error:
                log.warning("the ledger gave no budget: nothing is asked", extra={"cause": str(error)})
                raise NoRoom(
                    "the ledger, which keeps the day's budget, could not be asked", wanted
                ) from error
            for purse, share in short:
                if not purse.fits(share):
                    purse.refused, purse.refused_at = share, self._seconds()

    async def _step(self, day: DayPart, shares: Shares, *, last: bool = False) -> None:
        """One step of the day's account. Raises TableError; then what this part held counts as spent."""
        step = day.step(shares, last=last)
        try:
            account = await asyncio.to_thread(self._accounts.update, day.day, step)
        except BaseException:
            day.abandon()
            raise
        day.note(account, step)
        self._free = {name: cap - account.taken(name) for name, cap in self._caps.items()}

    def _refused(self, purse: Purse, share: Amount) -> bool:
        """Whether the account was asked a moment ago, and did not have it."""
        recently = self._seconds() - purse.refused_at < ASKED_AGAIN_AFTER.total_seconds()
        return purse.refused is not None and recently and purse.refused.within(share)

    def _no_room(self, purse: Purse, share: Amount, wanted: Amount) -> NoRoom:
        period = "run" if purse.name == RUN else "day"
        unit = "tokens" if (purse.spent + share).tokens > purse.block.tokens else "usd"
        setting = f"judge.budget.{unit}_per_{period}"
        if purse.name not in (ALL, RUN):
            setting = f'budget.{unit}_per_{period} of judge "{purse.name}"'
        return NoRoom(f"the {period}'s budget has no room for another call ({setting})", wanted)

    def _fresh_run(self) -> Purse:
        return Purse(name=RUN, cap=self._run_cap, block=self._run_cap)

    def _today(self) -> DayPart:
        day = self._now().astimezone(UTC).date()
        if day not in self._days:
            self._days[day] = DayPart(day, self._caps)
        return self._days[day]


def _cap(usd: float | None, tokens: int | None) -> Amount:
    return Amount(math.inf if usd is None else usd, math.inf if tokens is None else tokens)


def _fit(shares: Shares) -> bool:
    return all(purse.fits(share) for purse, share in shares)


def _payers(judges: Sequence[str]) -> list[tuple[str, int]]:
    """The purses that pay for a call, and into how many parts it is cut for each."""
    return [(ALL, 1), *((judge, len(judges)) for judge in judges)]
