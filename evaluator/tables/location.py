"""Where a table lies, and the key to it: both may change while a run goes on."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE = {"timeout": "30s", "connect_timeout": "5s", "max_retries": "20", "retry_timeout": "60s"}
"""A request that hangs is given up, and what fails is asked again for a minute: the library's own 10 retries were
through after 2 to 5 s of 503s (object_store 0.13.2), and its 180 s of patience outlast any grace."""

RENEWED_BEFORE = 0.2
LONGEST_BEFORE = 300.0
"""A key is renewed in the last fifth of its life, five minutes before its end at the earliest: whatever was begun
with the old one still ends well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A table's place as of now.

    `fresh_until`: the second of the epoch from which on another key is to be asked for, None: this one does not
    end. `read_only`: why nothing can be written with it, None: it can.
    """

    uri: str
    storage_options: Mapping[str, str]
    fresh_until: float | None = None
    read_only: str | None = None

    @property
    def fresh(self) -> bool:
        return self.fresh_until is None or time.time() < self.fresh_until


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def with_patience(uri: str, storage_options: Mapping[str, str]) -> dict[str, str]:
    """The options, with bounds for every request to a store elsewhere; what was set stays."""
    return {**PATIENCE, **storage_options} if is_remote(uri) else dict(storage_options)


def fresh_until(ends: float) -> float:
    """From when on a key that ends (both in seconds of the epoch) is to be renewed."""
    return ends - min(RENEWED_BEFORE * max(ends - time.time(), 0.0), LONGEST_BEFORE)
