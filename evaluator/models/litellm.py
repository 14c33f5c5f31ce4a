"""Every other provider, through litellm: imported when it is needed, for that takes seconds."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from evaluator.feedback import Reason
from evaluator.models.endpoint import ChatRequest, Completion, Messages, ModelFailure
from evaluator.models.failures import failure_of_litellm
from evaluator.models.ladder import Ladder, Rung, called, messages_for, parameters_for, rejected
from evaluator.models.openai import MOST_FORMS, count_of, text_of
from evaluator.models.parameters import Dialect
from evaluator.models.prefixes import marked, wants_marks
from evaluator.models.quota import limits_of


class LiteLLMEndpoint:
    """Asks through `litellm.acompletion`; keys and regions come from the environment, as litellm names them.

    Its own retries, callbacks and messages are off: they would hide a failure, or tell others of a prompt.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._model = model
        self.url = base_url
        self._address = {"api_base": base_url} if base_url else {}
        self._key = {"api_key": key} if key else {}
        self._dialect = Dialect()
        self._ladder = Ladder()
        self._now = now
        self._litellm: Any = None

    @property
    def model(self) -> str:
        return self._model

    async def prepare(self) -> None:
        await self._library()

    async def complete(self, request: ChatRequest) -> Completion:
        litellm = await self._library()
        rung = self._ladder.rung
        for calls in range(1, MOST_FORMS + 1):
            sent = self._dialect.spoken({**request.parameters, **parameters_for(rung, request.schema)})
            started = time.perf_counter()
            try:
                answer = await litellm.acompletion(
                    model=self._model,
                    messages=self._sent(messages_for(rung, request), request.shared),
                    num_retries=0,
                    max_retries=0,
                    drop_params=True,
                    _skip_mcp_handler=True,  # it fails on any call with tools where litellm's proxy is not installed
                    **self._address,
                    **self._key,
                    **sent,
                )
            except Exception as error:  # foreign code: whatever it raises is a failure of the call
                failure = failure_of_litellm(error, self._now())
                failure.calls = calls
                learnable = failure.reason in (Reason.MISCONFIGURED, Reason.CONTEXT_OVERFLOW)
                said = {"message": failure.message}
                if learnable and self._dialect.learn(sent, said):
                    continue
                if not learnable or not rejected(rung, said):
                    raise failure from error
                rung = Rung(rung + 1)
                continue
            took = (time.perf_counter() - started) * 1000
            limits = limits_of(getattr(answer, "_response_headers", None) or {}, self._now())
            completion = replace(
                _completion(answer, self._model, calls=calls, latency_ms=took), limits=limits
            )
            self._ladder.heard(rung, request, completion)
            return completion
        raise failure

    def _sent(self, messages: Messages, shared: int) -> list[dict[str, Any]]:
        """The messages, with the end of what others share marked where the provider's cache wants that."""
        return marked(messages, shared if wants_marks(self._model) else 0)

    async def _library(self) -> Any:
        if self._litellm is None:
            self._litellm = await asyncio.to_thread(_quiet_litellm)
        return self._litellm

    async def close(self) -> None:
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()


def _quiet_litellm() -> Any:
    """litellm without the network at import, and without a word of its own."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.callbacks = []
    litellm.success_callback = []
    litellm.failure_callback = []
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return litellm


def _completion(answer: Any, model: str, *, calls: int, latency_ms: float) -> Completion:
    choices = getattr(answer, "choices", None)
    if not choices:
        raise ModelFailure(Reason.UNAVAILABLE, "litellm returned an answer without choices", calls=calls)
    message = choices[0].message
    usage = getattr(answer, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    refusal = (getattr(message, "provider_specific_fields", None) or {}).get("refusal") or getattr(
        message, "refusal", None
    )
    return Completion(
        text=refusal or called(_plain(message.tool_calls)) or text_of(message.content),
        model=model,
        finish_reason="refusal" if refusal else choices[0].finish_reason,
        input_tokens=count_of(getattr(usage, "prompt_tokens", None)),
        cached_input_tokens=count_of(getattr(details, "cached_tokens", None)),
        cache_write_tokens=count_of(getattr(usage, "cache_creation_input_tokens", None)),
        output_tokens=count_of(getattr(usage, "completion_tokens", None)),
        calls=calls,
        latency_ms=latency_ms,
        response_id=getattr(answer, "id", None),
        response_model=getattr(answer, "model", None),
    )


def _plain(tool_calls: Any) -> list[Any]:
    """Tool calls as they came over the wire; litellm makes objects of them."""
    return [call.model_dump() if hasattr(call, "model_dump") else call for call in tool_calls or ()]
