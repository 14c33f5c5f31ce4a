"""A model as judges use it: one endpoint with its limits, retries, deadline and budget around it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic, perf_counter, time_ns
from typing import Any

import orjson
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from evaluator.feedback import Reason
from evaluator.models.breaker import STRIKES, Breaker
from evaluator.models.budget import Budget, Reservation
from evaluator.models.endpoint import ChatRequest, Completion, Endpoint, Messages, ModelFailure
from evaluator.models.exchange import Exchange, Listener
from evaluator.models.limiter import Limiter
from evaluator.models.parameters import CAPS
from evaluator.models.prefixes import Prefixes
from evaluator.models.prices import Price
from evaluator.models.tokens import TokenCounter

TRIES = 4
FIRST_BACKOFF = 0.5
"""Seconds, doubled with each try; the wait is anything up to that."""
OUTPUT_CAP = 4096
"""Tokens of a reply where the parameters say none: enough for a verdict after some reasoning, and a bound on its cost."""
MISCONFIGURED_FOR = timedelta(minutes=1)
"""How long a model that has to be mended first is not asked again."""
NOT_THE_PROMPT = 401
"""The status that says nothing of a prompt."""
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
    judges: Sequence[str] = ()
    calls: int = 0
    tries: int = 0
    soon: bool = False
    suspected: bool = False
    failed: ModelFailure | None = None


class Model:
    """Answers prompts, or says why not. Shared by all judges that name it.

    `parameters` go with every call; `input_characters` is how much material fits beside the task, None where that is not known;
    `note` is said wherever the model is shown. `listeners` are told of each request that went out.
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
        listeners: Sequence[Listener] = (),
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
        self.tokens = TokenCounter()
        self.prefixes = Prefixes(pays=price is not None and price.caches, seconds=seconds)
        self._plain = ChatRequest(messages=PLAIN_QUESTION, parameters=parameters)
        self._endpoint = endpoint
        self._output_cap = max(int(parameters[cap]) for cap in CAPS if cap in parameters)
        self._timeout = timeout
        self._limiter = limiter or Limiter(max_concurrency=64)
        self._budget = budget
        self._listeners = listeners
        self._backoff = wait_random_exponential(multiplier=FIRST_BACKOFF, max=longest_backoff.total_seconds())
        self._retrying = AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            retry=retry_if_exception(self._worth_another_try),
            wait=self._wait,
            reraise=True,
        )
        self._seconds = seconds
        self._broken: tuple[float, ModelFailure] | None = None
        self._breaker = Breaker(seconds)
        self._probing = asyncio.Lock()
        self._examination: tuple[Mapping[str, Any] | None, ModelFailure | None] = (None, None)
        self._examinations = 0

    @property
    def limiter(self) -> Limiter:
        return self._limiter

    @property
    def name(self) -> str:
        return self._endpoint.model

    @property
    def url(self) -> str | None:
        """Where it answers, as far as we know."""
        return self._endpoint.url

    async def prepare(self) -> None:
        """Load what the first call needs. Asks nobody."""
        await self._endpoint.prepare()

    async def complete(
        self,
        messages: Messages,
        schema: Mapping[str, Any] | None = None,
        *,
        shared: int = 0,
        judges: Sequence[str] = (),
    ) -> Completion:
        """The completion with its cost and all calls it took. Raises ModelFailure after the last try.

        `shared`: so many characters of the first user message are those of other calls, too. `judges` pay for it.
        """
        request = ChatRequest(messages=messages, schema=schema, parameters=self.parameters, shared=shared)
        question = _Question(request, judges=judges)
        try:
            async with self._limiter.first_alone(), self.prefixes.turn(messages, shared) as warm:
                question.soon = warm
                await self._let_through(question)
                completion = await self._tried(question)
        except ModelFailure as failure:
            if failure.reason is Reason.ENDPOINT_DOWN and question.failed is not None:
                failure = (
                    question.failed
                )  # It was asked before the provider was given up: that was an attempt.
            failure.calls = question.calls
            raise failure from None
        return completion if question.calls == completion.calls else replace(completion, calls=question.calls)

    async def probe(self) -> Completion:
        """Ask a plain question, once. Raises ModelFailure; what the provider said is then part of its detail."""
        try:
            return await self._call(_Question(self._plain))
        except ModelFailure as failure:
            raise _told(failure) from failure

    async def close(self) -> None:
        await self._endpoint.close()

    async def _let_through(self, question: _Question) -> None:
        """Nothing, as long as calls come through. Raises ModelFailure(ENDPOINT_DOWN) while the provider is left alone.

        When it was left alone for long enough, a plain question is asked first, once and ahead of all who wait: it is
        nobody's attempt.
        """
        if not self._breaker.open:
            return
        async with self._probing:
            if self._breaker.wants_probe:
                try:
                    question.calls += (await self._call(_Question(self._plain))).calls
                except ModelFailure as failure:
                    question.calls += failure.calls
                    if failure.reason.configuration:
                        raise self._found_broken(failure) from failure
            self._check_open()

    def _check_usable(self) -> None:
        if self._broken and self._seconds() < self._broken[0]:
            known = self._broken[1]
            raise ModelFailure(known.reason, known.detail, calls=0)

    def _check_open(self) -> None:
        if self._breaker.open:
            raise ModelFailure(
                Reason.ENDPOINT_DOWN, "it failed many times in a row and is left alone", calls=0
            )

    async def _tried(self, question: _Question) -> Completion:
        """The completion of the first try that gives one. Raises the ModelFailure of the last."""
        try:
            return await self._try(question)
        except ModelFailure as failure:
            first: ModelFailure | None = failure
        # Most questions need one try, and tenacity takes as much CPU as the call: it sees the first when it failed.
        async for attempt in self._retrying.copy():  # its state is that of one question
            with attempt:
                if first is not None:
                    failed, first = first, None
                    raise failed
                return await self._try(question)
        raise AssertionError("the last try returns or raises")

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next try; none where the limiter's pause, shared by all, is the wait."""
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, ModelFailure) and (
            failure.reason is Reason.RATE_LIMITED or failure.retry_after is not None
        ):
            return 0.0
        return self._backoff(state)

    async def _try(self, question: _Question) -> Completion:
        self.counts.retries += question.tries > 0
        question.tries += 1
        try:
            completion = await self._call(question)
        except ModelFailure as failure:
            question.calls += failure.calls
            if failure.calls:
                question.failed = failure
            if failure.reason.configuration and failure.calls:
                raise await self._examined(failure, question) from failure
            raise
        question.calls += completion.calls
        return completion

    async def _examined(self, failure: ModelFailure, question: _Question) -> ModelFailure:
        """Whether the operator has to mend something, or it was this prompt: a plain question tells the two apart.

        Without it, one trace that a provider rejects would stop all judging for ever. One asks for all who wait.
        """
        plain = _Question(replace(question.request, messages=PLAIN_QUESTION), soon=True)
        before = self._examinations
        async with self._probing:
            if self._examinations == before or self._examination[0] != plain.request.schema:
                self._examination = plain.request.schema, await self._asked_plainly(plain)
                self._examinations += 1
                question.calls += plain.calls
        also = self._examination[1]
        if also is not None:
            broken = also.reason.configuration
            return self._found_broken(also) if broken else ModelFailure(Reason.UNAVAILABLE, failure.detail)
        # A key that is accepted for one prompt is accepted for all: such a provider is not of one mind.
        if question.suspected and failure.status != NOT_THE_PROMPT:
            return ModelFailure(Reason.REFUSED, f"for this prompt only: {failure.detail}")
        question.suspected = True
        return ModelFailure(Reason.UNAVAILABLE, failure.detail)

    async def _asked_plainly(self, plain: _Question) -> ModelFailure | None:
        """What became of a plain question: None where it was answered."""
        try:
            plain.calls = (await self._call(plain)).calls
        except ModelFailure as failure:
            plain.calls = failure.calls
            return failure
        return None

    def _found_broken(self, failure: ModelFailure) -> ModelFailure:
        """The operator has to mend something: nobody asks for a while, and all are told the same."""
        told = _told(failure)
        self._broken = (self._seconds() + MISCONFIGURED_FOR.total_seconds(), told)
        return told

    async def _call(self, question: _Question) -> Completion:
        """One call within its limits. A deadline holds for the call alone, not for the wait before it."""
        self._check_usable()
        tokens = most_tokens(question.request) + self._output_cap
        usd = self.price.most(tokens - self._output_cap, self._output_cap) if self.price else 0.0
        if self._budget is None:
            return await self._limited(question, Reservation(tokens=tokens, usd=usd))
        async with self._budget.reserve(tokens, usd, question.judges) as reservation:
            return await self._limited(question, reservation)

    async def _limited(self, question: _Question, reservation: Reservation) -> Completion:
        again = question.soon or question.tries > 1
        async with self._limiter.slot(reservation.tokens - self._output_cap, again=again) as slot:
            self._check_usable()  # It may have been found out while this one waited for its turn.
            if question.request is not self._plain:
                self._check_open()
            began, started = time_ns(), perf_counter()
            try:
                completion = await self._within_deadline(question.request)
            except ModelFailure as failure:
                self._note_failure(failure, reservation)
                self._tell(question, began, perf_counter() - started, failure)
                raise
            except asyncio.CancelledError:
                reservation.settle_whole()  # The provider may go on with it.
                raise
            seconds = perf_counter() - started
            slot.limits = completion.limits
        self.counts.calls += completion.calls
        self._breaker.answered()
        completion = self._settled(completion, reservation)
        self._tell(question, began, seconds, completion)
        return completion

    def _tell(
        self, question: _Question, began: int, seconds: float, outcome: Completion | ModelFailure
    ) -> None:
        if not self._listeners:
            return
        exchange = Exchange(
            model=self.name,
            url=self._endpoint.url,
            request=question.request,
            judges=question.judges,
            attempt=max(question.tries, 1),
            began_unix_nano=began,
            seconds=seconds,
            outcome=outcome,
        )
        for listener in self._listeners:
            listener(exchange)

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
        if failure.reason in STRIKES:
            self._breaker.failed(failure.reason)
        else:
            self._breaker.answered()
        if failure.reason is Reason.TIMEOUT:
            reservation.settle_whole()  # The provider may have answered, and will then want to be paid.

    def _settled(self, completion: Completion, reservation: Reservation) -> Completion:
        if completion.input_tokens is None or completion.output_tokens is None:
            reservation.settle_whole()
            return completion
        tokens = completion.input_tokens + completion.output_tokens
        if self.price is None:
            reservation.settle(tokens, 0.0)
            return completion
        cost = self.price.cost(
            completion.input_tokens,
            completion.output_tokens,
            completion.cached_input_tokens,
            completion.cache_write_tokens,
        )
        reservation.settle(tokens, cost)
        return replace(completion, cost_usd=cost)

    def _worth_another_try(self, failure: BaseException) -> bool:
        if not isinstance(failure, ModelFailure) or self._breaker.open:
            return False
        return failure.reason in _AGAIN and failure.calls > 0


def most_tokens(request: ChatRequest) -> int:
    """The most tokens that a request's input can be: no tokenizer makes more of them than there are bytes."""
    texts = [str(message.get("content", "")).encode("utf-8", "replace") for message in request.messages]
    schema = orjson.dumps(request.schema) if request.schema else b""
    return sum(len(text) + 32 for text in [*texts, schema])


def _told(failure: ModelFailure) -> ModelFailure:
    """The failure of a plain question, with the provider's words where they can hold neither a trace nor a key."""
    message = "" if failure.reason is Reason.AUTHENTICATION else " ".join(failure.message.split())[:300]
    detail = f"{failure.detail}: {message}" if message else failure.detail
    return ModelFailure(failure.reason, detail, calls=failure.calls)
