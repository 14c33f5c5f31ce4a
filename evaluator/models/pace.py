"""How fast a provider lets itself be called, found from its answers. Time comes in as a number; nothing waits here.

Slow start: 16 calls in flight, and twice as many each round trip while answers come, until the first refusal or the
cap. From the first refusal on, calls are paced: at the rate that was granted over the time it was granted in, the
pause included; the rate then grows, at first slowly around what is known, later faster, until the next refusal.
What a provider says of its limits, and what the configuration says, bounds both.
"""

from dataclasses import dataclass
from math import inf

from evaluator.models.endpoint import Limits, Quota
from evaluator.models.learned import Grant

FIRST_WINDOW = 16
DEEPEST_CUT, LATER_CUT = 8, 2
"""The first refusal cuts the rate to no less than an eighth, a later one to no less than half: what was granted since
may have been few for other reasons."""
SLOWEST = 1 / 60
FIRST_GROWTH, GROWTH, FASTER_AFTER = 0.1, 0.02, 5.0
"""Share of the known rate that is added each second: after the first refusal, which says least, and after later ones;
after so many seconds without another, growth itself grows."""
FIRST_PAUSE, MOST_PAUSE = 1.0, 60.0
"""Seconds of the pause after a refusal that names none; doubled each time nothing was granted in between."""
FRUITLESS_FOR, LEFT_ALONE_FOR = 120.0, 300.0
"""Seconds after which a provider that grants nothing is left alone, and for how long: a day's quota that is used up is
often told in refusals that each name a minute."""
ROUNDING = 1e-6
SHORTEST_CYCLE = 0.1
LONGEST_TOLD = 86_400.0
"""Seconds for which a provider's word on its limits holds at most; else one wrong header would stop a worker for ever."""
CATCH_UP = 0.02
"""Seconds that a call may be late and still keep its turn: timers are not exact."""


@dataclass(slots=True)
class Allowance:
    """So many units at once, and so many more each second, `until` it is void. `level` below zero is owed."""

    per_second: float
    capacity: float
    level: float
    at: float
    until: float = inf

    def wait(self, now: float, wanted: float) -> float:
        """Seconds until so many units are there, or as many as there can be."""
        missing = min(wanted, self.capacity) - self._level(now)
        if missing <= ROUNDING or now >= self.until:
            return 0.0
        return missing / self.per_second if self.per_second > 0 else inf

    def take(self, now: float, units: float) -> None:
        self.level = self._level(now) - units
        self.at = now

    def _level(self, now: float) -> float:
        return min(self.capacity, self.level + max(now - self.at, 0.0) * self.per_second)


class Pace:
    """One provider's pace. `wait` before each call, `started` when it goes out, then `answered` or `refused`.

    `refused` is told when the call had started: all refusals of calls from before a pause are one. A call that failed
    otherwise is `ended`. Times are seconds of one clock.
    """

    def __init__(
        self, cap: int, per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self.cap = cap
        self.in_flight = 0
        self.window = float(min(FIRST_WINDOW, cap))
        self.paused_until = -inf
        self._found: Allowance | None = None
        self._configured = _spaced(per_minute)
        self._configured_tokens = _spaced(tokens_per_minute)
        self._told: Allowance | None = None
        self._told_tokens: Allowance | None = None
        self._known_rate = 0.0
        self._grown_at = 0.0
        self._growth = FIRST_GROWTH
        self._resumed_at = -inf
        self._cycle_at = -inf
        self._last_start = -inf
        self._sent = self._granted = 0
        self._fruitless = 0
        self._fruitless_since = inf
        self._held = False
        self._refused_at: float | None = None

    @property
    def rate(self) -> float | None:
        """Calls a second that were found to be granted; None while nothing was refused."""
        return self._found.per_second if self._found else None

    @property
    def grant(self) -> Grant:
        """What was found so far."""
        return Grant(at_once=int(self.window), per_second=self.rate)

    def begin_at(self, known: Grant, now: float) -> None:
        """Begin with what was granted before, in place of finding it out."""
        self.window = float(min(known.at_once, self.cap))
        if known.per_second is not None:
            self._pace_at(max(known.per_second, SLOWEST), now)
            self._growth = GROWTH

    def wait(self, now: float, tokens: float = 0.0) -> float:
        """Seconds until a call of so many tokens may go out; infinite: not before another has ended."""
        wait = self._wait(now, tokens)
        self._held = self._held or wait > 0
        return wait

    def shut(self, now: float) -> float:
        """Seconds for which the provider itself asks to be left alone: a pause, or a quota that is used up."""
        wait = max(self.paused_until - now, 0.0)
        if self._told is not None:
            wait = max(wait, self._told.wait(now, 1.0))
        if self._told_tokens is not None:
            wait = max(wait, self._told_tokens.wait(now, 0.0))
        return wait

    def _wait(self, now: float, tokens: float) -> float:
        if now < self.paused_until:
            return self.paused_until - now
        if self.in_flight >= self.window:
            return inf
        if self._refused_at is not None:
            self._resume(now)
        if self._found is not None:
            self._grow(now)
        wait = 0.0
        for allowance in (self._found, self._configured, self._told):
            if allowance is not None:
                wait = max(wait, allowance.wait(now, 1.0))
        for allowance in (self._configured_tokens, self._told_tokens):
            if allowance is not None:
                wait = max(wait, allowance.wait(now, tokens))
        return wait

    def started(self, now: float, tokens: float = 0.0) -> None:
        if (
            self.in_flight == 0 and not self._held
        ):  # Nobody wanted more for a while: what was granted then says nothing of the limit.
            self._cycle_at, self._granted = now, 0
            self._sent = 0
            if now - self._last_start > MOST_PAUSE:
                self._grown_at = now
        self._held = False
        self.in_flight += 1
        self._sent += 1
        self._granted += 1
        self._last_start = now
        for allowance in (self._found, self._configured, self._told):
            if allowance is not None:
                allowance.take(now, 1.0)
        for allowance in (self._configured_tokens, self._told_tokens):
            if allowance is not None:
                allowance.take(now, tokens)

    def answered(self) -> None:
        """A call came through: in slow start, one more may go out beside the one that takes its place."""
        if self._found is None and self._refused_at is None and self.in_flight >= self.window - 1:
            self.window = min(self.cap, self.window + 1)
        self.in_flight -= 1
        self._fruitless = 0
        self._fruitless_since = inf

    def ended(self) -> None:
        """A call ended in another way."""
        self.in_flight -= 1

    def refused(self, now: float, started: float, retry_after: float | None) -> None:
        """The provider limits the rate: nobody calls until it may be asked again."""
        self.in_flight -= 1
        self._granted -= 1
        self._fruitless_since = min(self._fruitless_since, now)
        if now - self._fruitless_since >= FRUITLESS_FOR:
            self.pause(now, LEFT_ALONE_FOR)
        if self._refused_at is None and started >= self._resumed_at:
            self._refused_at = now
            if retry_after is None:
                retry_after = min(FIRST_PAUSE * 2.0 ** min(self._fruitless, 6), MOST_PAUSE)
            self._fruitless += 1
        self.pause(now, retry_after or 0.0)

    def pause(self, now: float, seconds: float) -> None:
        """Nobody calls for so long; the longest of several counts."""
        self.paused_until = max(self.paused_until, now + seconds)

    def told(self, now: float, limits: Limits) -> None:
        """The provider said what is left. What is in flight may not have been counted yet."""
        if limits.requests is not None:
            self._told = _refilled(limits.requests, now, self.in_flight)
        if limits.tokens is not None:
            self._told_tokens = _refilled(limits.tokens, now, 0)

    def _resume(self, now: float) -> None:
        """The first call after a pause: from what was granted, and over how long, follows the rate."""
        began = self._cycle_at
        refused_at = self._refused_at if self._refused_at is not None else now
        active, whole = max(refused_at - began, SHORTEST_CYCLE), max(now - began, SHORTEST_CYCLE)
        before = min(self._found.per_second if self._found else inf, self._sent / active)
        self._growth = GROWTH if self._found else FIRST_GROWTH
        cut = LATER_CUT if self._found else DEEPEST_CUT
        rate = max(min(self._granted / whole, before), before / cut, SLOWEST)
        self._pace_at(rate, now)
        self.window = float(self.cap)

    def _pace_at(self, rate: float, now: float) -> None:
        self._found = Allowance(per_second=rate, capacity=1.0, level=1.0, at=now)
        self._known_rate, self._grown_at, self._resumed_at = rate, now, now
        self._cycle_at, self._sent, self._granted, self._refused_at = now, 0, 0, None

    def _grow(self, now: float) -> None:
        found = self._found
        assert found is not None
        seconds = max(now - self._grown_at, 0.0)
        share = self._growth * seconds * (1.0 + (seconds / FASTER_AFTER) ** 2 / 3.0)
        found.take(now, 0.0)
        found.per_second = self._known_rate * (1.0 + share)
        found.capacity = max(1.0, found.per_second * CATCH_UP)


def _spaced(per_minute: float | None) -> Allowance | None:
    """One after the other, so many a minute."""
    return Allowance(per_second=per_minute / 60, capacity=0.0, level=0.0, at=0.0) if per_minute else None


def _refilled(quota: Quota, now: float, uncounted: int) -> Allowance | None:
    """What the provider grants from here on; None where it says nothing of a limit."""
    used = quota.limit - quota.remaining
    if used <= 0 or quota.reset <= 0:
        return None
    return Allowance(
        per_second=used / quota.reset,
        capacity=quota.limit,
        level=quota.remaining - uncounted,
        at=now,
        until=now + min(max(quota.reset, MOST_PAUSE), LONGEST_TOLD),
    )
