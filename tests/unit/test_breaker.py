"""When a provider is left alone, and when it is asked again."""

import random

from evaluator.feedback import Reason
from evaluator.models.breaker import FIRST_REST, LONGEST_REST, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_provider_that_only_fails_is_left_alone_and_asked_again_later_and_later() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(36):
        assert not breaker.open
        breaker.failed(Reason.UNAVAILABLE)
    rests = []
    for _ in range(6):
        began = clock.now
        assert breaker.open
        while not breaker.wants_probe:
            clock.now += 1
        rests.append(clock.now - began)
        breaker.failed(Reason.UNAVAILABLE)

    assert rests == [FIRST_REST, 120, 240, 480, LONGEST_REST, LONGEST_REST]


def test_calls_that_hang_count_for_more() -> None:
    breaker = Breaker(Clock())

    for _ in range(12):
        assert not breaker.open
        breaker.failed(Reason.TIMEOUT)

    assert breaker.open


def test_a_probe_that_succeeds_closes_it() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(36):
        breaker.failed(Reason.UNAVAILABLE)

    clock.now += FIRST_REST
    assert breaker.wants_probe
    breaker.answered()

    assert not breaker.open


def test_what_was_still_out_when_it_opened_does_not_lengthen_the_rest() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(100):
        breaker.failed(Reason.TIMEOUT)

    clock.now += FIRST_REST

    assert breaker.wants_probe


def test_a_tenth_of_all_calls_failing_does_not_open_it() -> None:
    breaker = Breaker(Clock())
    chance = random.Random(7)
    for _ in range(100_000):
        if chance.random() < 0.1:
            breaker.failed(Reason.TIMEOUT if chance.random() < 0.3 else Reason.UNAVAILABLE)
        else:
            breaker.answered()

        assert not breaker.open
