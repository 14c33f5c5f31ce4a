"""The demo's agent answers for real, well and badly, and its spans say what it did."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from evaluator.demo.agent import answer_all
from evaluator.demo.planner import PLAYS, RulePlanner
from evaluator.demo.questions import QUESTIONS, Question
from evaluator.demo.tickets import TICKETS, make_tickets, open_desk
from evaluator.demo.tools import Toolbox, ToolFailed


async def the_answer(text: str, **options: Any) -> tuple[str, list[ReadableSpan]]:
    exporter = InMemorySpanExporter()
    question = Question(text=text, user="maria", session="monday")
    [answer] = await answer_all([question], exporter, archive_seconds=0, **options)
    return answer, list(exporter.get_finished_spans())


def test_the_tickets_are_the_same_every_time() -> None:
    assert make_tickets() == make_tickets()
    assert len(make_tickets()) == TICKETS


@pytest.mark.parametrize("question", [one for one in QUESTIONS if not one.scripted], ids=lambda one: one.text)
async def test_a_good_question_is_answered_with_numbers_and_a_recommendation(question: Question) -> None:
    answer, spans = await the_answer(question.text)

    assert "Recommendation: " in answer
    assert sum(character.isdigit() for character in answer) >= 2
    assert [span.name.split()[0] for span in spans] == ["chat", "execute_tool", "chat", "invoke_agent"]


async def test_the_desk_s_numbers_are_those_of_its_table() -> None:
    desk = open_desk()
    query = "SELECT round(avg(csat), 2) FROM tickets GROUP BY category ORDER BY 1"
    lowest, *_ = desk.execute(query).fetchall()

    answer, _ = await the_answer("Where are our customers least satisfied?")

    assert f"{lowest[0]} of 5" in answer


async def test_every_step_is_a_span_of_the_genai_conventions() -> None:
    answer, spans = await the_answer("Who has too much on their desk?")

    first, tool, second, root = spans
    assert root.parent is None
    assert root.attributes is not None
    assert root.attributes["gen_ai.conversation.id"] == "monday"
    assert root.attributes["user.id"] == "maria"
    assert json.loads(str(root.attributes["gen_ai.output.messages"]))[0]["parts"][0]["content"] == answer
    assert tool.attributes is not None
    assert tool.attributes["gen_ai.tool.name"] == "agent_workload"
    assert len(json.loads(str(tool.attributes["gen_ai.tool.call.result"]))) == 6
    assert [span.parent.span_id for span in (first, tool, second) if span.parent] == [
        root.context.span_id
    ] * 3
    assert second.attributes is not None
    assert int(str(second.attributes["gen_ai.usage.input_tokens"])) > 100


async def test_the_scripted_questions_end_badly_each_in_its_way() -> None:
    asked = {one.text: await the_answer(one.text) for one in QUESTIONS if one.scripted}

    answers = {text: answer for text, (answer, _) in asked.items()}
    assert "@example.com" in answers["Who opened ticket T-0042?"]
    assert answers["Tell me everything."] == ""
    assert not any(character.isdigit() for character in answers["How do I motivate the team?"])
    _, broken = asked["Please export the weekly report."]
    assert [span.status.status_code.name for span in broken][-2:] == ["ERROR", "ERROR"]
    _, looping = asked["Keep checking which channel is behind."]
    arguments = [
        span.attributes["gen_ai.tool.call.arguments"]
        for span in looping
        if span.attributes and "tool" in span.name
    ]
    assert len(arguments) == 4
    assert len(set(arguments)) == 1


def test_the_last_play_takes_every_question() -> None:
    assert PLAYS[-1].pattern == ""
    assert RulePlanner().provider == "demo"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("drop_table", {}),
        ("breakdown", {"by": "1; DROP TABLE tickets"}),
        ("query_tickets", {"colour": "red"}),
    ],
)
async def test_a_tool_refuses_what_it_does_not_know(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ToolFailed):
        await Toolbox(open_desk()).call(name, arguments)


@pytest.fixture
async def stub_model() -> AsyncIterator[str]:
    """An OpenAI-compatible endpoint on loopback: it calls one tool, then answers with what the tool said."""

    async def complete(request: web.Request) -> web.Response:
        messages = (await request.json())["messages"]
        function = {"name": "breakdown", "arguments": '{"by": "product"}'}
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if messages[-1]["role"] == "tool":
            message["content"] = f"From the tickets: {messages[-1]['content']}"
        else:
            message["tool_calls"] = [{"id": "call_9", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57}
        return web.json_response(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "stub",
                "choices": [choice],
                "usage": usage,
            }
        )

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.mark.filterwarnings("ignore")  # litellm's imports warn about what its dependencies will drop
async def test_with_a_model_the_model_plans(stub_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")

    answer, spans = await the_answer("Which product?", model="openai/stub", base_url=stub_model)

    assert answer.startswith('From the tickets: [{"product": "Atlas"')
    chats = [span.attributes for span in spans if span.attributes and span.name == "chat openai/stub"]
    assert [chat["gen_ai.usage.input_tokens"] for chat in chats] == [50, 50]
