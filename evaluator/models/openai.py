"""An OpenAI-compatible endpoint, called directly: OpenAI itself, Azure, Databricks, vLLM, llama.cpp, a gateway."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from evaluator import __version__
from evaluator.feedback import Reason
from evaluator.models.address import Address
from evaluator.models.endpoint import ChatRequest, Completion, ModelFailure
from evaluator.models.failures import error_of_body, failure_of_answer, failure_of_exception
from evaluator.models.ladder import Ladder, Rung, called, messages_for, parameters_for, rejected
from evaluator.models.parameters import Dialect
from evaluator.models.quota import limits_of

if TYPE_CHECKING:
    import aiohttp

REJECTIONS = (400, 404, 422)
"""How a form is rejected; with 404 by gateways that know of no server for it."""
MOST_FORMS = 6
"""How many forms of one request are tried until the model takes one."""
LONGEST_ANSWER = 8 * 2**20
"""Bytes: beyond any verdict with all of its thoughts. A provider that goes on and on would fill the memory."""
MOST_TOKENS = 10**9
"""A count beyond it is none: no call takes so many."""


class OpenAIEndpoint:
    """Posts to one address over one pool of connections, made at the first call.

    `model` is the name that results carry (`openai/NAME`), whatever name the server knows.
    """

    def __init__(
        self,
        model: str,
        *,
        address: Address,
        dialect: Dialect | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._model = model
        self._address = address
        self._named = {"model": address.served} if address.served else {}
        self._dialect = dialect or Dialect()
        self._ladder = Ladder()
        self._now = now
        self._session: aiohttp.ClientSession | None = None

    @property
    def model(self) -> str:
        return self._model

    @property
    def url(self) -> str:
        return self._address.url

    async def prepare(self) -> None:
        self._pool()

    async def complete(self, request: ChatRequest) -> Completion:
        rung = self._ladder.rung
        for calls in range(1, MOST_FORMS + 1):
            sent = self._dialect.spoken({**request.parameters, **parameters_for(rung, request.schema)})
            started = time.perf_counter()
            status, headers, body = await self._post(
                {**self._named, "messages": list(messages_for(rung, request)), **sent}, calls
            )
            if status == 200:
                try:
                    completion = read_completion(body, headers, self._model, self._now())
                except ModelFailure as unreadable:
                    unreadable.calls = calls
                    raise
                took = (time.perf_counter() - started) * 1000
                self._ladder.heard(rung, request, completion)
                return replace(completion, calls=calls, latency_ms=took)
            failure = failure_of_answer(status, headers, body, self._now())
            failure.calls = calls
            if status not in REJECTIONS:
                raise failure
            error = error_of_body(body)
            if self._dialect.learn(sent, error):
                continue
            if not rejected(rung, error):
                raise failure
            rung = Rung(rung + 1)
        raise failure

    async def _post(self, body: Mapping[str, Any], calls: int) -> tuple[int, Mapping[str, str], bytes]:
        import aiohttp

        try:
            async with self._pool().post(
                self._address.url, data=orjson.dumps(body), allow_redirects=False
            ) as response:
                return response.status, response.headers, await _whole(response, calls)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            failure = failure_of_exception(error)
            failure.calls = calls
            raise failure from error

    def _pool(self) -> "aiohttp.ClientSession":
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The caller limits what is in flight and sets each call's deadline.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": f"evaluator/{__version__}",
                    **self._address.headers,
                },
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def read_completion(body: bytes, headers: Mapping[str, str], model: str, now: datetime) -> Completion:
    """The completion in the body of a 200. Raises ModelFailure: an error in it, half a body, no answer at all."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        said = headers.get("Content-Type", "").split(";")[0][:60] or "no content type"
        raise ModelFailure(
            Reason.UNAVAILABLE, f"HTTP 200 whose body is not JSON ({said}); is base_url right?"
        ) from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    for failed in (answer, choice):  # OpenRouter names an error beside the half of an answer.
        if isinstance(failed, dict) and failed.get("error"):
            raise failure_of_answer(200, headers, orjson.dumps({"error": failed["error"]}), now)
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        if error_of_body(body):
            raise failure_of_answer(200, headers, body, now)
        raise ModelFailure(Reason.UNAVAILABLE, "HTTP 200 without an answer in it; is base_url right?")
    if choice.get("finish_reason") == "error":
        raise ModelFailure(Reason.UNAVAILABLE, "HTTP 200 whose answer ended with an error")
    message = choice["message"]
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    details = usage.get("prompt_tokens_details")
    refusal = message.get("refusal")
    return Completion(
        text=refusal
        if isinstance(refusal, str) and refusal
        else called(message.get("tool_calls")) or text_of(message.get("content")),
        model=model,
        finish_reason="refusal" if refusal else _word(choice.get("finish_reason")),
        input_tokens=count_of(usage.get("prompt_tokens")),
        cached_input_tokens=count_of(details.get("cached_tokens")) if isinstance(details, dict) else None,
        output_tokens=count_of(usage.get("completion_tokens")),
        limits=limits_of(headers, now),
        response_id=_word(answer.get("id")),
        response_model=_word(answer.get("model")),
    )


def text_of(content: object) -> str:
    """A message's content as text: a string, or the text parts of a list; reasoning parts are no answer."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (
        part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")
    )
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None


def count_of(value: object) -> int | None:
    """A count of tokens as a provider says it; None for what cannot be one."""
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


async def _whole(response: "aiohttp.ClientResponse", calls: int) -> bytes:
    """The body. Raises ModelFailure for one without an end."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LONGEST_ANSWER:
            said = f"the answer is longer than {LONGEST_ANSWER // 2**20} MB; is base_url right?"
            raise ModelFailure(Reason.UNAVAILABLE, said, calls=calls)
    return b"".join(parts)
