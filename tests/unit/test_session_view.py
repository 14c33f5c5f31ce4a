"""What a judge of sessions sees: the turns one after the other, what does not fit cut by rule and said."""

from dataclasses import replace
from datetime import timedelta

from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.records import Record, record_of_session
from evaluator.dataset.selection import SelectionRule, sample_position, select, select_sessions
from evaluator.scorers.view import view_of
from evaluator.traces.columns import SESSIONS
from evaluator.traces.sessions import session_of
from evaluator.traces.trace import Message, Session, Trace
from tests.a_trace import NOON, a_tool_call, a_trace, an_llm_call


def a_turn(number: int, **columns: object) -> Trace:
    values = {
        "trace_id": f"{number:032x}",
        "start_time": NOON + timedelta(minutes=number),
        "end_time": NOON + timedelta(minutes=number, seconds=2),
        "request": f"question {number}",
        "response": f"answer {number}",
        "steps": (a_tool_call(arguments=f"step of {number}"),),
        **columns,
    }
    return a_trace(**values)


def a_session(turns: int = 3) -> Session:
    return session_of("s1", [a_turn(number) for number in reversed(range(1, turns + 1))])


def names(record: Record, **options: object) -> list[str]:
    return [block.name for block in view_of(record, **options).blocks]  # type: ignore[arg-type]


def test_turns_are_shown_in_the_order_of_time_with_what_was_done_between() -> None:
    shown = names(record_of_session(a_session(2)))

    assert shown == [
        "turn 1: request",
        "turn 1, step 1: tool call",
        "turn 1: response",
        "turn 2: request",
        "turn 2, step 1: tool call",
        "turn 2: response",
    ]


def test_what_a_later_turn_carries_along_is_shown_once() -> None:
    history = (Message(role="user", content="question 1"), Message(role="assistant", content="answer 1"))
    second = a_turn(2, steps=(replace(an_llm_call(), messages=history),))
    record = record_of_session(session_of("s1", [a_turn(1), second]))

    texts = [block.text for block in view_of(record).blocks]

    assert sum("question 1" in text for text in texts) == sum("answer 1" in text for text in texts) == 1


def test_a_judge_of_answers_sees_no_steps_and_one_of_an_index_a_line_for_each() -> None:
    record = record_of_session(a_session(2))

    answers, index = names(record, trace_view="answer"), view_of(record, trace_view="index").blocks[0]

    assert answers == ["turn 1: request", "turn 1: response", "turn 2: request", "turn 2: response"]
    assert index.text.splitlines() == [
        "turn 1",
        "1. TOOL search, in 9 characters",
        "turn 2",
        "1. TOOL search, in 9 characters",
    ]
    assert names(record, parts=frozenset({"outputs"})) == ["turn 1: response", "turn 2: response"]


def test_a_long_session_is_cut_by_rule_and_that_is_said() -> None:
    long = "word " * 2_000
    turns = [a_turn(number, steps=(a_tool_call(arguments=f"{number} {long}"),)) for number in range(1, 6)]
    view = view_of(record_of_session(session_of("s1", turns)), characters=6_000)

    shown = [block.name for block in view.blocks]
    assert sum(len(block.text) for block in view.blocks) <= 6_000
    assert shown[0] == "index of all steps"
    assert [name for name in shown if name.endswith(("request", "response"))] == [
        f"turn {number}: {part}" for number in range(1, 6) for part in ("request", "response")
    ]
    assert "turn 1, step 1: tool call" in view.left_out


def test_a_session_is_seen_as_one_trace() -> None:
    turns = [a_turn(1, cost_usd=None, status="ERROR", status_message="broke"), a_turn(2, cost_usd=0.5)]
    session = session_of("s1", turns)
    whole = session.whole

    assert (whole.trace_id, whole.request, whole.response) == (f"{1:032x}", "question 1", "answer 2")
    assert (whole.status, whole.status_message, whole.cost_usd) == ("ERROR", "broke", 0.5)
    assert (whole.llm_calls, whole.tool_calls, whole.input_tokens) == (2, 2, 1800)
    assert whole.duration_ms == 62_000


def test_rules_of_sessions_choose_sessions_only_by_their_id() -> None:
    condition = parse_condition("turns > 2 AND request = 'question 1'", SESSIONS)
    rule = SelectionRule(name="r", filter=condition, target="session")
    rare = SelectionRule(name="rare", sample_rate=sample_position("s1"), target="session")
    short, long = session_of("s2", [a_turn(1)]), a_session(3)

    chosen = select_sessions([short, long], [rule, rare, SelectionRule(name="of traces")])

    assert [dict(one.skipped).get("r") for one in chosen] == ["filtered", None]
    assert chosen[1].skipped == {"rare": "sampled out"}
    assert [record.target.target_id for record in chosen[1].records["r"]] == ["s1"]
    assert select([a_turn(1)], [rule])[0].records == {}
