"""What every endpoint promises, whichever way it asks."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from evaluator.feedback import Feedback, Reason
from evaluator.guidelines.definitions import YesNo
from evaluator.models.address import azure_address, databricks_address, openai_address
from evaluator.models.endpoint import ChatRequest, Endpoint, ModelFailure
from evaluator.models.litellm import LiteLLMEndpoint
from evaluator.models.local import LocalEndpoint, available
from evaluator.models.openai import OpenAIEndpoint, read_completion
from evaluator.scorers.reply import read_reply, reply_schema
from tests.stub_provider import StubProvider, schema_of

QUESTION = ChatRequest(
    messages=[
        {"role": "system", "content": "You are a judge."},
        {"role": "user", "content": "Is the sky blue on a clear day? Give a rationale and a result."},
    ],
    schema=reply_schema(YesNo()),
    parameters={"temperature": 0, "max_tokens": 256},
)
OVER_THE_NETWORK = ["openai", "azure", "databricks", "litellm"]
EVERY_ENDPOINT = [
    *OVER_THE_NETWORK,
    pytest.param(
        "local", marks=pytest.mark.skipif(not available(), reason="no embedded model on this platform")
    ),
]
# litellm 1.106 leaves its clients' last connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@asynccontextmanager
async def an_endpoint(kind: str, stub: StubProvider) -> AsyncIterator[Endpoint]:
    endpoint: Endpoint
    match kind:
        case "openai":
            endpoint = OpenAIEndpoint(
                "openai/stub", address=openai_address("stub", stub.base_url, "sk-secret")
            )
        case "azure":
            endpoint = OpenAIEndpoint(
                "azure/stub", address=azure_address("stub", stub.root_url, "sk-secret", "2025-01-01")
            )
        case "databricks":
            endpoint = OpenAIEndpoint(
                "databricks/stub", address=databricks_address("stub", stub.root_url, "sk-secret")
            )
        case "litellm":
            endpoint = LiteLLMEndpoint("openai/stub", base_url=stub.base_url, key="sk-secret")
        case _:
            endpoint = LocalEndpoint()
    try:
        yield endpoint
    finally:
        await endpoint.close()


@pytest.mark.parametrize("kind", EVERY_ENDPOINT)
async def test_a_reply_follows_the_schema_and_tells_its_tokens(kind: str, stub: StubProvider) -> None:
    async with an_endpoint(kind, stub) as endpoint:
        completion = await endpoint.complete(QUESTION)

    assert read_reply(completion, YesNo()).value in ("yes", "no")  # type: ignore[union-attr]
    assert completion.model == endpoint.model
    assert completion.finish_reason == "stop"
    assert completion.input_tokens > 10
    assert completion.output_tokens > 3
    assert completion.calls == 1
    assert completion.latency_ms > 0


@pytest.mark.parametrize("kind", EVERY_ENDPOINT)
async def test_a_prompt_beyond_the_window_is_said_to_be_that(kind: str, stub: StubProvider) -> None:
    stub.script = ["overflow"]
    long = ChatRequest(messages=[{"role": "user", "content": "word " * 20_000}], schema=QUESTION.schema)
    async with an_endpoint(kind, stub) as endpoint:
        with pytest.raises(ModelFailure) as caught:
            await endpoint.complete(long)

    assert caught.value.reason is Reason.CONTEXT_OVERFLOW


@pytest.mark.parametrize("kind", EVERY_ENDPOINT)
async def test_an_endpoint_can_be_closed_before_any_call_and_twice(kind: str, stub: StubProvider) -> None:
    async with an_endpoint(kind, stub) as endpoint:
        await endpoint.close()

    assert stub.requests == []


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
async def test_messages_parameters_and_schema_reach_the_provider(kind: str, stub: StubProvider) -> None:
    async with an_endpoint(kind, stub) as endpoint:
        await endpoint.complete(QUESTION)

    (sent,) = stub.requests
    assert sent.get("model", "stub") == "stub"
    assert sent["messages"] == QUESTION.messages
    assert sent["temperature"] == 0
    assert sent["max_tokens"] == 256
    assert sent["response_format"]["json_schema"]["schema"] == QUESTION.schema
    assert "sk-secret" in str(stub.headers[0])


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("400", Reason.MISCONFIGURED),
        ("401", Reason.AUTHENTICATION),
        ("403", Reason.AUTHENTICATION),
        ("404", Reason.MISCONFIGURED),
        ("429", Reason.RATE_LIMITED),
        ("500", Reason.UNAVAILABLE),
        ("503", Reason.UNAVAILABLE),
        ("529", Reason.UNAVAILABLE),
        ("reset", Reason.UNAVAILABLE),
        ("half", Reason.UNAVAILABLE),
        ("gzip", Reason.UNAVAILABLE),
        ("html", Reason.UNAVAILABLE),
        ("error_in_200", Reason.UNAVAILABLE),
        ("no_choices", Reason.UNAVAILABLE),
        ("overflow", Reason.CONTEXT_OVERFLOW),
    ],
)
async def test_a_fault_has_its_reason_costs_one_call_and_repeats_neither_prompt_nor_key(
    kind: str, fault: str, reason: Reason, stub: StubProvider
) -> None:
    stub.script = [fault]
    async with an_endpoint(kind, stub) as endpoint:
        with pytest.raises(ModelFailure) as caught:
            await endpoint.complete(QUESTION)

    assert caught.value.reason is reason
    assert caught.value.calls == len(stub.requests) == 1
    assert "sky" not in caught.value.detail
    assert "sk-" not in caught.value.detail
    if fault == "429":
        assert caught.value.retry_after.total_seconds() == 1


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
async def test_a_parameter_that_the_model_rejects_is_left_out_from_then_on(
    kind: str, stub: StubProvider
) -> None:
    stub.script = ["no_temperature"]
    async with an_endpoint(kind, stub) as endpoint:
        first = await endpoint.complete(QUESTION)
        second = await endpoint.complete(QUESTION)

    assert (first.calls, second.calls) == (2, 1)
    assert ["temperature" in sent for sent in stub.requests] == [True, False, False]


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
@pytest.mark.parametrize(
    ("rejects", "form", "calls"),
    [
        ((), "response_format", 1),
        (("response_format",), "tools", 2),
        (("response_format", "tools"), "text", 3),
        (("response_format", "tool_choice"), "tools", 3),
        (("response_format", "tools", "temperature", "max_tokens"), "text", 5),
    ],
)
async def test_the_same_schema_is_asked_for_in_the_form_that_the_model_takes(
    kind: str, rejects: tuple[str, ...], form: str, calls: int, stub: StubProvider
) -> None:
    stub.rejects = frozenset(rejects)
    async with an_endpoint(kind, stub) as endpoint:
        first = await endpoint.complete(QUESTION)
        second = await endpoint.complete(QUESTION)

    sent = stub.requests[-1]
    assert isinstance(read_reply(first, YesNo()), Feedback)
    assert (first.calls, second.calls) == (calls, 1)
    assert len(stub.requests) == calls + 1
    assert {"response_format", "tools"} & sent.keys() == {form} - {"text"}
    assert schema_of(sent) == QUESTION.schema


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
@pytest.mark.parametrize("ignores", [("response_format",), ("response_format", "tools")])
async def test_a_form_that_the_model_does_not_heed_is_given_up_for_the_next_request(
    kind: str, ignores: tuple[str, ...], stub: StubProvider
) -> None:
    stub.ignores = frozenset(ignores)
    async with an_endpoint(kind, stub) as endpoint:
        outcomes = [read_reply(await endpoint.complete(QUESTION), YesNo()) for _ in range(4)]

    unread = len(ignores)
    assert [isinstance(outcome, Feedback) for outcome in outcomes] == [False] * unread + [True] * (4 - unread)
    assert len(stub.requests) == 4


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
async def test_a_single_talkative_reply_does_not_change_a_form_that_has_worked(
    kind: str, stub: StubProvider
) -> None:
    stub.script = ["ok", "prose", "ok"]
    async with an_endpoint(kind, stub) as endpoint:
        for _ in range(3):
            await endpoint.complete(QUESTION)

    assert all("response_format" in sent for sent in stub.requests)


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
@pytest.mark.parametrize(("fault", "finish"), [("filter", "content_filter"), ("truncated", "length")])
async def test_how_a_reply_ended_is_told(kind: str, fault: str, finish: str, stub: StubProvider) -> None:
    stub.script = [fault]
    async with an_endpoint(kind, stub) as endpoint:
        completion = await endpoint.complete(QUESTION)

    assert completion.finish_reason == finish


@pytest.mark.parametrize("kind", OVER_THE_NETWORK)
async def test_a_refusal_in_a_field_of_its_own_is_told(kind: str, stub: StubProvider) -> None:
    stub.script = ["refusal"]
    async with an_endpoint(kind, stub) as endpoint:
        completion = await endpoint.complete(QUESTION)

    assert completion.finish_reason == "refusal"


async def test_an_address_where_nobody_listens_is_unavailable() -> None:
    endpoint = OpenAIEndpoint("openai/stub", address=openai_address("stub", "http://127.0.0.1:9/v1"))

    with pytest.raises(ModelFailure, match="could not be reached") as caught:
        await endpoint.complete(QUESTION)

    assert caught.value.reason is Reason.UNAVAILABLE
    await endpoint.close()


@pytest.mark.parametrize(
    ("kind", "path", "header", "value"),
    [
        ("openai", "/v1/chat/completions", "Authorization", "Bearer sk-secret"),
        ("azure", "/openai/deployments/stub/chat/completions?api-version=2025-01-01", "api-key", "sk-secret"),
        ("databricks", "/serving-endpoints/stub/invocations", "Authorization", "Bearer sk-secret"),
    ],
)
async def test_each_provider_is_asked_where_it_answers_with_the_key_as_it_wants_it(
    kind: str, path: str, header: str, value: str, stub: StubProvider
) -> None:
    async with an_endpoint(kind, stub) as endpoint:
        await endpoint.complete(QUESTION)

    assert stub.paths == [path]
    assert stub.headers[0][header] == value


async def test_a_redirect_is_not_followed(stub: StubProvider) -> None:
    stub.script = ["redirect"]
    async with an_endpoint("openai", stub) as endpoint:
        with pytest.raises(ModelFailure, match="redirects elsewhere") as caught:
            await endpoint.complete(QUESTION)

    assert caught.value.reason is Reason.MISCONFIGURED


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": [{"message": {"content": ""}, "error": {"code": 502, "message": "died"}}]}, "HTTP 502"),
        ({"choices": [{"message": {"content": '{"result": "no"'}, "finish_reason": "error"}]}, "ended with an error"),
        ({"error": {"message": "died"}, "choices": [{"message": {"content": "no"}}]}, "an error in it"),
    ],
)  # fmt: skip
def test_an_answer_that_broke_off_with_an_error_is_no_answer(answer: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFailure, match=said) as caught:
        read_completion(json.dumps(answer).encode(), {}, "openai/m", datetime.now(UTC))

    assert caught.value.reason is Reason.UNAVAILABLE


@pytest.mark.parametrize("count", [-1, True, 2**63, 2**64 - 1, 10**30, 1.5, "7", None])
def test_a_count_of_tokens_that_cannot_be_one_is_unknown(count: object) -> None:
    usage = {
        "prompt_tokens": count,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": count},
    }
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()

    completion = read_completion(body, {}, "openai/m", datetime.now(UTC))

    assert (completion.input_tokens, completion.cached_input_tokens) == (None, None)
    assert completion.output_tokens == 3


async def test_an_answer_without_an_end_is_cut_off() -> None:
    async def goes_on(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" " * 2**18)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(goes_on, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        endpoint = OpenAIEndpoint(
            "openai/m", address=openai_address("m", f"http://127.0.0.1:{port}/v1", None)
        )
        with pytest.raises(ModelFailure, match="longer than 8 MB") as caught:
            await endpoint.complete(QUESTION)
        await endpoint.close()

    assert (caught.value.reason, caught.value.calls) == (Reason.UNAVAILABLE, 1)


async def test_cached_input_is_told(stub: StubProvider) -> None:
    stub.cached_tokens = 7
    async with an_endpoint("openai", stub) as endpoint:
        completion = await endpoint.complete(QUESTION)

    assert completion.cached_input_tokens == 7


@pytest.mark.skipif(not available(), reason="no embedded model on this platform")
def test_the_embedded_model_ends_with_the_process_that_started_it() -> None:
    code = (
        "import os, asyncio\n"
        "from evaluator.models.local import LocalEndpoint\n"
        "async def main():\n"
        "    endpoint = LocalEndpoint()\n"
        "    await endpoint._started()\n"
        "    print(endpoint._process.pid, flush=True)\n"
        "    os._exit(1)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    child = int(done.stdout)

    for _ in range(100):
        if not _alive(child):
            return
        subprocess.run(["sleep", "0.1"], check=True)
    os.kill(child, 9)
    pytest.fail("the child outlived its parent")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
