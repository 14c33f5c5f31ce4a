"""A model as judges use it: one endpoint with its limits, retries, deadline and budget around it."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from evaluator.feedback import Reason
from evaluator.models.budget import Budget, Reservation
from evaluator.models.endpoint import ChatRequest, Completion, Endpoint, Messages, ModelFailure
from evaluator.models.limiter import LONGEST_PAUSE, Limiter
from evaluator.models.parameters import CAPS
from evaluator.models.prices import Price

TRIES = 4
OUTPUT_CAP = 4096
"""Tokens of a reply where the parameters say none: enough for a verdict after some reasoning, and a bound on its cost."""
MISCONFIGURED_FOR = timedelta(minutes=1)
"""How long a model that has to be mended first is not asked again."""
PLAIN_QUESTION = (
    {"role": "user", "content": 'Reply with this JSON object: {"rationale": "ready", "result": "yes"}'},
)

_AGAIN = frozenset({Reason.RATE_LIMITED, Reason.UNAVAILABLE, Reason.TIMEOUT})


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened so far: requests sent, those that were tries beyond the first, and 429s."""

    calls: int = 0
    retries: int = 0
    rate_limited: int = 0


@dataclass(slots=True)
class _Question:
    """One prompt on its way to a completion."""

    request: ChatRequest
    calls: int = 0
    tries: int = 0
    suspected: bool = False


class Model:
    """Answers prompts, or says why not. Shared by all judges that name it.

    `parameters` go with every call; `input_characters` is how much material fits beside the task, None where that is not known;
    `note` is said wherever the model is shown.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        parameters: Mapping[str, Any] | None = None,
        timeout: timedelta = timedelta(seconds=60),
        limiter: Limiter | None = None,
        budget: Budget | None = None,
        price: Price | None = None,
        input_characters: int | None = None,
        note: str | None = None,
        longest_backoff: timedelta = timedelta(seconds=8),
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        parameters = dict(parameters or {})
        if not any(cap in parameters for cap in CAPS):
            parameters["max_tokens"] = OUTPUT_CAP
        self.parameters: Mapping[str, Any] = parameters
        self.price = price
        self.input_characters = input_characters
        self.note = note
        self.counts = Counts()
        self._endpoint = endpoint
        self._output_cap = max(int(parameters[cap]) for cap in CAPS if cap in parameters)
        self._timeout = timeout
        self._limiter = limiter or Limiter(max_concurrency=64)
        self._budget = budget
        self._backoff = wait_random_exponential(multiplier=0.5, max=longest_backoff.total_seconds())
        self._seconds = seconds
        self._broken: tuple[float, ModelFailure] | None = None

    @property
    def name(self) -> str:
        return self._endpoint.model

    async def complete(self, messages: Messages, schema: Mapping[str, Any] | None = None) -> Completion:
        """The completion with its cost and all calls it took. Raises ModelFailure after the last try."""
        question = _Question(ChatRequest(messages=messages, schema=schema, parameters=self.parameters))
        try:
            async with self._limiter.first_alone():
                completion: Completion = await self._retrying()(self._try, question)
        except ModelFailure as failure:
            failure.calls = question.calls
            raise
        return replace(completion, calls=question.calls)

    async def probe(self) -> Completion:
        """Ask a plain question, once. Raises ModelFailure; what the provider said is then part of its detail."""
        request = ChatRequest(messages=PLAIN_QUESTION, parameters=self.parameters)
        try:
            return await self._call(request)
        except ModelFailure as failure:
            raise _told(failure) from failure

    async def close(self) -> None:
        await self._endpoint.close()

    async def _try(self, question: _Question) -> Completion:
        self.counts.retries += question.tries > 0
        question.tries += 1
        try:
            completion = await self._call(question.request)
        except ModelFailure as failure:
            question.calls += failure.calls
            if failure.reason.configuration and failure.calls:
                raise await self._examined(failure, question) from failure
            raise
        question.calls += completion.calls
        return completion

    async def _examined(self, failure: ModelFailure, question: _Question) -> ModelFailure:
        """Whether the operator has to mend something, or it was this prompt: a plain question tells the two apart.

        Without it, one trace that a provider rejects would stop all judging for ever.
        """
        plain = replace(question.request, messages=PLAIN_QUESTION)
        try:
            question.calls += (await self._call(plain)).calls
        except ModelFailure as also:
            question.calls += also.calls
            if not also.reason.configuration:
                return ModelFailure(Reason.UNAVAILABLE, failure.detail)
            told = _told(also)
            self._broken = (self._seconds() + MISCONFIGURED_FOR.total_seconds(), told)
            return told
        if question.suspected:
            return ModelFailure(Reason.REFUSED, f"for this prompt only: {failure.detail}")
        question.suspected = True
        return ModelFailure(Reason.UNAVAILABLE, failure.detail)

    async def _call(self, request: ChatRequest) -> Completion:
        """One call within its limits. A deadline holds for the call alone, not for the wait before it."""
        if self._broken and self._seconds() < self._broken[0]:
            known = self._broken[1]
            raise ModelFailure(known.reason, known.detail, calls=0)
        tokens = most_tokens(request) + self._output_cap
        usd = self.price.cost(tokens - self._output_cap, self._output_cap) if self.price else 0.0
        if self._budget is None:
            return await self._limited(request, Reservation(tokens=tokens, usd=usd))
        async with self._budget.reserve(tokens, usd) as reservation:
            return await self._limited(request, reservation)

    async def _limited(self, request: ChatRequest, reservation: Reservation) -> Completion:
        async with self._limiter.slot(reservation.tokens - self._output_cap):
            try:
                completion = await self._within_deadline(request)
            except ModelFailure as failure:
                self._note_failure(failure, reservation)
                raise
        self.counts.calls += completion.calls
        return self._settled(completion, reservation)

    async def _within_deadline(self, request: ChatRequest) -> Completion:
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                return await self._endpoint.complete(request)
        except TimeoutError as error:
            seconds = self._timeout.total_seconds()
            raise ModelFailure(Reason.TIMEOUT, f"no answer within {seconds:g} s (judge.timeout)") from error

    def _note_failure(self, failure: ModelFailure, reservation: Reservation) -> None:
        self.counts.calls += failure.calls
        self.counts.rate_limited += failure.reason is Reason.RATE_LIMITED
        if failure.reason is Reason.TIMEOUT:
            reservation.settle_whole()  # The provider may have answered, and will then want to be paid.
        if failure.retry_after is not None and failure.reason in _AGAIN:
            self._limiter.pause(failure.retry_after)

    def _settled(self, completion: Completion, reservation: Reservation) -> Completion:
        if completion.input_tokens is None or completion.output_tokens is None:
            reservation.settle_whole()
            return completion
        tokens = completion.input_tokens + completion.output_tokens
        if self.price is None:
            reservation.settle(tokens, 0.0)
            return completion
        cost = self.price.cost(
            completion.input_tokens, completion.output_tokens, completion.cached_input_tokens
        )
        reservation.settle(tokens, cost)
        return replace(completion, cost_usd=cost)

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            retry=retry_if_exception(_worth_another_try),
            wait=self._wait,
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, ModelFailure) and failure.retry_after:
            return 0.0  # The limiter's pause is shared by all.
        return self._backoff(state)


def most_tokens(request: ChatRequest) -> int:
    """The most tokens that a request's input can be: no tokenizer makes more of them than there are bytes."""
    texts = [str(message.get("content", "")) for message in request.messages]
    schema = json.dumps(request.schema) if request.schema else ""
    return sum(len(text.encode("utf-8", "replace")) + 32 for text in [*texts, schema])


def _worth_another_try(error: BaseException) -> bool:
    if not isinstance(error, ModelFailure) or error.reason not in _AGAIN or error.calls == 0:
        return False
    return error.retry_after is None or error.retry_after <= LONGEST_PAUSE


def _told(failure: ModelFailure) -> ModelFailure:
    """The failure of a plain question, with the provider's words where they can hold neither a trace nor a key."""
    message = "" if failure.reason is Reason.AUTHENTICATION else " ".join(failure.message.split())[:300]
    detail = f"{failure.detail}: {message}" if message else failure.detail
    return ModelFailure(failure.reason, detail, calls=failure.calls)
