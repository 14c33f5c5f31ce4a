"""What a UTC day has taken, as all processes that share its caps see it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

ALL = ""
RUN = "/"
"""The purses of all judges together, and of the run; the others have the name of a judge, which holds no slash."""


@dataclass(frozen=True, slots=True)
class Amount:
    """USD and tokens; infinite where a cap is none."""

    usd: float = 0.0
    tokens: float = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.usd - other.usd, self.tokens - other.tokens)

    def __truediv__(self, parts: int) -> "Amount":
        return self if parts == 1 else Amount(self.usd / parts, self.tokens / parts)

    def within(self, other: "Amount") -> bool:
        """Whether neither of the two is more."""
        return self.usd <= other.usd and self.tokens <= other.tokens


NOTHING = Amount()
UNBOUNDED = Amount(math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a process may spend, by purse, and the number of its last step in the account."""

    step: int
    amounts: Mapping[str, Amount]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a UTC day has taken: settled, by purse, and the blocks that processes hold or never settled, by holder."""

    spent: Mapping[str, Amount] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)

    def reserved(self, purse: str = ALL, *, but: str | None = None) -> Amount:
        """What is in blocks, of all holders `but` one."""
        amounts = (
            block.amounts.get(purse, NOTHING) for holder, block in self.blocks.items() if holder != but
        )
        return sum(amounts, NOTHING)

    def taken(self, purse: str = ALL) -> Amount:
        return self.spent.get(purse, NOTHING) + self.reserved(purse)


class Accounts(Protocol):
    """Keeps the accounts of the days for all processes that share the caps."""

    def read(self, day: date) -> Account:
        """The account as it is. Raises TableError."""
        ...

    def update(self, day: date, change: Callable[[Account], Account]) -> Account:
        """Change an account in one step, with nobody's step between; what it is then. Raises TableError.

        `change` is called again after a step of another's, and after one of its own whose reply was lost.
        """
        ...


class PrivateAccounts:
    """The accounts of a process that shares its caps with nobody."""

    def __init__(self) -> None:
        self._accounts: dict[date, Account] = {}

    def read(self, day: date) -> Account:
        return self._accounts.get(day, Account())

    def update(self, day: date, change: Callable[[Account], Account]) -> Account:
        self._accounts[day] = change(self.read(day))
        return self._accounts[day]
