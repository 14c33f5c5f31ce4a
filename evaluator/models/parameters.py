"""Which parameters a model takes: what it rejects is renamed, lowered or left out from then on."""

import re
from collections.abc import Mapping
from typing import Any

FORMS = ("response_format", "tools")
"""What asks for a schema: without it the request means something else, so the ladder decides about it."""
CAPS = ("max_tokens", "max_completion_tokens")
"""The two names of the output cap; reasoning models take only the second, older servers only the first."""
LOWEST_CAP = 256

_REJECTED = re.compile(
    r"unsupported|not support|unrecognized|unrecognised|unknown|unexpected|extra (inputs|fields|parameter)"
    r"|not permitted|not allowed|deprecated|unavailable|invalid|only the default|instead",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(
    r"too large|at most|maximum allowed|in the completion|output tokens|exceeds?|less than or equal",
    re.IGNORECASE,
)


class Dialect:
    """What one model was found to take. Shared by all calls to it, so that each rejection is met once."""

    def __init__(self, renamed: Mapping[str, str] | None = None) -> None:
        self._renamed = dict(renamed or {})
        self._dropped: set[str] = set()
        self._cap: int | None = None

    def spoken(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters in the form that the model takes."""
        spoken = {}
        for name, value in parameters.items():
            name = self._renamed.get(name, name)
            if name in self._dropped:
                continue
            spoken[name] = min(value, self._cap) if name in CAPS and self._cap is not None else value
        return spoken

    def learn(self, sent: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
        """Take note of a rejection; says whether another form is worth sending.

        `error` is the provider's error object (`message`, `param`); `sent` is what it was about.
        """
        if self.spoken(sent) != dict(sent):
            return True
        message = str(error.get("message") or "")
        cap = next((name for name in CAPS if name in sent), None)
        if cap is not None and self._learn_cap(cap, sent[cap], message):
            return True
        name = str(error.get("param") or "").split(".")[0]
        if name not in sent and _REJECTED.search(message):
            name = next((key for key in sent if re.search(rf"\b{re.escape(key)}\b", message)), "")
        if name in CAPS and name in sent:
            return self._rename(name)
        if name in sent and name not in FORMS:
            self._dropped.add(name)
            return True
        return False

    def _rename(self, cap: str) -> bool:
        """Call the cap by its other name; it is never left out, for a budget reckons with it."""
        if cap in self._renamed.values():
            return False
        self._renamed[cap] = CAPS[1 - CAPS.index(cap)]
        return True

    def _learn_cap(self, cap: str, value: int, message: str) -> bool:
        other = CAPS[1 - CAPS.index(cap)]
        instead = rf"\b{other}\b.{{0,20}}\binstead\b|\binstead\b.{{0,20}}\b{other}\b"
        if re.search(instead, message) and self._rename(cap):
            return True
        about_the_cap = re.search(r"\bmax_(completion_)?tokens\b|in the completion|output tokens", message)
        if about_the_cap and _TOO_LARGE.search(message) and value // 2 >= LOWEST_CAP:
            self._cap = value // 2
            return True
        return False
