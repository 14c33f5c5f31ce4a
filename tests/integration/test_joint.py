"""Joint judges: one call for all, each with its own result, asked again where the reply misses one."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from evaluator.errors import ModelError
from evaluator.feedback import Feedback, Reason, Scored, Unscored
from evaluator.guidelines.definitions import Categories, JudgeDefinition
from evaluator.models.prices import Price
from evaluator.redaction import Redactor
from evaluator.scorers.joint import JointCall, JointJudge
from evaluator.scorers.materials import Materials
from evaluator.scorers.prompts import Prompts
from tests.a_trace import a_record
from tests.integration.test_judge import a_model
from tests.stub_provider import StubProvider, prompt_of, schema_of

NUMBER = JudgeDefinition(name="number", guidelines=("The response must name a number.",), batch="joint")
ADVICE = JudgeDefinition(name="advice", guidelines=("Advise.", "Be brief."), batch="joint")
TONE = JudgeDefinition(
    name="tone of voice",
    instructions="How does {{ outputs }} treat the user?",
    values=Categories(values=("warm", "cold")),
    batch="joint",
)
GROUP = (NUMBER, ADVICE, TONE)
PRICE = Price(input_usd=1e-6, output_usd=2e-6)


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        stub.verdict = lambda prompt: "warm" if prompt.endswith("[tone_of_voice]") else "no" if prompt.endswith("[advice]") else "yes"  # fmt: skip
        yield stub


def judges_of(group: tuple[JudgeDefinition, ...], **parts: object) -> list[JointJudge]:
    materials = Materials(prompts=Prompts(), fence_key=b"key", redactor=Redactor(["email"]))
    call = JointCall(group, model=parts.pop("model", None) or a_model(), materials=materials)  # type: ignore[arg-type]
    return [JointJudge(definition, call) for definition in group]


@asynccontextmanager
async def asking(
    stub: StubProvider, group: tuple[JudgeDefinition, ...] = GROUP
) -> AsyncIterator[list[JointJudge]]:
    model = a_model(stub.base_url, price=PRICE)
    try:
        yield judges_of(group, model=model)
    finally:
        await model.close()


async def all_of(judges: list[JointJudge], **columns: object) -> list[Scored]:
    record = a_record(**columns)
    return [scored for [scored] in await asyncio.gather(*(judge.score([record]) for judge in judges))]


async def test_one_call_gives_each_judge_its_own_result(stub: StubProvider) -> None:
    async with asking(stub) as judges:
        results = await all_of(judges)

    assert [scored.outcome.value for scored in results] == ["yes", "no", "warm"]  # type: ignore[union-attr]
    [request] = stub.requests
    assert schema_of(request)["required"] == ["advice", "number", "tone_of_voice"]
    prompt = prompt_of(request)
    assert prompt.index("12 open tickets") < prompt.index("Advise.") < prompt.index("must name a number")


async def test_what_a_call_took_is_divided_so_that_the_sum_is_right(stub: StubProvider) -> None:
    async with asking(stub) as judges:
        results = await all_of(judges)

    usages = [scored.usage for scored in results]
    tokens_in = sum(usage.input_tokens for usage in usages)  # type: ignore[misc]
    tokens_out = sum(usage.output_tokens for usage in usages)  # type: ignore[misc]
    whole = "".join(message["content"] for message in stub.requests[0]["messages"])
    assert sum(usage.calls for usage in usages) == 1
    assert tokens_in == len(whole) // 4 + 1
    assert sum(usage.cost_usd for usage in usages) == pytest.approx(tokens_in * 1e-6 + tokens_out * 2e-6)  # type: ignore[misc]


async def test_a_judge_that_a_reply_misses_is_asked_for_with_the_group_s_prompt(stub: StubProvider) -> None:
    stub.script = ["misses_one"]
    async with asking(stub) as judges:
        results = await all_of(judges)

    first, second = stub.requests
    assert all(isinstance(scored.outcome, Feedback) for scored in results)
    assert schema_of(second)["required"] == ["tone_of_voice"]
    assert prompt_of(second).startswith(prompt_of(first))
    assert sum(scored.usage.calls for scored in results) == 2
    assert results[2].usage.input_tokens > results[0].usage.input_tokens  # type: ignore[operator]


@pytest.mark.parametrize("fault", ["prose", "broken_json", "empty", "out_of_range"])
async def test_a_reply_that_says_nothing_readable_is_asked_for_once_more(
    fault: str, stub: StubProvider
) -> None:
    stub.script = [fault]
    async with asking(stub) as judges:
        results = await all_of(judges)

    assert all(isinstance(scored.outcome, Feedback) for scored in results)
    assert len(stub.requests) == 2
    assert schema_of(stub.requests[1])["required"] == ["advice", "number", "tone_of_voice"]


@pytest.mark.parametrize(
    ("script", "reason", "calls"),
    [
        (["prose", "prose"], Reason.BAD_REPLY, 2),
        (["refusal"], Reason.REFUSED, 1),
        (["filter"], Reason.CONTENT_FILTER, 1),
        (["overflow"], Reason.CONTEXT_OVERFLOW, 1),
        (["500"] * 4, Reason.UNAVAILABLE, 4),
        (["truncated"] + ["prose"] * 3, Reason.BAD_REPLY, 4),
    ],
)
async def test_a_failure_is_every_judge_s_and_counted_once(
    script: list[str], reason: Reason, calls: int, stub: StubProvider
) -> None:
    stub.script = script
    async with asking(stub) as judges:
        results = await all_of(judges)

    outcomes = [scored.outcome for scored in results]
    assert all(isinstance(outcome, Unscored) and outcome.reason is reason for outcome in outcomes)
    assert sum(scored.usage.calls for scored in results) == calls == len(stub.requests)


async def test_a_reply_that_was_cut_off_is_asked_for_judge_by_judge(stub: StubProvider) -> None:
    stub.script = ["truncated"]
    async with asking(stub) as judges:
        results = await all_of(judges)

    assert all(isinstance(scored.outcome, Feedback) for scored in results)
    assert sorted(schema_of(request)["required"] for request in stub.requests[1:]) == [
        ["advice"], ["number"], ["tone_of_voice"],
    ]  # fmt: skip


async def test_a_model_that_has_to_be_mended_is_told_to_every_judge(stub: StubProvider) -> None:
    stub.script = ["401"] * 10
    async with asking(stub) as judges:
        told = await asyncio.gather(*(judge.score([a_record()]) for judge in judges), return_exceptions=True)

    assert all(isinstance(error, ModelError) for error in told)
    assert 'judge "advice": model openai/stub cannot be used' in str(told[1])


async def test_a_judge_that_comes_later_takes_its_part_for_nothing(stub: StubProvider) -> None:
    record = a_record()
    async with asking(stub) as (number, advice, _):
        [first] = await number.score([record])
        [second] = await advice.score([record])

    assert isinstance(second.outcome, Feedback)
    assert len(stub.requests) == 1
    assert (first.usage.calls, second.usage.calls) == (1, 0)
    assert second.usage.cached
    assert first.usage.cost_usd > 0  # type: ignore[operator]
    assert second.usage.cost_usd == 0.0


async def test_a_second_asking_another_content_and_a_past_failure_are_new_calls(stub: StubProvider) -> None:
    async with asking(stub) as (number, advice, _):
        await number.score([a_record()])
        await number.score([a_record()])
        await advice.score([a_record(response="Another one.")])
        stub.script = ["overflow"]
        await number.score([a_record(trace_id="b" * 32)])
        [late] = await advice.score([a_record(trace_id="b" * 32)])

    assert len(stub.requests) == 5
    assert isinstance(late.outcome, Feedback)


async def test_one_who_gives_up_takes_nothing_from_the_others(stub: StubProvider) -> None:
    stub.latency = 0.1
    record = a_record()
    async with asking(stub) as judges:
        tasks = [asyncio.create_task(judge.judge(record)) for judge in judges]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        alone = asyncio.create_task(judges[0].judge(a_record(trace_id="b" * 32)))
        await asyncio.sleep(0.02)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        await asyncio.sleep(0.02)

        assert isinstance(results[0], asyncio.CancelledError)
        assert [result.scored.usage.calls for result in results[1:]] == [1, 0]  # type: ignore[union-attr]
        assert stub.in_flight == 0


async def test_a_judge_of_which_there_is_nothing_in_the_record_is_told_so(stub: StubProvider) -> None:
    async with asking(stub) as judges:
        number, _, tone = await all_of(judges, response=None)

    assert isinstance(number.outcome, Feedback)
    assert isinstance(tone.outcome, Unscored)
    assert tone.outcome.reason is Reason.NOT_APPLICABLE


async def test_an_empty_record_is_not_asked_about(stub: StubProvider) -> None:
    async with asking(stub) as judges:
        results = await all_of(judges, request=None, response=None)

    assert {scored.outcome.reason for scored in results} == {Reason.NOT_APPLICABLE}  # type: ignore[union-attr]
    assert stub.requests == []


def test_an_estimate_is_that_of_the_whole_group_whoever_is_asked_for() -> None:
    judges = judges_of(GROUP)
    first, *others = [judge.estimate(a_record()) for judge in judges]
    alone = judges_of((NUMBER,))[0].estimate(a_record())

    assert first.calls == 1
    assert others == [first, first]
    assert first.output_tokens == pytest.approx(3 * alone.output_tokens, rel=0.1)
    assert judges[0].estimate(a_record(request=None, response=None)).calls == 0


def test_the_group_is_part_of_each_member_s_version_and_its_order_is_not() -> None:
    versions = {judge.name: judge.version for judge in judges_of(GROUP)}
    turned = {judge.name: judge.version for judge in judges_of(GROUP[::-1])}
    smaller = {judge.name: judge.version for judge in judges_of(GROUP[:2])}
    edited = {judge.name: judge.version for judge in judges_of((NUMBER, replace(ADVICE, guidelines=("Advise.",)), TONE))}  # fmt: skip
    passing = {judge.name: judge.version for judge in judges_of((NUMBER, ADVICE, replace(TONE, pass_if="value = 'warm'")))}  # fmt: skip

    assert len(set(versions.values())) == 3
    assert turned == versions
    assert all(smaller[name] != versions[name] for name in smaller)
    assert all(edited[name] != versions[name] for name in versions)
    assert [name for name in versions if passing[name] != versions[name]] == ["tone of voice"]
    assert json.loads(json.dumps(judges_of(GROUP)[0].definition))["kind"] == "joint"
