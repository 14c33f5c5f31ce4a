"""The demo's agent: a tool-calling loop that tells OpenTelemetry what it does, in the GenAI conventions."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from evaluator.demo.planner import Exchange, ModelPlanner, Planner, RulePlanner, ToolCall, Turn
from evaluator.demo.questions import Question
from evaluator.demo.tickets import open_desk
from evaluator.demo.tools import ARCHIVE_SECONDS, INSTRUCTIONS, Toolbox, ToolFailed

SERVICE = "support-manager"
MOST_TURNS = 8


class SupportManager:
    """Answers questions about the desk: the planner decides, the tools look, every step is a span.

    Source of the names: OpenTelemetry semantic conventions for generative AI, agent and tool spans.
    """

    def __init__(self, tools: Toolbox, planner: Planner, tracer: Tracer) -> None:
        self._tools = tools
        self._planner = planner
        self._tracer = tracer

    async def answer(self, question: Question) -> str:
        """The answer. A tool that fails is not caught here: that is one of the faults the demo shows."""
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": SERVICE,
            "gen_ai.provider.name": self._planner.provider,
            "gen_ai.conversation.id": question.session,
            "user.id": question.user,
            "gen_ai.system_instructions": _json([{"type": "text", "content": INSTRUCTIONS}]),
            "gen_ai.input.messages": _json([_message("user", _text(question.text))]),
        }
        with self._tracer.start_as_current_span(f"invoke_agent {SERVICE}", attributes=attributes) as span:
            answer = await self._converse(question.text)
            span.set_attribute("gen_ai.output.messages", _json([_finished(_text(answer))]))
            span.set_status(Status(StatusCode.OK))
            return answer

    async def _converse(self, question: str) -> str:
        done: list[Exchange] = []
        for _ in range(MOST_TURNS):
            turn = await self._plan(question, done)
            if not turn.calls:
                return turn.answer
            for call in turn.calls:
                done.append(Exchange(call=call, result=await self._use(call)))
        return ""

    async def _plan(self, question: str, done: Sequence[Exchange]) -> Turn:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._planner.provider,
            "gen_ai.request.model": self._planner.model,
            "gen_ai.input.messages": _json(_conversation(question, done)),
        }
        name = f"chat {self._planner.model}"
        with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes) as span:
            turn = await self._planner.next(question, done)
            _describe(span, turn, self._planner.model)
            return turn

    async def _use(self, call: ToolCall) -> str:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.call_id,
            "gen_ai.tool.call.arguments": _json(call.arguments),
        }
        with self._tracer.start_as_current_span(f"execute_tool {call.name}", attributes=attributes) as span:
            try:
                result = _json(await self._tools.call(call.name, call.arguments))
            except ToolFailed as error:
                span.set_attribute("error.type", type(error).__name__)
                raise
            span.set_attribute("gen_ai.tool.call.result", result)
            return result


async def answer_all(
    questions: Sequence[Question],
    exporter: SpanExporter,
    *,
    model: str | None = None,
    base_url: str | None = None,
    archive_seconds: float = ARCHIVE_SECONDS,
) -> list[str]:
    """Have every question answered, session beside session, and the spans exported; the answers in order.

    A question that the agent broke down over has the error as its answer.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("evaluator.demo")
    tools = Toolbox(open_desk(), archive_seconds)
    by_rules = SupportManager(tools, RulePlanner(), tracer)
    by_model = SupportManager(tools, ModelPlanner(model, base_url), tracer) if model else by_rules
    sessions: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        sessions[question.session].append(index)
    answers = [""] * len(questions)

    async def play(indexes: Sequence[int]) -> None:
        for index in indexes:
            question = questions[index]
            agent = by_rules if question.scripted else by_model
            try:
                answers[index] = await agent.answer(question)
            except Exception as error:  # noqa: BLE001 -- an agent in production breaks down too; its trace tells
                answers[index] = f"[{type(error).__name__}] {error}"

    await asyncio.gather(*(play(indexes) for indexes in sessions.values()))
    await asyncio.to_thread(provider.shutdown)
    return answers


def _describe(span: Span, turn: Turn, model: str) -> None:
    parts = [_call_part(call) for call in turn.calls] if turn.calls else [_text(turn.answer)]
    reason = "tool_calls" if turn.calls else "stop"
    span.set_attributes(
        {
            "gen_ai.response.model": model,
            "gen_ai.response.finish_reasons": [reason],
            "gen_ai.output.messages": _json([_finished(*parts, reason=reason)]),
            "gen_ai.usage.input_tokens": turn.input_tokens,
            "gen_ai.usage.output_tokens": turn.output_tokens,
        }
    )


def _conversation(question: str, done: Sequence[Exchange]) -> list[dict[str, Any]]:
    messages = [_message("user", _text(question))]
    for exchange in done:
        response = {
            "type": "tool_call_response",
            "id": exchange.call.call_id,
            "response": json.loads(exchange.result),
        }
        messages += [_message("assistant", _call_part(exchange.call)), _message("tool", response)]
    return messages


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def _call_part(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": dict(call.arguments)}


def _message(role: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


def _finished(*parts: Mapping[str, Any], reason: str = "stop") -> dict[str, Any]:
    return {**_message("assistant", *parts), "finish_reason": reason}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
