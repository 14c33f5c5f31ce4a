"""The evaluator's own spans, as a receiver on loopback sees them: each call to a judge model, each result."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from evaluator import __version__
from evaluator.collector.server import Collector
from evaluator.collector.signals import SIGNALS
from evaluator.dataset.records import record_of_span
from evaluator.guidelines.definitions import JudgeDefinition, NumberRange
from evaluator.models.cache import Cache
from evaluator.models.client import Model
from evaluator.models.prices import Price
from evaluator.redaction import Redactor
from evaluator.scorers.build import Judges
from evaluator.scorers.judge import ModelScorer
from evaluator.scorers.materials import Materials
from evaluator.scorers.prompts import Prompts
from evaluator.tables.delta import DeltaStore
from evaluator.tables.schemas import LOGS, METRICS, SPANS
from evaluator.telemetry.spans import Spans
from evaluator.traces.trace import Span, Step
from tests.a_trace import NOON, a_record
from tests.integration.test_judge import a_model
from tests.otlp_receiver import Receiver, Seen, receiving
from tests.project import ONE_JUDGE, Project
from tests.stub_provider import StubProvider
from tests.traffic import answer, append, spans_store, trace_id

POLITE = JudgeDefinition(name="polite", guidelines=("The response must be polite.",))
BRIEF = replace(POLITE, name="brief")
RESULT = "gen_ai.evaluation.result"


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider(cached_tokens=7) as stub:
        stub.verdict = lambda prompt: "no" if prompt.endswith("[brief]") else "yes"
        yield stub


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@asynccontextmanager
async def watching(
    stub: StubProvider, endpoint: str, *group: JudgeDefinition, cache: Cache | None = None, **options: Any
) -> AsyncIterator[list[ModelScorer]]:
    """The judges of a group, watched; at the end all spans are sent."""
    redact = Redactor(["email"])
    spans = Spans(endpoint, redact.redact)
    models: dict[str, Model] = {}

    def model(_: JudgeDefinition, name: str | None) -> Model:
        name = name or "openai/stub"
        options.setdefault("price", Price(input_usd=1e-6, output_usd=2e-6))
        if name not in models:
            models[name] = a_model(stub.base_url, name, listeners=[spans.heard], **options)
        return models[name]

    judges = Judges(
        model=model,
        materials=Materials(prompts=Prompts(), fence_key=b"key", redactor=redact),
        pass_if=lambda _: None,
        groups={one.name: group for one in group},
        cache=cache,
        watch=spans.watch,
    )
    try:
        yield [judges.build(definition) for definition in group]
    finally:
        for one in models.values():
            await one.close()
        if cache is not None:
            await cache.close()
        spans.close()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)


def told(span: Seen) -> list[tuple[str, object]]:
    """The names and labels, or errors, of a span's results."""
    return [
        (
            event.attributes["gen_ai.evaluation.name"],
            event.attributes.get("gen_ai.evaluation.score.label") or event.attributes["error.type"],
        )
        for event in span.events
        if event.name == RESULT
    ]


async def test_a_call_is_a_span_of_the_genai_conventions_with_its_result(
    stub: StubProvider, receiver: Receiver
) -> None:
    agent = Span(
        trace_id="a" * 32, span_id="3" * 16, name="chat", attributes={"gen_ai.response.id": "chatcmpl-agent"}
    )
    record = a_record(steps=(Step(span=agent, span_type="LLM"),))
    async with watching(stub, receiver.url, POLITE, parameters={"temperature": 0, "stop": "END"}) as [judge]:
        await judge.score([record])

    [span] = receiver.spans
    stub_port = int(stub.root_url.rpartition(":")[2])
    assert (span.name, span.kind, span.error) == ("chat stub", ProtoSpan.SPAN_KIND_CLIENT, None)
    taken = span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"]
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "stub",
        "gen_ai.request.temperature": 0,
        "gen_ai.request.max_tokens": 4096,
        "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.output.type": "json",
        "gen_ai.response.id": "stub",
        "gen_ai.response.model": "stub",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": taken[0],
        "gen_ai.usage.output_tokens": taken[1],
        "gen_ai.usage.cache_read.input_tokens": 7,
        "server.address": "127.0.0.1",
        "server.port": stub_port,
        "evaluator.attempt": 1,
        "evaluator.requests": 1,
        "evaluator.judges": ["polite"],
        "evaluator.trace_id": "a" * 32,
        "evaluator.target_id": "a" * 32,
        "evaluator.cost_usd": pytest.approx(taken[0] * 1e-6 + taken[1] * 2e-6),
    }
    [event] = span.events
    assert event.attributes == {
        "gen_ai.evaluation.name": "polite",
        "gen_ai.evaluation.score.label": "yes",
        "gen_ai.evaluation.score.value": 1.0,
        "gen_ai.evaluation.explanation": "Decided by a hash of the prompt.",
        "gen_ai.response.id": "chatcmpl-agent",
    }
    assert span.links == (("a" * 32, "1" * 16),)
    assert (span.resource["service.name"], span.resource["service.version"]) == (
        "agent-evaluator",
        __version__,
    )
    assert span.resource["evaluator.telemetry"] is True


async def test_a_judged_span_is_linked_to_and_named(stub: StubProvider, receiver: Receiver) -> None:
    calls = [
        Step(
            span=Span(
                trace_id="a" * 32, span_id=digit * 16, name="chat", attributes={"gen_ai.response.id": digit}
            ),
            span_type="LLM",
            request="Hi?",
            response="Hello",
        )
        for digit in "45"
    ]
    record = record_of_span(a_record(steps=tuple(calls)).trace, 0)
    async with watching(stub, receiver.url, POLITE) as [judge]:
        await judge.score([record])

    [span] = receiver.spans
    assert span.links == (("a" * 32, "4" * 16),)
    assert span.attributes["evaluator.target_id"] == f"{'a' * 32}:{'4' * 16}"
    assert span.events[0].attributes["gen_ai.response.id"] == "4"


async def test_each_try_is_a_span_and_the_result_is_told_with_the_last(
    stub: StubProvider, receiver: Receiver
) -> None:
    stub.script = ["500", "429", "ok"]
    stub.retry_after = "0"
    async with watching(stub, receiver.url, POLITE) as [judge]:
        await judge.score([a_record()])

    assert [span.attributes.get("error.type") for span in receiver.spans] == [
        "unavailable", "rate_limited", None,
    ]  # fmt: skip
    assert [span.attributes.get("http.response.status_code") for span in receiver.spans] == [500, 429, None]
    assert [span.attributes["evaluator.attempt"] for span in receiver.spans] == [1, 2, 3]
    assert [told(span) for span in receiver.spans] == [[], [], [("polite", "yes")]]
    assert receiver.spans[0].error is not None


@pytest.mark.parametrize(
    ("faults", "errors", "result"),
    [
        (["500"] * 4, ["unavailable"] * 4, "unavailable"),
        (["hang"] * 4, ["timeout"] * 4, "timeout"),
        (["reset"] * 4, ["unavailable"] * 4, "unavailable"),
        (["overflow"], ["context_overflow"], "context_overflow"),
        (["error_in_200"] * 4, ["unavailable"] * 4, "unavailable"),
        (["filter"], [None], "content_filter"),
        (["refusal"], [None], "refused"),
        (["prose", "prose"], [None, None], "bad_reply"),
    ],
)
async def test_what_could_not_be_judged_is_told_by_its_reason(
    faults: list[str], errors: list[str | None], result: str, stub: StubProvider, receiver: Receiver
) -> None:
    stub.script = list(faults)
    timeout = timedelta(seconds=0.1 if "hang" in faults else 20)
    async with watching(stub, receiver.url, POLITE, timeout=timeout) as [judge]:
        await judge.score([a_record()])

    assert [span.attributes.get("error.type") for span in receiver.spans] == errors
    assert [told(span) for span in receiver.spans[:-1]] == [[]] * (len(errors) - 1)
    assert told(receiver.spans[-1]) == [("polite", result)]
    assert receiver.spans[-1].events[0].attributes["gen_ai.evaluation.explanation"]


async def test_a_wrong_key_is_told_and_so_is_the_plain_question_that_found_it(
    stub: StubProvider, receiver: Receiver
) -> None:
    stub.script = ["401", "401"]
    async with watching(stub, receiver.url, POLITE) as [judge]:
        with pytest.raises(Exception, match="cannot be used"):
            await judge.score([a_record()])

    first, plain = receiver.spans
    assert told(first) == [("polite", "authentication")]
    assert "evaluator.judges" not in plain.attributes
    assert plain.attributes["evaluator.trace_id"] == "a" * 32
    assert "sk-" not in str(receiver.requests)


async def test_a_joint_call_is_one_span_with_a_result_for_each_judge(
    stub: StubProvider, receiver: Receiver
) -> None:
    group = (replace(POLITE, batch="joint"), replace(BRIEF, batch="joint"))
    async with watching(stub, receiver.url, *group) as judges:
        await asyncio.gather(*(judge.score([a_record()]) for judge in judges))

    [span] = receiver.spans
    assert span.attributes["evaluator.judges"] == ["brief", "polite"]
    assert sorted(told(span)) == [("brief", "no"), ("polite", "yes")]


async def test_a_judge_that_is_asked_for_alone_has_its_result_there(
    stub: StubProvider, receiver: Receiver
) -> None:
    group = (replace(POLITE, batch="joint"), replace(BRIEF, batch="joint"))
    stub.script = ["misses_one"]
    async with watching(stub, receiver.url, *group) as judges:
        await asyncio.gather(*(judge.score([a_record()]) for judge in judges))

    together, alone = receiver.spans
    assert told(together) == [("brief", "no")]
    assert (alone.attributes["evaluator.judges"], told(alone)) == (["polite"], [("polite", "yes")])


async def test_a_panel_has_a_span_for_each_vote_and_one_result(
    stub: StubProvider, receiver: Receiver
) -> None:
    panel = replace(POLITE, models=("openai/a", "openai/b", "openai/c"))
    async with watching(stub, receiver.url, panel) as [judge]:
        await judge.score([a_record()])

    assert sorted(span.attributes["gen_ai.request.model"] for span in receiver.spans) == ["a", "b", "c"]
    assert sorted(told(span) for span in receiver.spans) == [[], [], [("polite", "yes")]]


async def test_a_cached_result_is_no_call_and_no_span(
    stub: StubProvider, receiver: Receiver, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, max_age=timedelta(days=1), max_size=10**6, clock=lambda: NOON)
    async with watching(stub, receiver.url, POLITE, cache=cache) as [judge]:
        await judge.score([a_record()])
        [again] = await judge.score([a_record()])

    assert again.usage.cached
    assert len(receiver.spans) == 1


async def test_a_number_is_a_number_and_texts_are_redacted(stub: StubProvider, receiver: Receiver) -> None:
    stub.verdict = lambda _: 4
    stars = replace(POLITE, values=NumberRange(min=1, max=5))
    async with watching(stub, receiver.url, stars) as [judge]:
        judge._read = _rationale_with_an_address(judge._read)  # type: ignore[attr-defined]
        await judge.score([a_record()])

    attributes = receiver.spans[0].events[0].attributes
    assert attributes["gen_ai.evaluation.score.value"] == 4.0
    assert "gen_ai.evaluation.score.label" not in attributes
    assert "@" not in attributes["gen_ai.evaluation.explanation"]


def _rationale_with_an_address(read: Any) -> Any:
    return lambda *args: replace(read(*args), rationale="Said jane@example.com.")


async def test_calls_that_were_given_up_are_seen_too(stub: StubProvider, receiver: Receiver) -> None:
    stub.script = ["500", "hang"]
    async with watching(stub, receiver.url, POLITE) as [judge]:
        judging = asyncio.create_task(judge.score([a_record()]))
        await asyncio.to_thread(_until, lambda: len(stub.requests) == 2)
        judging.cancel()
        await asyncio.wait([judging])

    assert [told(span) for span in receiver.spans] == [[]]
    assert receiver.spans[0].attributes["error.type"] == "unavailable"


async def test_an_endpoint_that_nobody_answers_at_is_said_once_and_slows_nothing(
    stub: StubProvider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    began = time.monotonic()
    async with watching(stub, "http://user:word@127.0.0.1:9", POLITE, BRIEF) as judges:
        for judge in judges:
            await judge.score([a_record()])
            await asyncio.sleep(0.2)
        judged = time.monotonic() - began

    assert judged < 2
    assert time.monotonic() - began < 8
    said = [record for record in caplog.records if "cannot be delivered" in record.message]
    lost = [record for record in caplog.records if "were not delivered" in record.message]
    assert [record.endpoint for record in said] == ["http://127.0.0.1:9"]  # type: ignore[attr-defined]
    assert [record.spans for record in lost] == [2]  # type: ignore[attr-defined]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_a_receiver_that_hangs_does_not_hold_up_the_end(stub: StubProvider) -> None:
    with receiving(seconds=20) as slow:
        began = time.monotonic()
        async with watching(stub, slow.url, POLITE) as [judge]:
            await judge.score([a_record()])

    assert time.monotonic() - began < 6


async def test_our_own_collector_refuses_our_own_spans_and_keeps_an_agent_s(
    stub: StubProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stores = {}
    for signal, schema in zip(SIGNALS, (SPANS, LOGS, METRICS), strict=True):
        stores[signal.table] = DeltaStore(str(tmp_path / signal.table))
        stores[signal.table].create(schema)
    collector = Collector(stores)
    await collector.start("127.0.0.1", 0, 0)
    try:
        async with watching(stub, f"http://127.0.0.1:{collector.http_port}", POLITE) as [judge]:
            await judge.score([a_record(), a_record()])
            await asyncio.to_thread(judge._watch.__self__._provider.force_flush)  # type: ignore[attr-defined]
    finally:
        await collector.stop(timedelta(seconds=2))

    counted = collector.counters.signals["traces"]
    assert (counted.accepted, counted.refused, counted.own, counted.commits) == (0, 2, 2, 0)
    assert len([record for record in caplog.records if "own spans arrive here" in record.message]) == 1


async def test_our_own_spans_are_not_judged_whoever_brought_them_into_the_table(tmp_path: Path) -> None:
    from evaluator.tables.spans import SpansTable
    from evaluator.traces.assembly import gather

    own = answer("own")
    own["resource"] = {"attributes": '{"evaluator.telemetry": true}', "dropped_attributes_count": 0}
    store = spans_store(tmp_path)
    append(store, [answer("a"), own])

    found = gather(SpansTable(store, lambda: NOON).open().since(-1, None).arrivals)

    assert list(found) == [trace_id("a")]


def test_once_sends_a_span_for_each_call_and_ends_with_all_of_them_sent(
    tmp_path: Path, stub: StubProvider, receiver: Receiver
) -> None:
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    project = Project.create(tmp_path, ONE_JUDGE, judge=judge, telemetry={"otlp_endpoint": receiver.url})
    project.append(answer("a"), answer("b", "Good day"))

    ran = project.run("once", "--json")

    assert ran.code == 0, ran.err
    assert sorted(span.attributes["evaluator.trace_id"] for span in receiver.spans) == [
        trace_id("a"), trace_id("b"),
    ]  # fmt: skip
    assert [told(span) for span in receiver.spans] == [[("polite", "yes")]] * 2
    assert sum(span.attributes["evaluator.cost_usd"] for span in receiver.spans) == pytest.approx(
        ran.json()["cost_usd"]
    )


def test_once_with_an_endpoint_that_nobody_answers_at_judges_and_exits_0(
    tmp_path: Path, stub: StubProvider
) -> None:
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    project = Project.create(
        tmp_path, ONE_JUDGE, judge=judge, telemetry={"otlp_endpoint": "http://127.0.0.1:9"}
    )
    project.append(answer("a"))

    ran = project.run("once", "--json")

    assert (ran.code, ran.json()["results"]) == (0, 2)
    [line] = [line for line in ran.err.splitlines() if "deliver" in line]
    assert "spans=1" in line
    assert "endpoint=http://127.0.0.1:9" in line
    assert "Traceback" not in ran.err


def test_without_an_endpoint_no_part_of_the_sdk_is_imported() -> None:
    script = (
        "import sys, evaluator.worker.service, evaluator.commands.evaluations, evaluator.cli.main\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )

    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout

    assert printed.strip() == "[]"


def test_an_endpoint_that_is_our_own_collector_is_refused_by_every_command(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    for command in (["check"], ["once"], ["collect", "--port", "4319"]):
        port = 4319 if command[0] == "collect" else 4318
        ran = project.run(*command, EVALUATOR_TELEMETRY__OTLP_ENDPOINT=f"http://localhost:{port}")

        assert ran.code == 2
        assert f"localhost:{port} is the evaluator's own collector (collect.http_port)" in ran.err
        assert "name another receiver" in ran.err
