"""What a provider's headers say of its limits: OpenAI's and Anthropic's spellings."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from evaluator.models.endpoint import Limits, Quota

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def limits_of(headers: Mapping[str, str], now: datetime) -> Limits | None:
    """The quotas in an answer's headers (looked up as they are: a mapping that ignores case, or lower case)."""
    requests, tokens = _quota(headers, "requests", now), _quota(headers, "tokens", now)
    return Limits(requests=requests, tokens=tokens) if requests or tokens else None


def _quota(headers: Mapping[str, str], unit: str, now: datetime) -> Quota | None:
    """`x-ratelimit-limit-requests` as OpenAI says it, `anthropic-ratelimit-requests-limit` as Anthropic does."""
    for limit, remaining, reset in (
        (f"x-ratelimit-limit-{unit}", f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}"),
        (
            f"anthropic-ratelimit-{unit}-limit",
            f"anthropic-ratelimit-{unit}-remaining",
            f"anthropic-ratelimit-{unit}-reset",
        ),
    ):
        if limit in headers and remaining in headers and reset in headers:
            most, left = _number(headers[limit]), _number(headers[remaining])
            wait = seconds_of(headers[reset], now)
            if most is not None and left is not None and wait is not None:
                return Quota(limit=most, remaining=left, reset=wait)
    return None


def seconds_of(text: str, now: datetime) -> float | None:
    """How long from now: `1m30.5s`, `17ms`, `12` seconds, or a time as RFC 3339 writes it. None for anything else."""
    text = text.strip()
    number = _number(text)
    if number is not None:
        return number
    if text and _SPAN.sub("", text) == "":
        return sum(float(amount) * _SECONDS[unit] for amount, unit in _SPAN.findall(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return max(((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds(), 0.0)


def _number(text: str) -> float | None:
    """A plain decimal number, not below zero; None for what is none."""
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text.strip(), re.ASCII) else None
