"""`since`: a new judge catches up on the past, each trace once, behind the live work."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evaluator.chunk import Range
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.selection import SelectionRule
from evaluator.feedback import Reason, Usage
from evaluator.live.arrivals import Arrivals
from evaluator.live.past import Past
from evaluator.live.work import Parts, Work
from evaluator.notes import CatchUp, begun_unit, catch_ups, reached_unit
from evaluator.score import Active
from evaluator.shards import Shard, shards_of
from evaluator.summary import Summary
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import note
from evaluator.tables.rows import Key, Row, from_arrow
from evaluator.tables.spans import SpansTable
from evaluator.tick import look, tick
from evaluator.traces.columns import SPANS
from tests.bench import Bench, Greets
from tests.traffic import NOON, answer, append, span, span_id, spans_store, trace_id

WEEK = timedelta(days=7)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.now = datetime.now(NOON.tzinfo) + timedelta(seconds=5)
    return bench


def judge(scorer: Greets, since: timedelta | None = WEEK, **rest: Any) -> Active:
    rule = rest.pop("rule", SelectionRule(name=scorer.name))
    return Active(scorer=scorer, rule=rule, since=since, **rest)


def parts(bench: Bench, *active: Active, **settings: Any) -> Parts:
    return replace(bench.parts(**settings), active=active)


async def ticked(bench: Bench, *active: Active, **settings: Any) -> Summary:
    return await tick(parts(bench, *active, **settings), run_id="run")


def results(bench: Bench, name: str = "new") -> dict[str, Row]:
    return {key.target_id: row for key, row in bench.states().items() if key.scorer == name}


def catch_up(bench: Bench, *shards: Shard) -> CatchUp:
    [one] = catch_ups(bench.ledger.open().notes(), shards or [Shard()])
    return one


async def a_past(bench: Bench, *days_ago: float) -> None:
    """Traces that began so many days ago and were decided before the new judge came."""
    for number, days in enumerate(days_ago):
        bench.append(answer(f"t{number}", at=bench.now - timedelta(days=days)))
    await ticked(bench, judge(Greets("old"), None))


async def test_a_new_judge_scores_what_began_in_its_range_and_nothing_else(bench: Bench) -> None:
    await a_past(bench, 8, 6.9, 3, 0.1)
    scorer = Greets("new")

    summary = await ticked(bench, judge(Greets("old"), None), judge(scorer))
    again = await ticked(bench, judge(Greets("old"), None), judge(scorer))

    assert set(results(bench)) == {trace_id("t1"), trace_id("t2"), trace_id("t3")}
    assert {row.scope for row in results(bench).values()} == {"since"}
    assert scorer.seen == [trace_id("t1"), trace_id("t2"), trace_id("t3")]
    assert (summary.results, again.results) == (3, 0)
    assert catch_up(bench).done
    assert not look(parts(bench, judge(scorer))).work


async def test_the_range_is_fixed_when_the_judge_is_first_seen(bench: Bench) -> None:
    await a_past(bench, 6.9)
    first_seen = bench.now
    await ticked(bench, judge(Greets("new")), past_for=timedelta(0))
    bench.later(days=2)

    assert look(parts(bench, judge(Greets("new")))).work
    await ticked(bench, judge(Greets("new")))

    one = catch_up(bench)
    assert (one.start, one.end, one.upto) == (first_seen - WEEK, first_seen, first_seen)
    assert set(results(bench)) == {trace_id("t0")}


async def test_what_live_decides_with_the_judge_is_live_s(bench: Bench) -> None:
    await a_past(bench, 2)
    bench.append(answer("fresh", at=bench.now - timedelta(days=1)))

    summary = await ticked(bench, judge(Greets("new")))

    assert {target: row.scope for target, row in results(bench).items()} == {
        trace_id("t0"): "since",
        trace_id("fresh"): "live",
    }
    assert summary.results == 2


async def test_a_trace_that_waits_is_left_to_live_and_holds_the_past_until_it_is_decided(
    bench: Bench,
) -> None:
    await a_past(bench, 2)
    bench.append(span("open", "child", parent="root", at=bench.now - timedelta(hours=2)))
    scorer = Greets("new")

    await ticked(bench, judge(scorer))
    held = set(results(bench)), catch_up(bench).done
    bench.later(hours=2)
    await ticked(bench, judge(scorer))

    assert held == ({trace_id("t0")}, False)
    assert catch_up(bench).done
    assert {target: row.scope for target, row in results(bench).items()} == {
        trace_id("t0"): "since",
        trace_id("open"): "live",
    }


async def test_a_tick_goes_on_with_the_past_for_a_while_and_the_next_one_goes_on_from_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluator.live.work.CHUNK_TRACES", 1)
    monkeypatch.setattr("evaluator.tables.spans.TRACES_A_PORTION", 1)
    await a_past(bench, 5, 4, 3, 2, 1)

    @dataclass
    class Slow(Greets):
        bench: Bench | None = None

        async def score(self, records: Any) -> Any:
            bench.later(seconds=40)
            return await super().score(records)

    slow = Slow("new", bench=bench)
    seen, states = [], []
    for _ in range(3):
        await ticked(bench, judge(slow))
        seen.append(len(slow.seen))
        states.append(catch_up(bench).done)

    assert seen == [2, 4, 5]
    assert states == [False, False, True]
    assert len(results(bench)) == 5


async def test_what_is_left_open_is_served_by_live(bench: Bench) -> None:
    await a_past(bench, 2)
    await ticked(bench, judge(Greets("new", fails=Reason.UNAVAILABLE)))
    [row] = results(bench).values()
    assert (row.state, row.attempts, row.scope, catch_up(bench).done) == ("unscored", 1, "since", True)

    await ticked(bench, judge(Greets("new")))

    [row] = results(bench).values()
    assert (row.state, row.scope) == ("scored", "since")


@pytest.mark.parametrize("reason", [Reason.BUDGET, Reason.ENDPOINT_DOWN])
async def test_what_is_held_back_is_not_written_and_holds_the_past(bench: Bench, reason: Reason) -> None:
    await a_past(bench, 2, 1)

    summary = await ticked(bench, judge(Greets("new", fails=reason)))
    held = results(bench), catch_up(bench).done
    await ticked(bench, judge(Greets("new")))

    assert held == ({}, False)
    assert summary.notes == [f"catching up on the past waits (1 x {reason}): the next tick goes on with it"]
    assert len(results(bench)) == 2


async def test_the_past_leaves_the_most_of_the_budget_to_what_is_new(bench: Bench) -> None:
    await a_past(bench, 2)
    bench.append(answer("fresh", at=bench.now))

    summary = await ticked(bench, judge(Greets("new"), spares=lambda: False))

    assert set(results(bench)) == {trace_id("fresh")}
    assert "half of which is kept for what is new" in summary.notes[0]


async def test_a_judge_that_cannot_work_holds_its_past_and_says_so(bench: Bench) -> None:
    await a_past(bench, 2)

    summary = await ticked(bench, judge(Greets("new", raises=True)))

    assert summary.failure == "the key is wrong"
    assert (results(bench), catch_up(bench).done) == ({}, False)


async def test_a_paused_judge_does_not_catch_up_until_it_is_resumed(bench: Bench) -> None:
    await a_past(bench, 2)

    paused = judge(Greets("new", fails=Reason.PAUSED), paused=True)
    await ticked(bench, paused)

    assert not look(parts(bench, paused)).work
    await ticked(bench, judge(Greets("new")))
    assert len(results(bench)) == 1


async def test_an_edit_ends_the_old_range_and_the_new_version_has_one_of_its_own(bench: Bench) -> None:
    await a_past(bench, 6, 1)
    await ticked(bench, judge(Greets("new")), past_for=timedelta(0))
    bench.later(days=2)

    await ticked(bench, judge(Greets("new", version="v2")))

    of_versions = {one.version: one for one in catch_ups(bench.ledger.open().notes())}
    assert not of_versions["v1"].done
    assert of_versions["v2"].done
    assert {row.version for row in results(bench).values()} == {"v2"}
    assert set(results(bench)) == {trace_id("t1")}
    assert not look(parts(bench, judge(Greets("new", version="v2")))).work


async def test_judges_that_come_together_read_the_past_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_past(bench, 6, 1)
    reads = []
    around = type(bench.spans.open()).around
    monkeypatch.setattr(
        type(bench.spans.open()),
        "around",
        lambda self, ids, when: reads.append(ids) or around(self, ids, when),
    )

    await ticked(bench, judge(Greets("new")), judge(Greets("other")))

    assert len(results(bench)) == len(results(bench, "other")) == 2
    assert [ids for ids in reads if ids] == [{trace_id("t0")}, {trace_id("t1")}]


async def test_the_spans_of_the_past_are_judged_each(bench: Bench) -> None:
    at = bench.now - timedelta(days=2)
    tool = {"openinference.span.kind": "TOOL", "output.value": "Hello"}
    bench.append(answer("a", at=at), span("a", "tool", parent="root", at=at, **tool))
    await ticked(bench, judge(Greets("old"), None))
    tools = parse_condition("span_type = 'TOOL'", SPANS)

    await ticked(
        bench, judge(Greets("new"), rule=SelectionRule(name="new", target="span", span_filter=tools))
    )

    assert set(results(bench)) == {f"{trace_id('a')}:{span_id('a', 'tool')}"}


@pytest.mark.parametrize("together", [False, True])
async def test_who_is_held_back_holds_back_nobody_else(bench: Bench, together: bool) -> None:
    """The judge whose key is wrong has the most to look through, or as much as the other."""
    await a_past(bench, 3, 2, 0.5, 0.1)
    broken, other = Greets("broken", raises=True), Greets("new")
    judges = judge(broken), judge(other, WEEK if together else timedelta(days=1))

    summary = await ticked(bench, *judges)
    await ticked(bench, *judges)

    assert summary.failure == "the key is wrong"
    assert other.seen == [trace_id(name) for name in ("t0", "t1", "t2", "t3")[0 if together else 2 :]]
    assert results(bench, "broken") == {}


async def test_a_range_reaches_behind_where_scoring_began_and_waits_for_what_is_not_whole(
    bench: Bench, tmp_path: Path
) -> None:
    foreign = DeltaStore(str(tmp_path / "foreign"))
    foreign.create(spans_store(tmp_path / "x").open().schema)
    append(foreign, [answer("old", at=bench.now - timedelta(days=2))])
    append(foreign, [span("rootless", "child", parent="root", at=bench.now - timedelta(days=1))])
    spans = SpansTable(foreign, bench.clock)

    def foreign_parts() -> Parts:
        return replace(parts(bench, judge(Greets("new"))), spans=spans)

    bench.later(seconds=10)
    first = await tick(foreign_parts(), "run")
    waits = set(results(bench)), catch_up(bench).done
    bench.later(hours=2)
    await tick(foreign_parts(), "run")

    assert waits == ({trace_id("old")}, False)
    assert "1 x not whole yet" in " ".join(first.notes)
    assert set(results(bench)) == {trace_id("old"), trace_id("rootless")}
    assert catch_up(bench).done


async def test_a_killed_catch_up_goes_on_and_pays_for_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluator.live.work.CHUNK_TRACES", 1)
    await a_past(bench, 5, 5, 5)

    @dataclass
    class Dies(Greets):
        deaths: list[int] = field(default_factory=lambda: [1])

        async def score(self, records: Any) -> Any:
            if len(self.seen) == 2 and self.deaths:
                self.deaths.pop()
                raise RuntimeError("killed")
            return await super().score(records)

    scorer = Dies("new")
    with pytest.raises(ExceptionGroup):
        await ticked(bench, judge(scorer))
    await ticked(bench, judge(scorer))

    assert len(scorer.seen) == len(set(scorer.seen)) == 3
    assert len(results(bench)) == 3


async def test_what_an_eval_has_scored_already_is_passed_over(bench: Bench) -> None:
    await a_past(bench, 2, 1)
    within = Range(start=bench.now - timedelta(days=1.5), end=bench.now)
    await bench.evaluate(judge(Greets("new")), within=within)
    scorer = Greets("new")

    await ticked(bench, judge(scorer))

    assert scorer.seen == [trace_id("t0")]
    assert {target: row.scope for target, row in results(bench).items()} == {
        trace_id("t0"): "since",
        trace_id("t1"): "eval",
    }


async def test_what_a_catch_up_left_open_is_not_tried_again_by_the_tick_that_decides_its_trace(
    bench: Bench,
) -> None:
    began = bench.now - timedelta(hours=1)
    bench.append(answer("t0", at=began))
    await ticked(bench, judge(Greets("new", fails=Reason.UNAVAILABLE)), start="latest")
    bench.append(span("t0", "child", parent="root", at=began + timedelta(minutes=70)))
    bench.later(hours=1)
    scorer = Greets("new")

    await ticked(bench, judge(scorer), start="latest")

    assert scorer.seen == [trace_id("t0")]
    rows = from_arrow(bench.ledger.store.open().query("select * from t where scorer = 'new' order by seq"))
    assert [(row.scope, row.state) for row in rows] == [("since", "unscored"), ("live", "scored")]


async def test_a_worker_that_learns_of_a_decision_reads_the_spans_that_it_was_made_with(bench: Bench) -> None:
    bench.append(answer("a", at=bench.now))
    slow = Work(parts(bench, judge(Greets("new")), rescore_late=True), "slow", Summary(run_id="slow"))
    bench.append(span("a", "child", parent="root", at=bench.now))
    await ticked(bench, judge(Greets("new")), rescore_late=True)

    await Past(slow).begin()
    await Arrivals(slow).decide()

    decisions = [key.revision for key in bench.states() if key.scorer is None and key.target_type == "TRACE"]
    assert decisions == [0]


async def test_the_past_goes_on_though_spans_come_and_others_commit_in_every_tick(bench: Bench) -> None:
    await a_past(bench, 2, 1)
    bench.append(answer("fresh"))

    @dataclass
    class Busy(Greets):
        async def score(self, records: Any) -> Any:
            bench.append(answer("newer"))
            bench.ledger.open().commit([[note("other", state="done")]])
            return await super().score(records)

    scorer = Greets("new")
    await ticked(bench, judge(Busy("old"), None), judge(scorer))

    assert {trace_id("t0"), trace_id("t1")} < set(scorer.seen)
    assert catch_up(bench).done


async def test_each_shard_looks_through_its_own_traces(bench: Bench) -> None:
    await a_past(bench, *(number / 10 for number in range(1, 13)))
    bench.ledger.open().share_out(2, bench.spans.open().table_id)
    shards = [Shard(0, 2), Shard(1, 2)]
    seen = []
    for shard in shards:
        scorer = Greets("new")
        await ticked(bench, judge(scorer), shard=shard)
        seen.append(set(scorer.seen))

    assert catch_up(bench, *shards).done
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]
    assert set(results(bench)) == seen[0] | seen[1] == {trace_id(f"t{number}") for number in range(12)}


async def test_a_paid_call_that_was_held_back_after_all_leaves_an_open_row(bench: Bench) -> None:
    await a_past(bench, 2)

    @dataclass
    class HalfPaid(Greets):
        async def score(self, records: Any) -> Any:
            return [replace(one, usage=Usage(model="m", calls=1)) for one in await super().score(records)]

    await ticked(bench, judge(HalfPaid("new", fails=Reason.BUDGET)))

    [row] = results(bench).values()
    assert (row.state, row.reason) == ("deferred", "budget")
    assert Key("TRACE", trace_id("t0"), "new", "v1", 0) in bench.states()


async def test_a_past_that_was_looked_through_is_not_looked_through_again_by_other_shards(
    bench: Bench,
) -> None:
    """Not even for what a rate that was raised meanwhile would take in: `eval` scores that."""
    await a_past(bench, *(number / 10 for number in range(1, 13)))
    some = Greets("new")
    rate = Active(scorer=some, rule=SelectionRule(name="new", sample_rate=0.3), since=WEEK)
    await ticked(bench, rate)
    assert 0 < len(some.seen) < 12
    paid = len(some.seen)

    for count in (2, 3, 1):
        bench.ledger.open().share_out(count, bench.spans.open().table_id)
        for shard in shards_of(count):
            await ticked(bench, judge(some), shard=shard)
        assert catch_up(bench, *shards_of(count)).done

    assert len(some.seen) == paid


async def test_shards_go_on_with_a_past_where_the_slowest_of_the_old_ones_was(bench: Bench) -> None:
    await a_past(bench, 3, 2, 1)
    book = bench.ledger.open()
    start, end = bench.now - WEEK, bench.now
    one = CatchUp(scorer="new", version="v1", start=start, end=end, upto=start)
    notes = [begun_unit("new", "v1", start, end)]
    notes += [reached_unit(one, start + timedelta(days=4 + shard.index), shard) for shard in shards_of(2)]
    book.commit(notes)

    assert catch_up(bench, *shards_of(3)).upto == start + timedelta(days=4)
    assert catch_up(bench, Shard(1, 2)).upto == start + timedelta(days=5)
    assert catch_up(bench, Shard(0, 1)).upto == start + timedelta(days=4)
