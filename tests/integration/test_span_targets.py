"""`target: span` on real tables: each matching span of a trace judged once, with its trace."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from evaluator.commands.explanation import explain
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.selection import NO_SPAN, SelectionRule
from evaluator.feedback import Reason
from evaluator.live.work import Parts
from evaluator.publish import publish
from evaluator.score import Active
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.summary import Summary
from evaluator.tables.rows import Key, Row
from evaluator.tick import look, tick
from evaluator.traces.columns import SPANS
from tests.bench import Bench, Greets
from tests.traffic import NOON, answer, span, span_id, trace_id

TOOLS = parse_condition("span_type = 'TOOL'", SPANS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.now = datetime.now(NOON.tzinfo) + timedelta(seconds=5)
    return bench


def of_tools(scorer: Greets) -> Active:
    return Active(scorer=scorer, rule=SelectionRule(name=scorer.name, target="span", span_filter=TOOLS))


def of_traces(scorer: Greets) -> Active:
    return Active(scorer=scorer, rule=SelectionRule(name=scorer.name))


def a_tool(trace: str, name: str, result: str = "Hello") -> dict[str, Any]:
    return span(
        trace,
        name,
        parent="root",
        **{"openinference.span.kind": "TOOL", "input.value": "{}", "output.value": result},
    )


def parts(bench: Bench, *active: Active) -> Parts:
    return replace(bench.parts(), active=active)


async def ticked(bench: Bench, *active: Active, **settings: Any) -> Summary:
    return await tick(replace(parts(bench, *active), **settings), run_id="run")


def key(trace: str, name: str, version: str = "v1", revision: int = 0) -> Key:
    return Key("SPAN", f"{trace_id(trace)}:{span_id(trace, name)}", "greets", version, revision)


def results(bench: Bench) -> dict[Key, Row]:
    return {key: row for key, row in bench.states().items() if key.scorer}


async def test_each_matching_span_gets_a_result_of_its_own_in_the_commit_of_its_trace(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"), a_tool("a", "two", "Bye"), answer("b"))

    summary = await ticked(bench, of_tools(Greets()), of_traces(Greets("whole")))

    found = {one: (row.value, row.span_id) for one, row in results(bench).items() if one.scorer == "greets"}
    assert found == {
        key("a", "one"): ('"yes"', span_id("a", "one")),
        key("a", "two"): ('"no"', span_id("a", "two")),
    }
    done = bench.states()[Key("TRACE", trace_id("a"))]
    assert {row.seq for row in results(bench).values() if row.trace_id == trace_id("a")} == {done.seq}
    assert bench.states()[Key("TRACE", trace_id("b"))].skipped == f'{{"greets":"{NO_SPAN}"}}'
    assert (summary.traces, summary.results, summary.skipped) == (2, 4, {NO_SPAN: 1})
    assert (summary.scorers["greets"].passed, summary.scorers["greets"].failed) == (1, 1)
    assert not look(parts(bench, of_tools(Greets()))).work


async def test_a_span_that_could_not_be_judged_is_tried_again_alone(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"), a_tool("a", "two"))
    await ticked(bench, of_tools(Greets(fails=Reason.UNAVAILABLE)))
    good = Greets()

    summary = await ticked(bench, of_tools(good))
    again = await ticked(bench, of_tools(good))

    assert {row.state for row in results(bench).values()} == {"scored"}
    assert (summary.results, again.results, len(good.seen)) == (2, 0, 2)


async def test_what_is_open_for_an_older_version_passes_to_the_spans_that_the_new_one_gets(
    bench: Bench,
) -> None:
    bench.append(answer("a"), a_tool("a", "one"), a_tool("a", "two"))
    await ticked(bench, of_tools(Greets(fails=Reason.UNAVAILABLE)))
    only_one = parse_condition("name = 'one'", SPANS)
    newer = replace(
        of_tools(Greets(version="v2")), rule=SelectionRule(name="greets", target="span", span_filter=only_one)
    )

    await ticked(bench, newer)

    states = {one: row.state for one, row in results(bench).items()}
    assert states == {
        key("a", "one"): "replaced",
        key("a", "one", "v2"): "scored",
        key("a", "two"): "replaced",
    }


async def test_a_judge_that_turns_from_traces_to_spans_leaves_what_was_open_replaced(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"))
    await ticked(bench, of_traces(Greets(fails=Reason.UNAVAILABLE)))

    await ticked(bench, of_tools(Greets(version="v2")))

    assert {one[:2]: row.state for one, row in results(bench).items()} == {
        ("TRACE", trace_id("a")): "replaced"
    }
    assert not look(parts(bench, of_tools(Greets(version="v2")))).work


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_span_that_is_gone_is_given_up_though_its_judge_was_edited(
    bench: Bench, version: str
) -> None:
    bench.append(answer("a"), a_tool("a", "one"))
    await ticked(bench, of_tools(Greets(fails=Reason.UNAVAILABLE)))
    from deltalake import DeltaTable

    table = DeltaTable(bench.spans_store.uri)
    table.delete(f"span_id = '{span_id('a', 'one')}'")
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)

    await ticked(bench, of_tools(Greets(version=version)))

    [row] = results(bench).values()
    assert (row.state, row.due, row.error) == ("unscored", None, "its spans are no longer in the table")


async def test_eval_scores_the_spans_of_the_past_and_live_does_not_score_them_again(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"), a_tool("a", "two"))

    first = await bench.evaluate(of_tools(Greets()))
    again = await bench.evaluate(of_tools(Greets()))
    live = await ticked(bench, of_tools(Greets()))

    assert (first.summary.results, again.summary.results, again.summary.reused) == (2, 0, 2)
    assert (live.traces, live.results, live.reused) == (1, 0, 2)
    assert [one.target.span_id for one in again.assessments] == [span_id("a", "one"), span_id("a", "two")]


async def test_rescoring_makes_the_next_revision_of_each_span(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"))
    await ticked(bench, of_tools(Greets()))

    rescored = await bench.evaluate(of_tools(Greets()), rescore=True)

    assert rescored.summary.results == 1
    assert set(results(bench)) == {key("a", "one"), key("a", "one", revision=1)}


async def test_a_span_is_an_annotation_of_its_own_and_a_row_of_the_assessments_view(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"), a_tool("a", "two"))
    await ticked(bench, of_tools(Greets()), of_traces(Greets("whole")))

    await publish(bench.ledger, [AnnotationsSink(bench.annotations, bench.ledger.open().table_id)])

    rows = bench.annotations.open().query("select * from t").to_pylist()
    assert {(row["name"], row["target_type"], row["target_id"]) for row in rows} == {
        ("greets", "SPAN", f"{trace_id('a')}:{span_id('a', 'one')}"),
        ("greets", "SPAN", f"{trace_id('a')}:{span_id('a', 'two')}"),
        ("whole", "TRACE", trace_id("a")),
    }
    seen = bench.views.query(
        "select trace_id, span_id, is_current from assessments order by span_id nulls first"
    )
    assert [tuple(row.values()) for row in seen.to_pylist()] == [
        (trace_id("a"), None, True),
        (trace_id("a"), span_id("a", "one"), True),
        (trace_id("a"), span_id("a", "two"), True),
    ]


async def test_explain_tells_of_each_span_and_why_others_have_none(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "one"), a_tool("a", "two"), answer("b"))
    await ticked(bench, of_tools(Greets()))

    told = explain(trace_id("a"), bench.spans, bench.ledger, {"greets": "v1"})
    none = explain(trace_id("b"), bench.spans, bench.ledger, {"greets": "v1"})

    assert [(one.state, one.span_id) for one in told.scorers] == [
        ("scored", span_id("a", "one")),
        ("scored", span_id("a", "two")),
    ]
    assert [(one.state, one.why) for one in none.scorers] == [("skipped", NO_SPAN)]


async def test_a_new_revision_says_nothing_of_a_span_that_it_lacks(bench: Bench) -> None:
    bench.append(answer("a"), a_tool("a", "kept"), a_tool("a", "gone"))
    await ticked(bench, of_tools(Greets(fails=Reason.UNAVAILABLE)), rescore_late=True)
    table = DeltaTable(bench.spans_store.uri)
    table.delete(f"span_id = '{span_id('a', 'gone')}'")
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    bench.append(a_tool("a", "late"))

    await ticked(bench, of_tools(Greets()), rescore_late=True)

    assert {one: row.state for one, row in results(bench).items()} == {
        key("a", "kept"): "replaced",
        key("a", "gone"): "unscored",
        key("a", "kept", revision=1): "scored",
        key("a", "late", revision=1): "scored",
    }
    assert results(bench)[key("a", "gone")].error == "its spans are no longer in the table"
    assert not look(parts(bench, of_tools(Greets()))).work
