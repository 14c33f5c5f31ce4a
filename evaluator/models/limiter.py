"""When the next call to a model may go out: slots, the configured rate, and one pause for all."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic

from evaluator.feedback import Reason
from evaluator.models.endpoint import ModelFailure

LONGEST_PAUSE = timedelta(seconds=60)
"""A longer one is not waited for within a tick: what needs the model is tried again by its schedule."""
FIRST_ALONE = timedelta(seconds=5)
"""How long all others wait for the first call, so that a wrong key or name costs one call and not one each."""


class Limiter:
    """Shared by all calls to one model. `seconds` is a clock that only goes forward, `chance` gives [0, 1)."""

    def __init__(
        self,
        *,
        max_concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        seconds: Callable[[], float] = monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._slots = asyncio.Semaphore(max_concurrency)
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._seconds = seconds
        self._chance = chance
        self._next_at = 0.0
        self._paused_until = 0.0
        self._started = False
        self._opened = asyncio.Event()

    @asynccontextmanager
    async def first_alone(self) -> AsyncIterator[None]:
        """Around a whole question: the first one is decided, or takes long, before any other is asked."""
        if not self._started:
            self._started = True
            try:
                yield
            finally:
                self._opened.set()
            return
        try:
            async with asyncio.timeout(FIRST_ALONE.total_seconds()):
                await self._opened.wait()
        except TimeoutError:
            self._opened.set()
        yield

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """A place in flight for a call of about so many tokens, once the pace and the pause allow it.

        Raises ModelFailure(RATE_LIMITED) while the provider asks for a pause longer than a tick waits.
        """
        async with self._slots:
            await self._paced(tokens)
            yield

    def pause(self, wait: timedelta) -> None:
        """Nobody calls for so long; the longest of several counts."""
        self._paused_until = max(self._paused_until, self._seconds() + wait.total_seconds())

    async def _paced(self, tokens: int) -> None:
        turn = max(self._seconds(), self._next_at)
        self._next_at = turn + max(self._per_request, self._per_token * tokens)
        while (wait := max(turn, self._paused_until) - self._seconds()) > 0:
            if self._paused_until - self._seconds() > LONGEST_PAUSE.total_seconds():
                raise ModelFailure(Reason.RATE_LIMITED, "the provider asked for a longer pause", calls=0)
            # A little chance, so that all who waited do not come back in the same millisecond.
            await asyncio.sleep(wait + 0.05 * wait * self._chance())
