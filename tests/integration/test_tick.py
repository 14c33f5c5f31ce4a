"""The tick on real tables: every trace decided once, whatever comes in which order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import ModelError
from evaluator.feedback import Reason, Scored, Usage
from evaluator.live.work import Parts
from evaluator.publish import publish
from evaluator.score import Active
from evaluator.scorers.paused import PausedScorer
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.tables.delta import DeltaStore
from evaluator.tables.rows import Key
from evaluator.tables.spans import SpansTable
from evaluator.tick import look, tick
from evaluator.traces.columns import TRACES
from tests.bench import Bench, Greets
from tests.traffic import NOON, answer, append, span, spans_store, trace_id


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.now = datetime.now(NOON.tzinfo) + timedelta(seconds=5)
    return bench


async def test_a_new_trace_is_scored_once_and_a_second_tick_writes_nothing(bench: Bench) -> None:
    bench.append(answer("a"), answer("b", "Good day"))
    scorer = Greets()

    first = await bench.tick(scorer)
    version = bench.ledger.open().version
    assert not look(bench.parts(scorer)).work
    second = await bench.tick(scorer)

    assert (first.traces, first.results) == (2, 2)
    assert (first.scorers["greets"].passed, first.scorers["greets"].failed) == (1, 1)
    assert (second.traces, second.results) == (0, 0)
    assert bench.ledger.open().version == version
    assert sorted(scorer.seen) == [trace_id("a"), trace_id("b")]


async def test_a_trace_waits_until_it_is_quiet_and_is_judged_whole(bench: Bench) -> None:
    settle = timedelta(seconds=60)
    bench.append(answer("a", at=NOON))

    early = await bench.tick(Greets(), settle=settle)
    bench.append(span("a", "tool", parent="root", at=NOON))
    bench.later(seconds=61)
    scorer = Greets()
    late = await bench.tick(scorer, settle=settle)

    assert (early.traces, early.waiting) == (0, 1)
    assert (late.traces, late.waiting) == (1, 0)
    assert scorer.seen == [trace_id("a")]
    [traces] = bench.views.query("select span_count from traces").to_pylist()
    assert traces == {"span_count": 2}


async def test_a_trace_without_a_root_is_judged_after_max_wait_and_marked(bench: Bench) -> None:
    bench.append(span("a", "child", parent="nowhere"))

    waiting = await bench.tick(Greets())
    bench.later(hours=1, seconds=1)
    judged = await bench.tick(Greets())

    assert (waiting.waiting, waiting.results) == (1, 0)
    assert judged.results == 1
    assert bench.states()[Key("TRACE", trace_id("a"))].reason == "incomplete"


async def test_late_spans_change_nothing(bench: Bench) -> None:
    bench.append(answer("a"))
    await bench.tick(Greets())
    bench.append(span("a", "late", parent="root"))

    summary = await bench.tick(Greets())

    assert (summary.late, summary.results) == (1, 0)


async def test_what_is_filtered_or_sampled_out_stands_in_the_decision(bench: Bench) -> None:
    bench.append(answer("a"))
    condition = parse_condition("service_name = 'billing'", TRACES)
    active = [
        Active(scorer=Greets("filtered"), rule=SelectionRule(name="filtered", filter=condition)),
        Active(scorer=Greets("sampled"), rule=SelectionRule(name="sampled", sample_rate=0.0)),
    ]

    summary = await bench.tick(active=active)

    assert summary.results == 0
    assert summary.skipped == {"filtered": 1, "sampled out": 1}
    skipped = bench.states()[Key("TRACE", trace_id("a"))].skipped
    assert skipped == '{"filtered":"filtered","sampled":"sampled out"}'


async def test_a_transient_error_is_tried_again_on_its_schedule_and_then_given_up(bench: Bench) -> None:
    bench.append(answer("a"))
    broken = Greets(fails=Reason.UNAVAILABLE)
    waits = [
        timedelta(0),
        timedelta(0),
        timedelta(minutes=15),
        timedelta(hours=1),
        timedelta(hours=6),
        timedelta(hours=24),
    ]
    for attempt, wait in enumerate(waits, start=1):
        if wait:
            bench.now += wait - timedelta(seconds=1)
            await bench.tick(broken)
            assert len(broken.seen) == attempt - 1
            bench.later(seconds=2)
        await bench.tick(broken)
        assert len(broken.seen) == attempt

    row = bench.states()[Key("TRACE", trace_id("a"), "greets", "v1", 0)]
    assert (row.state, row.attempts, row.due) == ("unscored", 6, None)
    assert not look(bench.parts(broken)).work


async def test_a_lasting_error_is_final_at_once_and_is_no_fail(bench: Bench) -> None:
    bench.append(answer("a"))

    summary = await bench.tick(Greets(fails=Reason.REFUSED))

    count = summary.scorers["greets"]
    assert (summary.results, count.failed, count.unscored["refused"]) == (1, 0, 1)
    assert not look(bench.parts(Greets(fails=Reason.REFUSED))).work


async def test_a_misconfigured_judge_stops_the_tick_before_any_trace_is_touched(bench: Bench) -> None:
    bench.append(answer("a"))

    summary = await bench.tick(Greets(), Greets("judge", raises=True))

    with pytest.raises(ModelError, match="key is wrong"):
        summary.check_answers()
    assert bench.states() == {}
    assert (await bench.tick(Greets())).results == 1


@dataclass
class Paid(Greets):
    """A judge whose calls cost something; its key expires after so many records."""

    expires_after: int = 10_000
    waits: bool = True

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        if len(self.seen) >= self.expires_after:
            raise ModelError("the key has expired")
        return [replace(scored, usage=Usage(model="m", calls=1)) for scored in await super().score(records)]


async def test_a_key_that_expires_in_mid_run_leaves_what_is_paid_for_committed_and_the_rest_untouched(
    bench: Bench,
) -> None:
    bench.append(*(answer(f"t{number}") for number in range(10)))

    summary = await bench.tick(Paid("judge", expires_after=4))
    states = bench.states()
    second = await bench.tick(Paid("judge"))

    with pytest.raises(ModelError, match="key has expired"):
        summary.check_answers()
    assert [row.state for key, row in states.items() if key.scorer] == ["scored"] * 4
    assert sum(row.state == "done" for row in states.values()) == 4
    assert (summary.results, second.results) == (4, 6)


async def test_a_judge_that_cannot_work_does_not_hold_up_another_and_waits(bench: Bench) -> None:
    bench.append(*(answer(f"t{number}") for number in range(3)))
    good = Paid("good")

    summary = await bench.tick(good, Paid("bad", expires_after=0))
    deferred = [row for key, row in bench.states().items() if key.scorer == "bad"]
    second = await bench.tick(good, Paid("bad"))

    with pytest.raises(ModelError, match="key has expired"):
        summary.check_answers()
    assert summary.scorers["good"].scored == 3
    assert {(row.state, row.reason, row.attempts) for row in deferred} == {("deferred", "misconfigured", 0)}
    assert second.results == 3
    assert len(good.seen) == 3


async def test_a_provider_that_is_down_leaves_its_work_deferred_and_costs_no_attempt(bench: Bench) -> None:
    bench.append(answer("a"))
    for _ in range(3):
        await bench.tick(Greets(fails=Reason.ENDPOINT_DOWN))

    [row] = [row for key, row in bench.states().items() if key.scorer]
    assert (row.state, row.reason, row.attempts) == ("deferred", "endpoint_down", 0)
    assert (await bench.tick(Greets())).results == 1


async def test_chunks_that_are_judged_at_once_are_each_committed_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluator.live.work.CHUNK_TRACES_JUDGED", 3)
    bench.append(*(answer(f"t{number}") for number in range(20)))
    judge = Paid("judge")

    summary = await bench.tick(judge)
    again = await bench.tick(judge)

    assert (summary.traces, summary.results, again.results) == (20, 20, 0)
    assert len(judge.seen) == len(set(judge.seen)) == 20
    assert not look(bench.parts(judge)).work


async def test_an_edited_judge_takes_over_what_was_open_for_its_older_version(bench: Bench) -> None:
    bench.append(answer("a"))
    await bench.tick(Greets(fails=Reason.UNAVAILABLE))

    summary = await bench.tick(Greets(version="v2"))

    states = {key.version: row.state for key, row in bench.states().items() if key.scorer}
    assert states == {"v1": "replaced", "v2": "scored"}
    assert summary.results == 1


async def test_a_paused_judge_defers_and_catches_up(bench: Bench) -> None:
    bench.append(answer("a"))
    parts = bench.parts(Greets(fails=Reason.PAUSED))
    paused = replace(parts, active=[replace(active, paused=True) for active in parts.active])

    deferred = await tick(paused, "run")
    version = bench.ledger.open().version
    await tick(paused, "run")
    caught_up = await bench.tick(Greets())

    assert (deferred.deferred, caught_up.results) == (1, 1)
    assert version == bench.ledger.open().version - 1


async def test_scoring_starts_now_in_a_table_that_was_there_before(bench: Bench, tmp_path: Path) -> None:
    foreign = DeltaStore(str(tmp_path / "foreign"))
    foreign.create(spans_store(tmp_path / "x").open().schema)
    append(foreign, [answer("old")])
    spans = SpansTable(foreign, bench.clock)
    bench.later(seconds=10)

    first = await tick(replace(bench.parts(Greets()), spans=spans), "run")
    append(foreign, [answer("new", at=bench.now)])
    second = await tick(replace(bench.parts(Greets()), spans=spans), "run")

    assert (first.results, second.results) == (0, 1)
    assert any("from now on" in told for told in first.notes)


async def test_what_arrives_after_scoring_began_is_scored_however_old_it_is(
    bench: Bench, tmp_path: Path
) -> None:
    """Batches come hours later; what was there before is no part of it, not even where the log cannot be followed."""
    foreign = DeltaStore(str(tmp_path / "foreign"))
    foreign.create(spans_store(tmp_path / "x").open().schema)
    append(foreign, [answer("before", at=bench.now - timedelta(days=3))])
    parts = replace(bench.parts(Greets()), spans=SpansTable(foreign, bench.clock))
    bench.later(seconds=10)
    await tick(parts, "run")

    append(foreign, [answer("late batch", at=bench.now - timedelta(days=2))])
    await tick(parts, "run")
    bench.later(hours=1)
    append(foreign, [answer("new", at=bench.now)])
    foreign.open().compact()
    foreign.open().vacuum(keep=timedelta(0), unknown=False, dry_run=False)
    caught_up = await tick(parts, "run")

    scored = {key.target_id for key, row in bench.states().items() if row.state == "scored"}
    assert scored == {trace_id("late batch"), trace_id("new")}
    assert any("caught up" in told for told in caught_up.notes)


async def test_a_start_some_days_back_stays_where_it_was_first_said(bench: Bench) -> None:
    """Though the first tick could decide nothing, and the next one comes days later."""
    bench.append(answer("a", at=bench.now - timedelta(days=6)), answer("b", at=bench.now - timedelta(days=8)))
    week = timedelta(days=7)
    await bench.tick(Greets(raises=True, waits=True), start=week)
    bench.later(days=2)

    await bench.tick(Greets(), start=week)

    assert {key.target_id for key, row in bench.states().items() if row.state == "scored"} == {trace_id("a")}


async def test_publishing_twice_gives_every_annotation_once_and_mlflows_rules_read_them(bench: Bench) -> None:
    bench.append(answer("a"), answer("b", "Bye"))
    await bench.tick(Greets())
    sink = AnnotationsSink(bench.annotations, bench.ledger.open().table_id)

    assert await publish(bench.ledger, [sink]) == []
    assert await publish(bench.ledger, [sink]) == []

    rows = bench.annotations.open().query("select * from t")
    assert rows.num_rows == 2
    assert sorted(rows["value"].to_pylist()) == ['"no"', '"yes"']
    seen = bench.views.query(
        "select name, value, passed, is_current from assessments order by value"
    ).to_pylist()
    assert seen == [
        {"name": "greets", "value": "no", "passed": False, "is_current": True},
        {"name": "greets", "value": "yes", "passed": True, "is_current": True},
    ]


async def test_two_ticks_at_once_give_one_result_each(bench: Bench) -> None:
    import asyncio

    bench.append(*[answer(f"t{index}") for index in range(20)])
    one, other = Greets(), Greets()

    await asyncio.gather(bench.tick(one), bench.tick(other))

    rows = bench.ledger.open().table("state in ('done', 'scored') and target_type <> 'CONTROL'")
    keys = [(row["target_id"], row["scorer"]) for row in rows.to_pylist()]
    assert len(keys) == len(set(keys)) == 40


async def test_a_judge_that_is_edited_while_it_is_paused_leaves_nothing_to_do(bench: Bench) -> None:
    def paused(version: str) -> Parts:
        scorer = PausedScorer(Greets(version=version))
        return replace(
            bench.parts(), active=[Active(scorer=scorer, rule=SelectionRule(name="greets"), paused=True)]
        )

    bench.append(answer("a"))
    await tick(paused("v1"), "run")

    await tick(paused("v2"), "run")

    states = {key.version: row.state for key, row in bench.states().items() if key.scorer}
    assert states == {"v1": "replaced", "v2": "deferred"}
    assert not look(paused("v2")).work


async def test_a_misconfigured_judge_does_not_hold_up_what_is_due_for_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluator.live.work.CHUNK_TRACES", 2)
    bench.append(*(answer(f"t{number}") for number in range(8)))
    broken, other = Greets("a", fails=Reason.MISCONFIGURED), Greets("b", fails=Reason.UNAVAILABLE)
    await bench.tick(broken)
    bench.append(answer("u"))
    await bench.tick(broken, other)
    broken.raises, other.fails = True, None
    bench.append(answer("new"))
    bench.later(hours=1)

    await bench.tick(broken, other)

    assert bench.states()[Key("TRACE", trace_id("u"), "b", "v1", 0)].state == "scored"
