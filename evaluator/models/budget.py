"""A hard cap on what judging costs in a UTC day: reserved before a call, settled after it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime

from evaluator.config import BudgetSettings
from evaluator.feedback import Reason
from evaluator.models.endpoint import ModelFailure


@dataclass(slots=True, kw_only=True)
class Reservation:
    """What one call may take at most. Unsettled at its end, it counts as nothing."""

    tokens: int
    usd: float
    taken_tokens: int = 0
    taken_usd: float = 0.0

    def settle(self, tokens: int, usd: float) -> None:
        """The call took this much."""
        self.taken_tokens, self.taken_usd = tokens, usd

    def settle_whole(self) -> None:
        """What the call took is not known: it counts as all that it could have taken."""
        self.taken_tokens, self.taken_usd = self.tokens, self.usd


class Budget:
    """The day's caps over all models of one process. `spent_usd` and `spent_tokens` begin at what today has taken.

    A call that does not fit beside those in flight waits for them; what would not fit even if those cost
    nothing fails. So the caps hold whenever no call takes more than it reserved.
    """

    def __init__(
        self,
        settings: BudgetSettings,
        *,
        spent_usd: float = 0.0,
        spent_tokens: int = 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._max_usd = float("inf") if settings.usd_per_day is None else settings.usd_per_day
        self._max_tokens = float("inf") if settings.tokens_per_day is None else settings.tokens_per_day
        self._now = now
        self._day: date = now().astimezone(UTC).date()
        self._changed = asyncio.Condition()
        self.spent_usd = spent_usd
        self.spent_tokens = spent_tokens
        self.reserved_usd = 0.0
        self.reserved_tokens = 0

    def seed(self, usd: float, tokens: int) -> None:
        """What today has taken, as the ledger tells it: other processes spend too. Never less than is known here."""
        self._today()
        self.spent_usd = max(self.spent_usd, usd)
        self.spent_tokens = max(self.spent_tokens, tokens)

    @asynccontextmanager
    async def reserve(self, tokens: int, usd: float) -> AsyncIterator[Reservation]:
        """Room for one call. Raises ModelFailure(BUDGET) when the day has none left for it."""
        reservation = Reservation(tokens=tokens, usd=usd)
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(reservation))
            self.reserved_tokens += tokens
            self.reserved_usd += usd
        try:
            yield reservation
        finally:
            async with self._changed:
                self._today()
                self.reserved_tokens -= tokens
                self.reserved_usd = self.reserved_usd - usd if self.reserved_tokens else 0.0
                self.spent_tokens += reservation.taken_tokens
                self.spent_usd += reservation.taken_usd
                self._changed.notify_all()

    def _fits(self, wanted: Reservation) -> bool:
        self._today()
        tokens = self.spent_tokens + wanted.tokens
        usd = self.spent_usd + wanted.usd
        if tokens > self._max_tokens or usd > self._max_usd:
            cap = "tokens_per_day" if tokens > self._max_tokens else "usd_per_day"
            raise ModelFailure(
                Reason.BUDGET, f"the day's budget has no room for another call (judge.budget.{cap})", calls=0
            )
        return tokens + self.reserved_tokens <= self._max_tokens and usd + self.reserved_usd <= self._max_usd

    def _today(self) -> None:
        day = self._now().astimezone(UTC).date()
        if day > self._day:
            self._day, self.spent_usd, self.spent_tokens = day, 0.0, 0
