"""Spans in, whole traces out: when a trace is ready, and what it is."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.traces.assembly import (
    Arrival,
    Pending,
    Ready,
    Waiting,
    assemble,
    gather,
    has_ended_root,
    join,
    readiness,
)
from evaluator.traces.columns import STEPS, TRACES, step_columns, traces_table
from evaluator.traces.trace import Span, Trace

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)
START = int(NOON.timestamp()) * 1_000_000_000
SETTLE, MAX_WAIT = timedelta(seconds=60), timedelta(hours=1)
TRACE_ID = "1" * 32


def a_span(name: str, parent: str | None = None, *, at: int = 0, ms: int | None = 10, **more: Any) -> Span:
    """A span whose id is its name, that began `at` milliseconds after noon and took `ms`."""
    start = START + at * 1_000_000
    end = None if ms is None else start + ms * 1_000_000
    defaults: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "start_time_unix_nano": start,
        "end_time_unix_nano": end,
    }
    return Span(span_id=name, parent_span_id=parent, name=name, **(defaults | more))


def an_llm(
    name: str, parent: str | None = None, *, asked: str = "Q", answered: str | None = "A", **more: Any
) -> Span:
    """An LLM span that spent 3 + 4 tokens."""
    attributes = {
        "openinference.span.kind": "LLM",
        "input.value": asked,
        "output.value": answered,
        "llm.token_count.prompt": 3,
        "llm.token_count.completion": 4,
        "llm.model_name": "m",
    } | more.pop("attributes", {})
    return a_span(name, parent, attributes=attributes, **more)


def of_kind(kind: str, **more: Any) -> dict[str, Any]:
    return {"openinference.span.kind": kind} | {key.replace("_", "."): value for key, value in more.items()}


def whole(*spans: Span) -> Trace:
    return assemble(TRACE_ID, spans, incomplete=False)


def a_pending(*spans: Span, first: datetime = NOON, last: datetime = NOON) -> Pending:
    return Pending(trace_id=TRACE_ID, spans=spans, first=first, last=last, commits=(1,))


def ready(pending: Pending, now: datetime) -> Ready | Waiting:
    return readiness(pending, now=now, settle=SETTLE, max_wait=MAX_WAIT)


# --- readiness


def test_a_trace_is_ready_when_its_root_ended_and_nothing_came_for_settle() -> None:
    pending = a_pending(a_span("root"))

    assert ready(pending, NOON + SETTLE) == Ready(incomplete=False)
    assert ready(pending, NOON) == Waiting(due=NOON + SETTLE, reason="settling")


def test_a_new_arrival_starts_the_quiet_time_again_but_never_past_max_wait() -> None:
    late = NOON + MAX_WAIT - timedelta(seconds=1)

    assert ready(a_pending(a_span("root"), last=late), late) == Waiting(
        due=NOON + MAX_WAIT, reason="settling"
    )
    assert ready(a_pending(a_span("root"), last=late), NOON + MAX_WAIT) == Ready(incomplete=True)


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (a_span("child", "somewhere"), "no_root"),
        (a_span("self", "self"), "no_root"),
        (a_span("root", ms=None), "root_not_ended"),
    ],
)
def test_a_trace_without_an_ended_root_waits_for_max_wait(span: Span, reason: Any) -> None:
    assert ready(a_pending(span), NOON + SETTLE) == Waiting(due=NOON + MAX_WAIT, reason=reason)
    assert ready(a_pending(span), NOON + MAX_WAIT) == Ready(incomplete=True)
    assert not has_ended_root([span])


def test_with_no_settle_an_ended_root_is_ready_at_once_even_if_it_arrived_in_the_future() -> None:
    pending = a_pending(a_span("root"), last=NOON + timedelta(days=1))

    assert readiness(pending, now=NOON, settle=timedelta(0), max_wait=MAX_WAIT) == Ready(incomplete=False)


def test_of_two_roots_the_one_that_ended_counts() -> None:
    pending = a_pending(a_span("one", ms=None), a_span("two", at=5))

    assert ready(pending, NOON + SETTLE) == Ready(incomplete=False)


# --- gathering


def arrivals(*spans: Span) -> list[Arrival]:
    return [
        Arrival(span=span, arrived=NOON + timedelta(seconds=index), commit=index)
        for index, span in enumerate(spans)
    ]


def test_arrivals_are_gathered_by_trace_and_joined_in_any_order() -> None:
    other = a_span("root")._replace(trace_id="2" * 32)
    came = arrivals(a_span("child", "root"), other, a_span("root"), a_span("child", "root"))

    found = gather(came)

    assert set(found) == {TRACE_ID, "2" * 32}
    assert found[TRACE_ID].commits == (0, 2, 3)
    assert (found[TRACE_ID].first, found[TRACE_ID].last) == (NOON, NOON + timedelta(seconds=3))
    assert [span.name for span in found[TRACE_ID].spans] == ["child", "root"]
    parts = [gather(came[:2])[TRACE_ID], gather(came[2:])[TRACE_ID]]
    assert join(*parts) == join(*reversed(parts)) == found[TRACE_ID]


@pytest.mark.parametrize(
    ("kept", "dropped"),
    [
        (a_span("s"), a_span("s", ms=None)),
        (a_span("s", ms=20), a_span("s", ms=10)),
        (a_span("s", attributes={"a": 1}), a_span("s")),
        (a_span("s", attributes={"a": 2}), a_span("s", attributes={"a": 1})),
    ],
)
def test_of_a_span_that_came_twice_the_fuller_one_is_kept(kept: Span, dropped: Span) -> None:
    for order in ([kept, dropped], [dropped, kept]):
        assert gather(arrivals(*order))[TRACE_ID].spans == (kept,)


# --- what a trace is


def test_a_single_llm_span_is_root_request_and_response_at_once() -> None:
    trace = whole(an_llm("only"))

    assert (trace.request, trace.response, trace.model, trace.models) == ("Q", "A", "m", ("m",))
    assert (trace.input_tokens, trace.output_tokens, trace.total_tokens, trace.llm_calls) == (3, 4, 7, 1)
    assert (trace.root_span_id, trace.name, trace.span_count, trace.cost_usd) == ("only", "only", 1, None)


def test_a_root_that_says_nothing_gets_the_first_question_and_the_last_answer_below() -> None:
    trace = whole(
        a_span("root", attributes={"gen_ai.operation.name": "invoke_agent"}),
        an_llm("first", "root", asked="the question", answered=None, at=1),
        a_span("tool", "root", at=2, attributes=of_kind("TOOL", input_value="{}", output_value="found")),
        an_llm("second", "root", asked="again", answered="the answer", at=3),
    )

    assert (trace.request, trace.response) == ("the question", "the answer")
    assert (trace.tools, trace.tool_calls, trace.llm_calls) == (("tool",), 1, 2)


def test_a_root_without_an_output_still_has_its_own_question() -> None:
    root = a_span("root", attributes=of_kind("CHAIN", input_value="from the user"))

    trace = whole(root, an_llm("llm", "root", asked="a prompt", answered="the answer", at=1))

    assert (trace.request, trace.response) == ("from the user", "the answer")


def test_an_agent_below_a_web_servers_span_speaks_for_the_models_below_it() -> None:
    agent = a_span("agent", "root", at=1, attributes=of_kind("AGENT", input_value="Q1", output_value="A1"))

    trace = whole(a_span("root"), agent, an_llm("llm", "agent", at=2))

    assert (trace.request, trace.response) == ("Q1", "A1")


def test_when_only_tools_were_called_the_output_is_their_json() -> None:
    trace = whole(
        a_span(
            "root",
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.output.messages": '[{"role":"assistant","parts":[{"type":"tool_call","name":"t"}]}]',
            },
        )
    )

    assert trace.response is not None
    assert '"tool_call"' in trace.response
    assert (trace.tools, trace.tool_calls) == (("t",), 1)


def test_nested_copies_of_one_call_are_counted_once() -> None:
    trace = whole(
        a_span("graph", attributes=of_kind("CHAIN", input_value="Q", output_value="A")),
        a_span("node", "graph", at=1, attributes=of_kind("CHAIN", input_value="Q", output_value="A")),
        an_llm("framework", "node", at=2),
        a_span("http", "framework", at=3),
        an_llm("client", "http", at=4),
    )

    assert (trace.llm_calls, trace.input_tokens, trace.total_tokens) == (1, 3, 7)


def test_usage_that_only_the_outer_span_tells_is_not_lost() -> None:
    inner = an_llm("inner", "outer", at=1, attributes={"llm.token_count.prompt": None, "llm.cost.total": 0.5})

    trace = whole(an_llm("outer", attributes={"llm.cost.total": 0.7}), inner)

    assert (trace.input_tokens, trace.output_tokens, trace.cost_usd) == (3, 4, 0.5)


def test_tool_calls_in_messages_count_when_there_are_no_tool_spans() -> None:
    calls = [
        {"id": f"c{index}", "function": {"name": name, "arguments": "{}"}} for index, name in enumerate("aab")
    ]
    output = {"choices": [{"message": {"role": "assistant", "tool_calls": calls}}]}
    attributes = {"output.value": json.dumps(output)}

    trace = whole(
        a_span("root"),
        an_llm("one", "root", attributes=attributes),
        an_llm("same", "root", attributes=attributes),
    )

    assert (trace.tools, trace.tool_calls) == (("a", "b"), 3)


def test_session_user_and_tags_are_the_roots_first() -> None:
    trace = whole(
        a_span("root", attributes={"session.id": "s", "mlflow.traceTag.team": "a"}, service_name="app"),
        a_span(
            "child",
            "root",
            at=-5,
            attributes={"session.id": "other", "user.id": "u", "mlflow.traceTag.team": "b"},
        ),
    )

    assert (trace.session_id, trace.user_id, trace.tags) == ("s", "u", {"team": "a"})
    assert (trace.service_name, trace.attributes["session.id"]) == ("app", "s")


def test_status_is_the_roots_and_errors_are_everyones() -> None:
    trace = whole(a_span("root", status="OK"), a_span("tool", "root", status="ERROR", status_message="late"))

    assert (trace.status, trace.status_message, trace.error_count) == ("OK", "", 1)


def test_of_two_roots_the_earliest_that_ended_is_the_main_one() -> None:
    trace = whole(a_span("open", at=0, ms=None), a_span("later", at=20), a_span("main", at=10))

    assert (trace.root_span_id, trace.span_count) == ("main", 3)


def test_without_a_root_the_trace_is_what_there_is() -> None:
    trace = assemble(
        TRACE_ID, [an_llm("a", "lost"), an_llm("b", "lost", at=30, answered="B")], incomplete=True
    )

    assert (trace.root_span_id, trace.status, trace.attributes, trace.incomplete) == (None, "UNSET", {}, True)
    assert (trace.request, trace.response, trace.duration_ms) == ("Q", "B", 40.0)


def test_cycles_are_survived_and_counted_like_any_span() -> None:
    trace = whole(
        an_llm("a", "c"), an_llm("b", "a", at=1), an_llm("c", "b", at=2), an_llm("self", "self", at=3)
    )

    assert [step.span.name for step in trace.steps] == ["a", "b", "c", "self"]
    assert (trace.root_span_id, trace.llm_calls) == (None, 2)


def test_a_clock_that_went_back_gives_no_negative_duration() -> None:
    assert whole(a_span("root", ms=-50)).duration_ms == 0


@pytest.mark.parametrize("absurd", [2**63 - 1, 10**30])
def test_absurd_times_are_no_times(absurd: int) -> None:
    trace = whole(a_span("root", end_time_unix_nano=absurd))

    assert trace.end_time is None or trace.end_time.year > 2200
    assert traces_table([trace]).num_rows == 1


def test_a_parent_comes_before_the_children_that_began_with_it() -> None:
    trace = whole(a_span("a", "b"), a_span("b", "z"), a_span("z"), a_span("y", None, at=-1))

    assert [step.span.name for step in trace.steps] == ["y", "z", "b", "a"]


def test_a_trace_of_no_spans_is_an_empty_one() -> None:
    assert whole().span_count == 0


# --- laws

IDS = st.sampled_from(["a", "b", "c", "d", "e"])
TIMES = st.none() | st.integers(START - 5, START + 5) | st.sampled_from([1, 2**63 - 1])
ATTRIBUTES = st.sampled_from(
    [
        {},
        of_kind("LLM", input_value="Q", output_value="A") | {"llm.token_count.prompt": 1},
        of_kind("LLM", output_value="B") | {"llm.token_count.completion": 2, "llm.cost.total": 0.5},
        of_kind("AGENT", input_value="Q2", session_id="s"),
        of_kind("TOOL", input_value="{}", user_id="u"),
        {"mlflow.traceTag.t": "1", "mlflow.spanType": "not JSON"},
        {"mlflow.traceTag.t": 2, "session.id": 5},
    ]
)
SPANS = st.builds(
    partial(Span, kind="INTERNAL", service_name="", events=(), status_message="", resource={}, scope_name=""),
    trace_id=st.just(TRACE_ID),
    span_id=IDS,
    parent_span_id=st.none() | IDS,
    name=st.sampled_from(["x", "y", ""]),
    start_time_unix_nano=TIMES,
    end_time_unix_nano=TIMES,
    attributes=ATTRIBUTES,
    status=st.sampled_from(["OK", "ERROR", "UNSET"]),
)


@given(spans=st.lists(SPANS, max_size=12), seed=st.integers(0, 1000))
def test_the_order_of_arrival_and_repetition_change_nothing(spans: list[Span], seed: int) -> None:
    shuffled = [*spans, *spans[: seed % 4]]
    random.Random(seed).shuffle(shuffled)

    assert assemble(TRACE_ID, shuffled, incomplete=False) == assemble(TRACE_ID, spans, incomplete=False)
    assert [pending.spans for pending in gather(arrivals(*shuffled)).values()] == [
        pending.spans for pending in gather(arrivals(*spans)).values()
    ]


@given(spans=st.lists(SPANS, min_size=2, max_size=12), cut=st.integers(1, 11))
def test_parts_joined_are_the_whole(spans: list[Span], cut: int) -> None:
    came = arrivals(*spans)
    parts = [gather(part)[TRACE_ID] for part in (came[:cut], came[cut:]) if part]

    joined = parts[0] if len(parts) == 1 else join(parts[1], parts[0])

    assert joined == gather(came)[TRACE_ID]


@given(spans=st.lists(SPANS, max_size=12))
def test_whatever_the_spans_the_trace_has_its_columns(spans: list[Span]) -> None:
    trace = whole(*spans)

    assert len(trace.steps) == trace.span_count == len({span.span_id for span in spans})
    assert trace.duration_ms is None or trace.duration_ms >= 0
    assert trace.llm_calls <= sum(step.span_type == "LLM" for step in trace.steps)
    assert (trace.llm_calls > 0) == any(step.span_type == "LLM" for step in trace.steps)
    assert traces_table([trace]).num_rows == 1


# --- columns


def test_traces_are_a_table_with_the_contracts_columns() -> None:
    traces: Sequence[Trace] = [whole(an_llm("only", attributes={"mlflow.traceTag.team": "a"})), whole()]

    rows = traces_table(traces).to_pylist()

    assert list(rows[0]) == TRACES.names
    assert rows[0]["start_time"] == NOON
    assert (rows[0]["models"], rows[0]["tags"], rows[0]["duration_ms"]) == (["m"], '{"team":"a"}', 10.0)
    assert (rows[1]["start_time"], rows[1]["attributes"], rows[1]["incomplete"]) == (None, "{}", False)
    assert traces_table([]).schema == TRACES


def test_steps_are_columns_in_the_order_given() -> None:
    steps = whole(a_span("root"), an_llm("llm", "root", at=1)).steps

    table = step_columns(steps)

    assert table.schema == STEPS
    assert table.column("span_type").to_pylist() == ["OTHER", "LLM"]
    assert table.column("output").to_pylist() == [None, "A"]
