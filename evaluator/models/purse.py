"""One process's part in a day's account: the blocks it took of it, and what it spent of them."""

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from evaluator.models.account import NOTHING, UNBOUNDED, Account, Amount, Block

MOST_OF_FREE = 1 / 8
LEAST_OF_FREE = 1 / 64
"""Shares of what is free that a block grows by: no more, so that several workers find some; no less, so that it lasts."""


@dataclass(slots=True, kw_only=True)
class Purse:
    """A cap, and the block of it that this process may spend; `spent` is what the account has not been told."""

    name: str
    cap: Amount
    block: Amount
    spent: Amount = NOTHING
    reserved: Amount = NOTHING
    calls: int = 0
    waiting: Amount = NOTHING
    refused: Amount | None = None
    refused_at: float = 0.0

    def fits(self, wanted: Amount) -> bool:
        """Whether it has room beside the calls in flight."""
        return (self.spent + self.reserved + wanted).within(self.block)

    def could_fit(self, wanted: Amount) -> bool:
        """Whether it would have room if those cost nothing."""
        return (self.spent + wanted).within(self.block)

    def take(self, wanted: Amount) -> None:
        self.reserved += wanted
        self.calls += 1

    def settle(self, wanted: Amount, taken: Amount) -> None:
        self.calls -= 1
        self.reserved = self.reserved - wanted if self.calls else NOTHING
        self.spent += taken

    def shrink(self) -> None:
        """Give up what of the block is not in use."""
        self.hold(_held(self.spent + self.reserved))

    def hold(self, amount: Amount) -> None:
        """Have a block of so much; where there is no cap, there is no end to it."""
        self.block = Amount(
            math.inf if self.cap.usd == math.inf else amount.usd,
            math.inf if self.cap.tokens == math.inf else amount.tokens,
        )


Shares = Sequence[tuple[Purse, Amount]]
"""What each of some purses is to pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a purse needs room for: one call, of which so much is `missing` beside those in flight."""

    purse: str
    cap: Amount
    wanted: Amount
    missing: Amount
    waiting: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change of an account by one process: what it spent is told, and its blocks are kept, and grow by `wants`.

    It is made whole or not at all. The `last` step leaves no block behind.
    """

    holder: str
    number: int
    told: Mapping[str, Amount]
    kept: Mapping[str, Amount]
    wants: Sequence[Want] = ()
    last: bool = False

    def __call__(self, account: Account) -> Account:
        """The account after it; as it was where there is no room, and where only the reply to it was lost."""
        if self.made(account):
            return account
        spent = dict(account.spent)
        for name, told in self.told.items():
            spent[name] = spent.get(name, NOTHING) + told
        blocks = dict(self.kept)
        for want in self.wants:
            kept = blocks[want.purse]
            others = spent.get(want.purse, NOTHING) + account.reserved(want.purse, but=self.holder)
            most = want.cap - others - kept
            if not _held(want.wanted, want.cap).within(kept + most):
                return account
            blocks[want.purse] = kept + _growth(want.missing, want.waiting, most)
        held = {holder: block for holder, block in account.blocks.items() if holder != self.holder}
        if not self.last:
            amounts = {name: amount for name, amount in blocks.items() if amount != NOTHING}
            held[self.holder] = Block(step=self.number, amounts=amounts)
        return Account(
            spent={name: amount for name, amount in spent.items() if amount != NOTHING}, blocks=held
        )

    def made(self, account: Account) -> bool:
        """Whether an account knows of it. Only the process itself removes its block, and last of all."""
        block = account.blocks.get(self.holder)
        return self.number > 1 if block is None else block.step >= self.number


class DayPart:
    """The purses of one day. `users` counts the calls that wait for room or have some; `asking` is held for a step."""

    def __init__(self, day: date, caps: Mapping[str, Amount]) -> None:
        self.day = day
        self.users = 0
        self.asking = asyncio.Lock()
        self.purses: dict[str, Purse] = {}
        self._caps = caps
        self._holder = secrets.token_hex(4)
        self._made = 0

    def purse(self, name: str) -> Purse:
        if name not in self.purses:
            self.purses[name] = Purse(name=name, cap=self._caps.get(name, UNBOUNDED), block=NOTHING)
            self.purses[name].hold(NOTHING)
        return self.purses[name]

    @property
    def known(self) -> bool:
        """Whether the account knows of this part, or has something to hear of it."""
        return self._made > 0 or any(purse.spent != NOTHING for purse in self.purses.values())

    def step(self, shares: Shares = (), *, last: bool = False) -> Step:
        """The next step, as things stand: with room for these shares."""
        return Step(
            holder=self._holder,
            number=self._made + 1,
            told={name: purse.spent for name, purse in self.purses.items()},
            kept={name: _held(purse.block - purse.spent) for name, purse in self.purses.items()},
            wants=[
                Want(
                    purse=purse.name,
                    cap=purse.cap,
                    wanted=wanted,
                    missing=purse.spent + purse.reserved + wanted - purse.block,
                    waiting=purse.waiting,
                )
                for purse, wanted in shares
            ],
            last=last,
        )

    def note(self, account: Account, step: Step) -> None:
        """Take note of what a step made of the account, if it was made."""
        if not step.made(account):
            return
        self._made = step.number
        block = account.blocks.get(step.holder)
        for name, told in step.told.items():
            purse = self.purses[name]
            purse.spent -= told
            purse.hold(block.amounts.get(name, NOTHING) if block else NOTHING)

    def abandon(self) -> None:
        """Nobody knows whether the last step was made: begin anew, and leave the block to count as spent."""
        self._holder = secrets.token_hex(4)
        self._made = 0
        for purse in self.purses.values():
            purse.shrink()


def _held(amount: Amount, cap: Amount = NOTHING) -> Amount:
    """What of an amount an account keeps as a block: nothing where there is no cap."""

    def held(amount: float, cap: float) -> float:
        return 0 if math.inf in (amount, cap) else max(amount, 0)

    return Amount(held(amount.usd, cap.usd), held(amount.tokens, cap.tokens))


def _growth(missing: Amount, waiting: Amount, most: Amount) -> Amount:
    """How much a block grows: by what is missing, and by what all who wait want as far as that is fair."""

    def growth(missing: float, waiting: float, most: float) -> float:
        if most == math.inf:
            return 0
        fair = min(max(waiting, most * LEAST_OF_FREE), most * MOST_OF_FREE)
        return max(min(max(missing, fair), most), 0)

    return Amount(
        growth(missing.usd, waiting.usd, most.usd), growth(missing.tokens, waiting.tokens, most.tokens)
    )
