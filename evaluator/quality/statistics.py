"""Rates with intervals."""

import math
from typing import NamedTuple

Z_95 = 1.959963984540054


class Rate(NamedTuple):
    """A share and its 95 % interval; all None where there is nothing to count."""

    share: float | None
    low: float | None
    high: float | None


def rate(passed: int, total: int) -> Rate:
    """The share of `passed` with its Wilson score interval, which stays within 0 and 1 for any count.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if total <= 0:
        return Rate(None, None, None)
    share = passed / total
    z2 = Z_95 * Z_95
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return Rate(share, max(0.0, center - half), min(1.0, center + half))
