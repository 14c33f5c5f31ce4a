"""A stub of a model provider that speaks OpenAI's protocol: the only thing in the tests that stands in for something real.

    with StubProvider() as stub:
        ...  # ask stub.base_url; then look at stub.requests

    python -m tests.stub_provider --port 0 --latency 0.2        # prints its base_url; ends with its input

It answers by the schema it is asked for, deterministically from the prompt. A fault is one of FAULTS: `script` holds
those of the next requests, in turn ("ok" is none); `faults` maps one to its share of all requests, decided by a
hash of the prompt and how often it came, so that a retry may fare better; `fault_of` tells it from a request's body.
`rejects` and `ignores` name parameters:
one that is rejected gets a 400; asked for its form by one that it ignores (response_format, tools), it talks.
"""

import argparse
import asyncio
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

FAULTS = (
    "400", "401", "403", "404", "500", "503", "529", "429", "hang", "reset", "half", "gzip", "html", "redirect",
    "error_in_200", "no_choices", "overflow", "no_temperature", "filter", "refusal", "truncated", "prose", "broken_json",
    "empty", "out_of_range", "misses_one",
)  # fmt: skip

Verdict = Callable[[str], Any]
"""From the prompt (its last user message) to the `result` of the reply; for one of several judges, `[NAME]` is its end."""


class StubProvider:
    """Serves in a thread of its own from `with` to its end. `requests` holds the bodies received, oldest first."""

    def __init__(
        self,
        *,
        latency: float = 0.0,
        rate: float | None = None,
        burst: int = 1,
        retry_after: str | None = "1",
        verdict: Verdict | None = None,
        script: Iterable[str] = (),
        rejects: Iterable[str] = (),
        ignores: Iterable[str] = (),
        faults: Mapping[str, float] | None = None,
        fault_of: Callable[[Mapping[str, Any]], str] | None = None,
        cached_tokens: int = 0,
        port: int = 0,
        forget: bool = False,
    ) -> None:
        self.latency = latency
        self.retry_after = retry_after
        self.verdict = verdict
        self.script = list(script)
        self.rejects = frozenset(rejects)
        self.ignores = frozenset(ignores)
        self.faults = dict(faults or {})
        self.fault_of = fault_of
        self.cached_tokens = cached_tokens
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.count = 0
        self._forget = forget
        self.in_flight = 0
        self.most_in_flight = 0
        self._rate, self._burst = rate, burst
        self._granted, self._since = float(burst), time.monotonic()
        self._seen: Counter[str] = Counter()
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub provider", daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def root_url(self) -> str:
        """What a workspace's host is: its paths follow."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "StubProvider":
        self._thread.start()
        self._ready.wait(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/{prefix:.*}chat/completions", self._answer)
        app.router.add_post("/serving-endpoints/{name}/invocations", self._answer)
        app.router.add_get("/stub/requests", self._show)
        app.router.add_post("/stub/script", self._take_script)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _show(self, _: web.Request) -> web.Response:
        return web.json_response({"count": self.count, "requests": self.requests})

    async def _take_script(self, request: web.Request) -> web.Response:
        self.script.extend(await request.json())
        return web.json_response({"script": self.script})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.count += 1
        if not self._forget:
            self.requests.append(body)
            self.headers.append(dict(request.headers))
            self.paths.append(request.path_qs)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if not self._grant():
                return self._limited()
            fault = self._fault(body)
            if self.latency:
                await asyncio.sleep(self.latency)
            if fault != "ok":
                return await self._faulty(fault, request, body)
            if named := next((name for name in body if name in self.rejects), None):
                return error(
                    400, "unsupported_parameter", f"Unsupported parameter: '{named}' is not supported."
                )
            if self.ignores & body.keys():
                return await self._faulty("prose", request, body)
            return self._completed(body)
        finally:
            self.in_flight -= 1

    def _grant(self) -> bool:
        if self._rate is None:
            return True
        now = time.monotonic()
        self._granted = min(self._burst, self._granted + (now - self._since) * self._rate)
        self._since = now
        if self._granted < 1:
            return False
        self._granted -= 1
        return True

    def _fault(self, body: Mapping[str, Any]) -> str:
        if self.script:
            return self.script.pop(0)
        if self.fault_of is not None:
            return self.fault_of(body)
        prompt = prompt_of(body)
        self._seen[prompt] += 1
        chance = chance_of(f"{self._seen[prompt]} {prompt}")
        for fault, share in self.faults.items():
            if chance < share:
                return fault
            chance -= share
        return "ok"

    def _limited(self) -> web.Response:
        headers = {"Retry-After": self.retry_after} if self.retry_after is not None else {}
        return error(429, "rate_limit_exceeded", "Rate limit reached", headers)

    async def _faulty(self, fault: str, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        match fault:
            case "429":
                return self._limited()
            case "400":
                return error(400, "invalid_request_error", f"Invalid request: {prompt_of(body)[:50]}")
            case "401":
                return error(401, "invalid_api_key", "Incorrect API key provided: sk-12345678")
            case "403":
                return error(403, "permission_denied", "Not allowed")
            case "404":
                return error(
                    404, "model_not_found", f"The model `{body.get('model', 'stub')}` does not exist"
                )
            case "500" | "503" | "529":
                return error(int(fault), "server_error", "The server had an error")
            case "hang":
                await asyncio.sleep(3600)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
            case "half":
                return await half(request, json.dumps(self._reply(body)))
            case "gzip":
                return web.Response(body=b"no gzip", headers={"Content-Encoding": "gzip"})
            case "html":
                return web.Response(text="<html>Sign in</html>", content_type="text/html")
            case "redirect":
                return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/elsewhere"})
            case "error_in_200":
                return error(200, "server_error", "upstream failed")
            case "no_choices":
                return web.json_response({"choices": []})
            case "overflow":
                return error(
                    400, "context_length_exceeded", "This model's maximum context length is 10 tokens."
                )
            case "no_temperature" if "temperature" in body:
                return error(400, "unsupported_value", "Unsupported value: 'temperature' does not support 0.")
            case "filter":
                return web.json_response(self._reply(body, text="", finish_reason="content_filter"))
            case "refusal":
                return web.json_response(self._reply(body, refusal="I can't help with that."))
            case "truncated":
                return web.json_response(self._reply(body, text='{"rationale": "It', finish_reason="length"))
            case "prose":
                return web.json_response(self._reply(body, text="I would say that it is quite all right."))
            case "broken_json":
                return web.json_response(self._reply(body, text='{"rationale": "It is", "result": "yes'))
            case "misses_one":
                *kept, _ = self._judged(body).items()
                return web.json_response(self._reply(body, text=json.dumps(dict(kept))))
            case "empty":
                return web.json_response(self._reply(body, text=""))
            case "out_of_range":
                return web.json_response(self._reply(body, text='{"rationale": "", "result": "perhaps"}'))
        return self._completed(body)

    def _completed(self, body: Mapping[str, Any]) -> web.Response:
        return web.json_response(self._reply(body))

    def _reply(
        self,
        body: Mapping[str, Any],
        *,
        text: str | None = None,
        finish_reason: str = "stop",
        refusal: str | None = None,
    ) -> dict[str, Any]:
        judged = text is None and refusal is None
        text = json.dumps(self._judged(body)) if text is None else text
        whole = "".join(str(message["content"]) for message in body["messages"])
        message = {"role": "assistant", "content": None if refusal else text, "refusal": refusal}
        if judged and body.get("tools"):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": text}
            call = {"id": "call_1", "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
            finish_reason = "tool_calls"
        usage = {
            "prompt_tokens": len(whole) // 4 + 1,
            "completion_tokens": len(text) // 4 + 1,
            "total_tokens": len(whole) // 4 + len(text) // 4 + 2,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        return {
            "id": "stub",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", "stub"),
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
            "usage": usage,
        }

    def _judged(self, body: Mapping[str, Any]) -> dict[str, Any]:
        form = schema_of(body)
        prompt = prompt_of(body) if self.verdict is None else asked_in(body)
        parts = {key: part for key, part in form.get("properties", {}).items() if "properties" in part}
        if parts:  # several judges in one call
            return {key: self._judged_by(part, f"{prompt}\n[{key}]") for key, part in parts.items()}
        return self._judged_by(form, prompt)

    def _judged_by(self, form: Mapping[str, Any], prompt: str) -> dict[str, Any]:
        result = form.get("properties", {}).get("result", {"enum": ["yes", "no"]})
        if self.verdict is not None:
            value = self.verdict(prompt)
        elif "enum" in result:
            value = result["enum"][int(chance_of(prompt) * len(result["enum"]))]
        else:
            value = 1 + int(chance_of(prompt) * 5)
        return {"rationale": "Decided by a hash of the prompt.", "result": value}


def prompt_of(body: Mapping[str, Any]) -> str:
    """The last user message."""
    users = [message for message in body["messages"] if message["role"] == "user"]
    return str(users[-1]["content"]) if users else ""


def asked_in(body: Mapping[str, Any]) -> str:
    """All user messages: a request for a repair comes after the question."""
    return "\n".join(str(message["content"]) for message in body["messages"] if message["role"] == "user")


def schema_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema that a request asks for, by whichever form; empty where it asks for none."""
    if "response_format" in body:
        return dict(body["response_format"].get("json_schema", {}).get("schema", {}))
    if body.get("tools"):
        return dict(body["tools"][0]["function"]["parameters"])
    _, said, schema_text = prompt_of(body).rpartition("follows this JSON Schema, and nothing else:\n")
    return dict(json.loads(schema_text)) if said else {}


def chance_of(text: str) -> float:
    """A number in [0, 1) that belongs to a text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:6], "big") / 2**48


def error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "stub_error", "code": code}}
    return web.json_response(body, status=status, headers=headers)


async def half(request: web.Request, text: str) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Length": str(len(text)), "Content-Type": "application/json"}
    )
    await response.prepare(request)
    await response.write(text[: len(text) // 2].encode())
    assert request.transport is not None
    request.transport.close()
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description="A stub of a model provider, for tests and benchmarks.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--rate", type=float, help="requests a second; more get 429")
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--retry-after", default="1")
    parser.add_argument("--faults", type=json.loads, default={}, help='{"500": 0.05, "hang": 0.02}')
    parser.add_argument("--forget", action="store_true", help="count requests, and keep none")
    parser.add_argument("--yes-if", help="the verdict is yes where the prompt holds this, else no")
    parser.add_argument("--script", type=json.loads, default=[], help='["429", "ok"]')
    arguments = parser.parse_args()
    options = vars(arguments)
    word = options.pop("yes_if")
    verdict = None if word is None else lambda prompt: "yes" if word in prompt else "no"
    with StubProvider(verdict=verdict, **options) as stub:
        sys.stdout.write(f"{stub.base_url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
