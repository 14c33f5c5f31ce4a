"""What a provider's headers say is left."""

from datetime import UTC, datetime

import pytest

from evaluator.models.endpoint import Limits, Quota
from evaluator.models.quota import limits_of, seconds_of

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("17ms", 0.017),
        ("1h2m3.5s", 3723.5),
        ("12", 12),
        ("2026-11-06T12:00:30Z", 30),
        ("2026-11-06T11:00:00Z", 0),
        ("soon", None),
        ("", None),
        ("1s and more", None),
        ("inf", None),
        ("-3", None),
    ],
)
def test_a_time_until_a_limit_is_reset_is_read_in_every_spelling(text: str, seconds: float | None) -> None:
    assert seconds_of(text, NOON) == (None if seconds is None else pytest.approx(seconds))


def test_openai_s_headers_are_read() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }

    assert limits_of(headers, NOON) == Limits(
        requests=Quota(limit=60, remaining=59, reset=1),
        tokens=Quota(limit=150_000, remaining=149_984, reset=360),
    )


def test_anthropic_s_headers_are_read() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "1000",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-06T12:00:20Z",
    }

    assert limits_of(headers, NOON) == Limits(requests=Quota(limit=1_000, remaining=0, reset=20))


@pytest.mark.parametrize(
    "headers", [{}, {"x-ratelimit-remaining-requests": "5"}, {"x-ratelimit-limit-requests": "many"}]
)
def test_headers_that_say_too_little_say_nothing(headers: dict[str, str]) -> None:
    assert limits_of(headers, NOON) is None
