"""The results of scorers that are code."""

import re

from evaluator.feedback import Feedback, Reason, Scored, Unscored

SHOWN = 80
"""How many characters of a value a rationale shows."""


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with U+FFFD for what no table can hold: NUL, and halves of surrogate pairs."""
    return _UNSTORABLE.sub("\ufffd", text)


def verdict(passed: bool, rationale: str) -> Scored:
    """Pass or fail, written "yes" or "no" as MLflow's judges do."""
    return Scored(outcome=Feedback(value="yes" if passed else "no", passed=passed, rationale=rationale))


def unscored(reason: Reason, detail: str) -> Scored:
    return Scored(outcome=Unscored(reason=reason, detail=detail))


def not_applicable(detail: str) -> Scored:
    """There is nothing in the trace that the scorer could look at."""
    return unscored(Reason.NOT_APPLICABLE, detail)


def shown(value: object) -> str:
    """A value as a rationale shows it: one line, and not all of a long one."""
    if value is None:
        return "null"
    text = " ".join(str(value).split())
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return repr(text) if isinstance(value, str) else text
