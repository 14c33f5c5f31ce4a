"""Which trace gets which scorer: laws of sampling, and reasons."""

from dataclasses import replace
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.records import record_of_trace
from evaluator.dataset.selection import MOST_SPANS, Selection, SelectionRule, sample_position, select
from evaluator.traces.columns import SPANS, TRACES
from evaluator.traces.trace import SpanEvent, Trace
from tests.a_trace import a_tool_call, a_trace, an_llm_call

rates = st.floats(0, 1)
ids = st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), min_size=1, max_size=8, unique=True)


def rule(name: str = "judge", filter_text: str | None = None, rate: float = 1.0) -> SelectionRule:
    condition = None if filter_text is None else parse_condition(filter_text, TRACES)
    return SelectionRule(name=name, filter=condition, sample_rate=rate)


@given(st.text())
def test_a_position_is_at_least_0_and_below_1(trace_id: str) -> None:
    assert 0 <= sample_position(trace_id) < 1


def test_a_position_stays_what_it_was_in_earlier_versions() -> None:
    assert sample_position("4bf92f3577b34da6a3ce929d0e0e4736") == 0.22477405853512122


def test_positions_are_spread_evenly() -> None:
    positions = [sample_position(f"{number:032x}") for number in range(10_000)]

    shares = [sum(low / 10 <= position < (low + 1) / 10 for position in positions) for low in range(10)]
    assert all(850 < share < 1150 for share in shares)


@settings(deadline=None)
@given(ids, rates, rates)
def test_what_a_lower_rate_chooses_a_higher_rate_chooses_too(
    trace_ids: list[str], one: float, other: float
) -> None:
    traces = [a_trace(trace_id=trace_id) for trace_id in trace_ids]

    selections = select(traces, [rule("low", rate=min(one, other)), rule("high", rate=max(one, other))])

    assert all("high" in selection.records for selection in selections if "low" in selection.records)


@settings(deadline=None, max_examples=25)
@given(
    ids,
    rates,
    st.sampled_from([None, "duration_ms > 1", "trace_id < '8'", "user_id = 'x'", "request::INT > 1"]),
)
def test_a_decision_depends_on_nothing_but_its_trace_and_its_rule(
    trace_ids: list[str], rate: float, text: str | None
) -> None:
    traces = [a_trace(trace_id=trace_id) for trace_id in trace_ids]
    one, other = rule("one", text, rate), rule("other", "status = 'ERROR'", 0.5)

    together = select(traces, [other, one])

    for selection, trace in zip(together, traces, strict=True):
        [alone] = select([trace], [one])
        assert ("one" in selection.records, selection.skipped.get("one")) == (
            "one" in alone.records,
            alone.skipped.get("one"),
        )


@settings(deadline=None)
@given(ids, st.lists(rates, max_size=4))
def test_every_scorer_of_every_trace_is_accounted_for_once(trace_ids: list[str], some: list[float]) -> None:
    rules = [rule(f"judge {number}", rate=rate) for number, rate in enumerate(some)]

    selections = select([a_trace(trace_id=trace_id) for trace_id in trace_ids], rules)

    assert [selection.trace_id for selection in selections] == trace_ids
    for selection in selections:
        assert sorted([*selection.records, *selection.skipped]) == sorted(rule.name for rule in rules)


def test_each_reason_is_said() -> None:
    rules = [
        rule("all"),
        rule("none", rate=0),
        rule("slow", "duration_ms > 60000"),
        rule("slow and none", "duration_ms > 60000", 0),
        rule("null", "user_id = 'x'"),
        rule("broken", "request::INTEGER > 1"),
    ]

    trace = a_trace()

    [selection] = select([trace], rules)

    assert selection == Selection(
        trace_id="a" * 32,
        records={"all": [record_of_trace(trace)]},
        skipped={
            "none": "sampled out",
            "slow": "filtered",
            "slow and none": "filtered",
            "null": "filtered",
            "broken": "filter failed: a value could not be converted to the type that the condition asks for",
        },
    )


# --- spans


def of_spans(name: str = "judge", text: str | None = None, **rest: Any) -> SelectionRule:
    condition = None if text is None else parse_condition(text, SPANS)
    return SelectionRule(name=name, target="span", span_filter=condition, **rest)


def a_run(*kinds: str) -> Trace:
    """A trace of one span for each letter: t is a tool call, f a failed one, m a model call."""
    makers = {"t": a_tool_call, "f": partial(a_tool_call, failed=True), "m": an_llm_call}
    steps = [makers[kind]() for kind in kinds]
    named = [
        replace(step, span=step.span._replace(span_id=f"{number:016x}"))
        for number, step in enumerate(steps, start=1)
    ]
    return a_trace(steps=tuple(named))


def places(selection: Selection, name: str = "judge") -> list[int | None]:
    return [record.place for record in selection.records.get(name, ())]


def test_a_scorer_of_spans_gets_those_that_its_filter_holds_for() -> None:
    traces = [a_run("t", "m", "f"), a_run("m"), a_run("f", "t")]
    rules = [
        of_spans("tools", "span_type = 'TOOL'"),
        of_spans("failed", "status.code = 'STATUS_CODE_ERROR'"),
        of_spans("all"),
        rule("trace"),
    ]

    selections = select(traces, rules)

    assert [places(one, "tools") for one in selections] == [[0, 2], [], [0, 1]]
    assert [places(one, "failed") for one in selections] == [[2], [], [0]]
    assert [places(one, "all") for one in selections] == [[0, 1, 2], [0], [0, 1]]
    assert [places(one, "trace") for one in selections] == [[None]] * 3
    assert selections[1].skipped == {"tools": "no span matches", "failed": "no span matches"}
    assert selections[0].skipped == {}


def test_what_several_scorers_get_is_one_record_and_goes_out_together() -> None:
    rules = [of_spans("one"), of_spans("other", "span_type = 'TOOL'"), rule("trace")]

    [selection] = select([a_run("t", "m")], rules)

    assert selection.records["one"][0] is selection.records["other"][0]
    assert [(name, record.place) for name, record in selection.work] == [
        ("trace", None),
        ("one", 0),
        ("other", 0),
        ("one", 1),
    ]


def test_a_span_is_named_by_its_trace_and_its_own_id() -> None:
    [selection] = select([a_run("m", "t")], [of_spans(text="span_type = 'TOOL'")])

    [record] = selection.records["judge"]
    assert (record.target.type, record.target.target_id) == ("SPAN", f"{'a' * 32}:{2:016x}")
    assert (record.target.trace_id, record.target.span_id) == ("a" * 32, f"{2:016x}")
    assert record.step is not None
    assert record.step.tool_name == "search"


def test_the_trace_is_chosen_first_and_then_its_spans() -> None:
    filtered = parse_condition("status = 'ERROR'", TRACES)

    [selection] = select([a_run("t")], [of_spans("no", filter=filtered), of_spans("none", sample_rate=0.0)])

    assert selection.records == {}
    assert selection.skipped == {"no": "filtered", "none": "sampled out"}


def test_a_runaway_trace_costs_no_more_than_the_bound_and_says_so() -> None:
    [selection] = select([a_run(*"t" * (MOST_SPANS + 1))], [of_spans(), rule("trace")])

    assert places(selection) == list(range(MOST_SPANS))
    assert selection.skipped == {"judge": "more spans match than the first 1,000, which are judged"}


def test_a_span_filter_that_has_no_answer_for_some_spans_holds_for_the_others() -> None:
    rules = [of_spans("some", "input::INTEGER = 5"), of_spans("none", "tool_name::INTEGER = 5")]
    trace = a_run("t", "t", "m")
    steps = (replace(trace.steps[0], input="5"), *trace.steps[1:])

    [selection] = select([replace(trace, steps=steps)], rules)

    assert places(selection, "some") == [0]
    assert selection.skipped["none"].startswith("span_filter failed: a value could not be converted")


def test_every_column_of_a_span_can_be_asked_for_whatever_it_holds() -> None:
    steps = a_run("t", "m").steps
    odd = replace(
        steps[0],
        span=steps[0].span._replace(
            start_time_unix_nano=2**63 + 5,
            end_time_unix_nano=2**62,
            attributes={"a": {"b": 1}, "bad": "\ud800"},
            events=(SpanEvent(name="exception", attributes={"exception.message": "x"}),),
            resource={"service.name": "s"},
        ),
    )
    for name in SPANS.names:
        [selection] = select(
            [a_trace(steps=(odd, steps[1]))], [of_spans(text=f'"{name}" IS NOT NULL OR true')]
        )
        assert places(selection) == [0, 1], name


def test_a_span_filter_sees_attributes_and_events_as_the_spans_view_has_them() -> None:
    [step] = a_run("t").steps
    event = SpanEvent(name="exception", attributes={"exception.message": "x"})
    told = replace(step, span=step.span._replace(attributes={"a": {"b": 1}}, events=(event,)))
    text = (
        "attributes ->> '$.a.b' = '1' AND events[1].name = 'exception' AND kind = 'SPAN_KIND_INTERNAL' "
        "AND events[1].attributes ->> '$.\"exception.message\"' = 'x' AND resource.attributes = '{}'"
    )

    [selection] = select([a_trace(steps=(told,))], [of_spans(text=text)])

    assert places(selection) == [0]
