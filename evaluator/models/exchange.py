"""One request to a model and what came of it, as those are told who watch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluator.models.endpoint import ChatRequest, Completion, ModelFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request that went out at `began_unix_nano`, and was answered or given up `seconds` later.

    `judges` are those it was made for: none, where a plain question tells whether the model works at all. `attempt`
    counts the tries of one question, from 1. `url` is where it went, None where nobody knows.
    """

    model: str
    url: str | None
    request: ChatRequest
    judges: Sequence[str]
    attempt: int
    began_unix_nano: int
    seconds: float
    outcome: Completion | ModelFailure


Listener = Callable[[Exchange], None]
"""Is told of each exchange when it ends. Neither waits nor raises."""
