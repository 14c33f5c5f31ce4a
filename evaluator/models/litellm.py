"""Every other provider, through litellm: imported at the first call, for that takes seconds."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from evaluator.feedback import Reason
from evaluator.models.endpoint import ChatRequest, Completion, ModelFailure
from evaluator.models.failures import failure_of_litellm
from evaluator.models.openai import MOST_FORMS, response_format, text_of
from evaluator.models.parameters import Dialect


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
        self._address = {"api_base": base_url} if base_url else {}
        self._key = {"api_key": key} if key else {}
        self._dialect = Dialect()
        self._now = now
        self._litellm: Any = None

    @property
    def model(self) -> str:
        return self._model

    async def complete(self, request: ChatRequest) -> Completion:
        litellm = await self._library()
        wanted: dict[str, Any] = dict(request.parameters)
        if request.schema is not None:
            wanted["response_format"] = response_format(request.schema)
        for calls in range(1, MOST_FORMS + 1):
            sent = self._dialect.spoken(wanted)
            started = time.perf_counter()
            try:
                answer = await litellm.acompletion(
                    model=self._model,
                    messages=[dict(message) for message in request.messages],
                    num_retries=0,
                    max_retries=0,
                    drop_params=True,
                    **self._address,
                    **self._key,
                    **sent,
                )
            except Exception as error:  # foreign code: whatever it raises is a failure of the call
                failure = failure_of_litellm(error, self._now())
                failure.calls = calls
                learnable = failure.reason in (Reason.MISCONFIGURED, Reason.CONTEXT_OVERFLOW)
                if not learnable or not self._dialect.learn(sent, {"message": failure.message}):
                    raise failure from error
                continue
            took = (time.perf_counter() - started) * 1000
            return _completion(answer, self._model, calls=calls, latency_ms=took)
        raise failure

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
        text=refusal or text_of(message.content),
        model=model,
        finish_reason="refusal" if refusal else choices[0].finish_reason,
        input_tokens=getattr(usage, "prompt_tokens", None),
        cached_input_tokens=getattr(details, "cached_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
        calls=calls,
        latency_ms=latency_ms,
    )
