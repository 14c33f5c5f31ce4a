"""Traces made by hand, for tests of what comes after assembly."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from evaluator.dataset.records import Record, record_of_trace
from evaluator.traces.trace import Span, Step, Trace

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
_TRACE = Trace(
    trace_id="a" * 32,
    service_name="support",
    name="answer",
    session_id="s1",
    user_id=None,
    status="OK",
    status_message="",
    start_time=NOON,
    end_time=NOON + timedelta(seconds=2),
    duration_ms=2000.0,
    request="How many tickets are open?",
    response="There are 12 open tickets, 3 more than last week; you should staff the weekend.",
    model="gpt-5-mini",
    models=("gpt-5-mini",),
    input_tokens=900,
    output_tokens=100,
    total_tokens=1000,
    cost_usd=0.01,
    span_count=3,
    llm_calls=1,
    tool_calls=1,
    tools=("search",),
    retrievals=0,
    error_count=0,
    tags={"team": "emea"},
    attributes={"plan": "pro"},
    incomplete=False,
    root_span_id="1" * 16,
    steps=(),
)


def a_trace(**columns: Any) -> Trace:
    return replace(_TRACE, **columns)


def a_record(**columns: Any) -> Record:
    return record_of_trace(a_trace(**columns))


def a_tool_call(name: str = "search", arguments: str = "{}", *, failed: bool = False) -> Step:
    span = Span(trace_id="a" * 32, span_id="2" * 16, name=name, status="ERROR" if failed else "OK")
    return Step(span=span, span_type="TOOL", tool_name=name, input=arguments)


def an_llm_call(*tool_calls: dict[str, Any]) -> Step:
    span = Span(trace_id="a" * 32, span_id="3" * 16, name="chat")
    return Step(span=span, span_type="LLM", tool_calls=tool_calls)
