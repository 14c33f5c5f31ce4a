"""Which trace gets which scorer: laws of sampling, and reasons."""

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.selection import Selection, SelectionRule, sample_position, select
from evaluator.traces.columns import TRACES
from tests.a_trace import a_trace

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

    assert all("high" in selection.chosen for selection in selections if "low" in selection.chosen)


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
        assert ("one" in selection.chosen, selection.skipped.get("one")) == (
            "one" in alone.chosen,
            alone.skipped.get("one"),
        )


@settings(deadline=None)
@given(ids, st.lists(rates, max_size=4))
def test_every_scorer_of_every_trace_is_accounted_for_once(trace_ids: list[str], some: list[float]) -> None:
    rules = [rule(f"judge {number}", rate=rate) for number, rate in enumerate(some)]

    selections = select([a_trace(trace_id=trace_id) for trace_id in trace_ids], rules)

    assert [selection.trace_id for selection in selections] == trace_ids
    for selection in selections:
        assert sorted([*selection.chosen, *selection.skipped]) == sorted(rule.name for rule in rules)


def test_each_reason_is_said() -> None:
    rules = [
        rule("all"),
        rule("none", rate=0),
        rule("slow", "duration_ms > 60000"),
        rule("slow and none", "duration_ms > 60000", 0),
        rule("null", "user_id = 'x'"),
        rule("broken", "request::INTEGER > 1"),
    ]

    [selection] = select([a_trace()], rules)

    assert selection == Selection(
        trace_id="a" * 32,
        chosen=("all",),
        skipped={
            "none": "sampled out",
            "slow": "filtered",
            "slow and none": "filtered",
            "null": "filtered",
            "broken": "filter failed: a value could not be converted to the type that the condition asks for",
        },
    )
