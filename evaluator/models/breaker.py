"""Leaves a provider alone that fails one call after the other, and asks it from time to time whether it is back."""

from collections.abc import Callable, Mapping
from time import monotonic

from evaluator.feedback import Reason

STRIKES: Mapping[Reason, int] = {Reason.UNAVAILABLE: 1, Reason.TIMEOUT: 3}
"""What a failed call weighs: one that hung has held a slot for its whole deadline."""
OUT = 36
"""So many strikes with no answer between them, and the provider is left alone: nine questions with all of their tries,
or twelve calls that hung. At failure rates of a tenth this does not happen by chance."""
FIRST_REST, LONGEST_REST = 60.0, 900.0
"""Seconds for which it is left alone, doubled each time that it is not back."""


class Breaker:
    """Closed while calls come through; open after too many failures in a row, until a probe succeeds."""

    def __init__(self, seconds: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._strikes = 0
        self._rest = FIRST_REST
        self._open_until: float | None = None

    @property
    def open(self) -> bool:
        return self._open_until is not None

    @property
    def wants_probe(self) -> bool:
        """Whether it was left alone for long enough."""
        return self._open_until is not None and self._seconds() >= self._open_until

    def answered(self) -> None:
        """A call came through, or failed in a way that only a provider at work fails in."""
        self._strikes, self._rest, self._open_until = 0, FIRST_REST, None

    def failed(self, reason: Reason) -> None:
        """A call, or a probe, did not come through."""
        if self.open:
            if self.wants_probe:
                self._rest = min(self._rest * 2, LONGEST_REST)
                self._open_until = self._seconds() + self._rest
            return
        self._strikes += STRIKES.get(reason, 0)
        if self._strikes >= OUT:
            self._open_until = self._seconds() + self._rest
