"""The port of everything that answers a prompt, and the values that pass through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from evaluator.feedback import Reason

Messages = Sequence[Mapping[str, Any]]
"""Messages in OpenAI's form: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """Messages, the JSON Schema wanted of the reply, and the model's parameters.

    `shared` is how many characters of the first user message other calls begin with, too.
    """

    messages: Messages
    schema: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a provider says is left of a limit, and in how many seconds all of it is there again."""

    limit: float
    remaining: float
    reset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The quotas that came with an answer, of requests and of tokens; None where it says nothing of them."""

    requests: Quota | None = None
    tokens: Quota | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A model's answer. `calls` counts the requests it took; `cost_usd` None is unknown, never zero.

    `finish_reason` is OpenAI's (stop, length, content_filter), or "refusal" where the model refused in a field of
    its own. `input_tokens` include the `cached_input_tokens`, and those that were written to the provider's cache.
    `response_id` and `response_model` are the provider's own words for the answer and for what gave it.
    """

    text: str
    model: str
    finish_reason: str | None = None
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float = 0.0
    calls: int = 1
    limits: Limits | None = None
    response_id: str | None = None
    response_model: str | None = None


class ModelFailure(Exception):  # noqa: N818 -- a failure is a value here: it becomes an Unscored
    """A call that gave no completion. `detail` names the cause and holds no prompt and no key.

    `message` holds the provider's own words, which may repeat the prompt: never log or store them, unless the prompt
    held nothing of anybody. `status` is HTTP's, where there was one.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        retry_after: timedelta | None = None,
        calls: int = 1,
        message: str = "",
        limits: Limits | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.calls = calls
        self.message = message
        self.limits = limits
        self.status = status


class Endpoint(Protocol):
    """Sends one request and returns its completion; no retry, no limit, no cache of its own.

    Only a request whose form was rejected (a parameter that the model does not take) may be sent again in a form
    that it takes; `calls` counts those too.
    """

    @property
    def model(self) -> str: ...
    @property
    def url(self) -> str | None:
        """Where it asks; None where a library behind it decides that."""
        ...

    async def prepare(self) -> None:
        """Load what the first call needs, which may take seconds. Asks nobody."""
        ...

    async def complete(self, request: ChatRequest) -> Completion:
        """The completion. Raises ModelFailure with the reason it falls under."""
        ...

    async def close(self) -> None: ...
