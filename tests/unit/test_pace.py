"""The pace of calls: laws over any history, and a simulated provider with and without a limit."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.models.endpoint import Limits, Quota
from evaluator.models.pace import FIRST_PAUSE, Pace


@dataclass
class Bucket:
    """A provider's limit: so many at once, and so many more each second."""

    rate: float = inf
    burst: float = inf
    at: float = 0.0
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.burst

    def grants(self, now: float) -> bool:
        if self.rate == inf:
            return True
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long it took, how many requests, and how often the unluckiest call was sent."""

    seconds: float
    requests: int
    most_tries: int


def simulated(
    calls: int,
    bucket: Bucket,
    *,
    cap: int = 128,
    latency: float = 0.2,
    refusal_latency: float = 0.01,
    retry_after: float | None = 1.0,
) -> Run:
    """All calls wanted at once, in simulated time; what was refused goes ahead of the rest."""
    pace, now = Pace(cap), 0.0
    waiting, flying, tries, done = (
        list(range(calls)),
        list[tuple[float, int, int, bool, float]](),
        Counter[int](),
        0,
    )
    while done < calls:
        wait = inf
        while waiting and (wait := pace.wait(now)) <= 0:
            call = waiting.pop(0)
            pace.started(now)
            tries[call] += 1
            granted = bucket.grants(now)
            back = now + (latency if granted else refusal_latency)
            heapq.heappush(flying, (back, tries.total(), call, granted, now))
        if waiting and now + wait < (flying[0][0] if flying else inf):
            now += wait + 1e-9
            continue
        now, _, call, granted, started = heapq.heappop(flying)
        if granted:
            pace.answered()
            done += 1
        else:
            pace.refused(now, started, retry_after)
            waiting.insert(0, call)
    return Run(seconds=now, requests=tries.total(), most_tries=max(tries.values()))


@pytest.mark.parametrize("retry_after", [1.0, None, 0.1])
@pytest.mark.parametrize("calls", [360, 3_000])
def test_behind_a_limit_the_granted_rate_is_used_and_few_requests_are_refused(
    calls: int, retry_after: float | None
) -> None:
    run = simulated(calls, Bucket(30, 30), retry_after=retry_after)

    assert calls / run.seconds >= 0.95 * 30
    assert run.requests <= 1.06 * calls
    assert run.most_tries <= 3


def test_refusals_that_come_as_late_as_answers_cost_a_tenth_at_most() -> None:
    run = simulated(600, Bucket(30, 30), refusal_latency=0.2)

    assert 600 / run.seconds >= 0.95 * 30
    assert run.requests <= 1.1 * 600


def test_without_a_limit_the_cap_is_reached_within_a_few_round_trips() -> None:
    run = simulated(3_000, Bucket())

    assert run.requests == 3_000
    assert 3_000 / run.seconds >= 0.85 * 128 / 0.2


@pytest.mark.parametrize(("rate", "burst"), [(2, 2), (5, 1), (300, 300), (100, 10)])
def test_whatever_the_limit_nothing_is_starved_of_its_tries(rate: float, burst: float) -> None:
    run = simulated(400, Bucket(rate, burst))

    assert run.most_tries <= 3
    assert run.requests <= 1.15 * 400


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.5, 500),
    burst=st.integers(1, 200),
    cap=st.integers(1, 128),
    latency=st.floats(0.01, 3),
    retry_after=st.one_of(st.none(), st.floats(0, 20)),
)
def test_every_call_comes_through_within_its_four_tries(
    rate: float, burst: int, cap: int, latency: float, retry_after: float | None
) -> None:
    run = simulated(150, Bucket(rate, burst), cap=cap, latency=latency, retry_after=retry_after)

    # Where the wait (a second, if none is named) is shorter than one more call takes, a call may be refused more often.
    named = FIRST_PAUSE if retry_after is None else retry_after
    assert run.most_tries <= 4 or named < max(1, 1 / rate)


@settings(max_examples=200, deadline=None)
@given(
    cap=st.integers(1, 40),
    steps=st.lists(st.tuples(st.sampled_from("saref"), st.floats(0, 5)), max_size=120),
)
def test_the_cap_and_the_pauses_hold_whatever_happens(cap: int, steps: list[tuple[str, float]]) -> None:
    pace, now, flying = Pace(cap), 0.0, list[float]()
    for step, value in steps:
        now += value
        if step == "s" and pace.wait(now) <= 0:
            assert now >= pace.paused_until
            pace.started(now)
            flying.append(now)
        elif step == "a" and flying:
            flying.pop()
            pace.answered()
        elif step in "re" and flying:
            pace.refused(now, flying.pop(0), value if step == "r" else None)
        elif step == "f" and flying:
            flying.pop()
            pace.ended()

        assert pace.in_flight == len(flying) <= cap
        assert pace.wait(now) >= 0
        assert pace.rate is None or pace.rate > 0


def test_refusals_of_calls_from_before_a_pause_count_as_one() -> None:
    pace = Pace(64)
    for number in range(16):
        pace.started(number / 100)
    pace.answered()

    for number in range(1, 16):
        pace.refused(0.5 + number / 100, number / 100, 1.0)

    assert pace.wait(1.0) == pytest.approx(0.65)
    assert pace.wait(2.0) == 0
    found = pace.rate
    assert found is not None
    assert found > 1


def test_a_configured_rate_is_kept_from_the_first_call_on() -> None:
    pace = Pace(64, per_minute=60, tokens_per_minute=6_000)

    waits = []
    for tokens in (50, 200, 50):
        waits.append(pace.wait(0.0, tokens))
        pace.started(0.0, tokens)

    assert waits == pytest.approx([0.0, 1.0, 2.5])


def test_what_a_provider_says_is_left_is_not_overdrawn() -> None:
    pace = Pace(64)
    pace.started(0.0)
    pace.answered()
    pace.told(0.2, Limits(requests=Quota(limit=100, remaining=2, reset=49), tokens=None))

    started = 0
    while pace.wait(0.2) <= 0:
        pace.started(0.2)
        started += 1

    assert started == 2
    assert pace.wait(0.2) == pytest.approx(0.5)
    assert pace.shut(0.2) == pytest.approx(0.5)


def test_a_day_s_quota_that_is_used_up_shuts_the_provider() -> None:
    pace = Pace(64)

    pace.told(0.0, Limits(tokens=Quota(limit=1_000, remaining=0, reset=36_000)))
    pace.started(0.0, 100)

    assert pace.shut(0.0) > 3_000


@pytest.mark.parametrize(("reset", "held"), [(1e12, 86_400.0), (3_600.0, 3_600.0)])
def test_what_a_provider_says_of_its_quota_does_not_stop_a_worker_for_ever(reset: float, held: float) -> None:
    pace = Pace(64)
    for number in range(10):
        pace.started(float(number) / 100)
    pace.told(1.0, Limits(requests=Quota(limit=1, remaining=0, reset=reset)))

    assert pace.shut(held) > 60
    assert pace.shut(1.0 + held) == 0
    assert pace.wait(1.0 + held) == 0


@pytest.mark.parametrize("retry_after", [None, 0.0, 5.0, 59.0])
def test_a_provider_that_grants_nothing_is_left_alone_after_a_while(retry_after: float | None) -> None:
    pace, now, asked = Pace(64), 0.0, 0
    while pace.shut(now) <= 60:
        now += max(pace.wait(now), 0.01)
        if pace.wait(now) > 0:
            continue
        pace.started(now)
        asked += 1
        pace.refused(now + 0.2, now, retry_after)
        now += 0.2

    assert 120 <= now <= 240
    assert asked <= 120 / 0.2 + 1
    now += pace.shut(now)
    pace.wait(now)
    pace.started(now)
    pace.answered()
    assert pace.shut(now) == 0
