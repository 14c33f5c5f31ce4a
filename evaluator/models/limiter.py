"""When the next call to a model may go out: one queue for all who want one, at the pace that its provider grants."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from math import inf
from time import monotonic
from types import TracebackType

from evaluator.feedback import Reason
from evaluator.models.endpoint import Limits, ModelFailure
from evaluator.models.learned import Grant
from evaluator.models.pace import Pace

LONGEST_PAUSE = timedelta(seconds=60)
"""A longer one is not waited for within a tick: what needs the model is tried again by its schedule."""
SPREAD = 0.05
ASKED_TO_PAUSE = "the provider limits the rate, and grants nothing for longer than a tick waits"
SHARED_PATIENCE = timedelta(minutes=2)
"""How long a call waits for its turn where several models are at work: a trace's results are committed together, so
that the slowest of them would hold up what the others have ready. What gave way is asked again in the next tick."""
SLOWEST_GRANT = 1.0
"""Calls a second. What was found below that was rather an outage, and a worker that begins with it would crawl."""
FIRST_ALONE = timedelta(seconds=5)
"""How long all others wait for the first call, so that a wrong key or name costs one call and not one each."""


class Limiter:
    """Shared by all calls to one model. `seconds` is a clock that only goes forward, `chance` gives [0, 1).

    `patience` is how long a call waits for its turn before it is given back; None: for as long as it takes. `known` is
    what its provider granted of late.
    """

    def __init__(
        self,
        *,
        max_concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        patience: timedelta | None = None,
        known: Grant | None = None,
        seconds: Callable[[], float] = monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.patience = patience
        self._pace = Pace(max_concurrency, requests_per_minute, tokens_per_minute)
        self._seconds = seconds
        self._asked = False
        if known is not None:
            self._pace.begin_at(known, seconds())
        self._chance = chance
        self._waiting: deque[_Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._opened = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return self._pace.in_flight

    @property
    def rate(self) -> float | None:
        """Calls a second that the provider was found to grant; None while it refused none."""
        return self._pace.rate

    @property
    def grant(self) -> Grant | None:
        """What the provider was found to grant; None while it gave no answer, or hardly any: that is no rate to begin with."""
        slow = self.rate is not None and self.rate < SLOWEST_GRANT
        return self._pace.grant if self._asked and not slow else None

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
        if not self._opened.is_set():
            try:
                async with asyncio.timeout(FIRST_ALONE.total_seconds()):
                    await self._opened.wait()
            except TimeoutError:
                self._opened.set()
        yield

    def slot(self, tokens: int, *, again: bool = False) -> "_Slot":
        """A place in flight for a call of about so many tokens, as an asynchronous context; `again` goes before the rest.

        Raises ModelFailure(ENDPOINT_DOWN) while the provider asks for a pause longer than a tick waits, and when the
        wait outlasts the `patience`.
        """
        return _Slot(self, tokens, again)

    def pause(self, wait: timedelta) -> None:
        """Nobody calls for so long; the longest of several counts."""
        self._pace.pause(self._seconds(), self._spread(wait))

    async def _enter(self, slot: "_Slot") -> None:
        if not self._waiting and not self._too_long() and self._pace.wait(self._seconds(), slot.tokens) <= 0:
            self._start(slot)
            return
        slot.turn = asyncio.get_running_loop().create_future()
        if slot.again:
            self._waiting.appendleft(slot)
        else:
            self._waiting.append(slot)
        self._go_on()
        try:
            async with asyncio.timeout(None if self.patience is None else self.patience.total_seconds()):
                await slot.turn
        except BaseException as error:
            if slot.started is not None:  # Its turn had just come when it was given up.
                self._pace.ended()
            self._go_on()
            if isinstance(error, TimeoutError):
                said = (
                    f"its turn did not come within {self.patience}: the provider is slow, or limits the rate"
                )
                raise ModelFailure(Reason.ENDPOINT_DOWN, said, calls=0) from error
            raise

    def _start(self, slot: "_Slot") -> None:
        slot.started = self._seconds()
        self._pace.started(slot.started, slot.tokens)

    def _go_on(self) -> None:
        """Let go out what may, in turn; else look again when the pace says so, or when a call ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            slot = self._waiting[0]
            assert slot.turn is not None
            if slot.turn.done():
                self._waiting.popleft()
                continue
            if self._too_long():
                self._waiting.popleft()
                slot.turn.set_exception(ModelFailure(Reason.ENDPOINT_DOWN, ASKED_TO_PAUSE, calls=0))
                continue
            wait = self._pace.wait(self._seconds(), slot.tokens)
            if wait > 0:
                if wait < inf:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._go_on)
                return
            self._waiting.popleft()
            self._start(slot)
            slot.turn.set_result(None)

    def _leave(self, slot: "_Slot", error: BaseException | None) -> None:
        now = self._seconds()
        limits = slot.limits
        if error is None:
            self._asked = True
            self._pace.answered()
        elif isinstance(error, ModelFailure):
            limits = error.limits
            if error.reason is Reason.RATE_LIMITED:
                wait = None if error.retry_after is None else self._spread(error.retry_after)
                self._pace.refused(now, slot.started or now, wait)
            else:
                self._pace.ended()
                if error.retry_after is not None and error.reason in (Reason.UNAVAILABLE, Reason.TIMEOUT):
                    self._pace.pause(now, self._spread(error.retry_after))
        else:
            self._pace.ended()
        if limits is not None:
            self._pace.told(now, limits)
        if self._waiting:
            self._go_on()

    def _too_long(self) -> bool:
        return self._pace.shut(self._seconds()) > LONGEST_PAUSE.total_seconds() * (1 + SPREAD)

    def _spread(self, wait: timedelta) -> float:
        """A little chance, so that the workers that share a provider do not all come back in one millisecond."""
        return wait.total_seconds() * (1 + SPREAD * self._chance())


class _Slot:
    """One call's place: in the queue, then in flight, until it leaves."""

    __slots__ = ("_limiter", "again", "limits", "started", "tokens", "turn")

    def __init__(self, limiter: Limiter, tokens: int, again: bool) -> None:
        self._limiter = limiter
        self.tokens = tokens
        self.again = again
        self.started: float | None = None
        self.limits: Limits | None = None
        self.turn: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "_Slot":
        await self._limiter._enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter._leave(self, error)
