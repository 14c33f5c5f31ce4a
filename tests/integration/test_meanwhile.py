"""What becomes of a plan when something else was said of its targets meanwhile, by others or by the same tick."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluator.chunk import PIECE_TRACES
from evaluator.commands.interventions import retry_unscored
from evaluator.dataset.conditions import Condition
from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import TableError
from evaluator.feedback import Feedback, Reason, Scored, Target
from evaluator.score import Active
from evaluator.summary import Summary
from evaluator.tables.rows import Key, Row, from_arrow, tombstone
from evaluator.tables.spans import SpansSnapshot
from evaluator.tick import look, tick
from evaluator.traces.assembly import Arrival
from tests.bench import Bench, Greets
from tests.integration.test_sessions import IDLE, Counts, Talks
from tests.traffic import NOON, answer, span, spans_store, trace_id

DAY = timedelta(days=1)


@dataclass
class Steps(Greets):
    """How many spans a trace has; `meanwhile` happens once, while it is asked."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        happens, self.meanwhile = self.meanwhile, None
        if happens:
            await happens()
        told = await super().score(records)
        if self.fails:
            return told
        return [
            Scored(outcome=Feedback(value=len(record.trace.steps), passed=None, rationale="counted"))
            for record in records
        ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.now = datetime.now(UTC) + timedelta(seconds=5)
    return bench


def active(scorer: Greets, since: timedelta | None = None) -> Active:
    return Active(scorer=scorer, rule=SelectionRule(name=scorer.name), since=since)


async def ticked(bench: Bench, *scorers: Active, rescore_late: bool = False) -> Summary:
    return await tick(replace(bench.parts(rescore_late=rescore_late), active=scorers), run_id="run")


def rows(bench: Bench, where: str) -> list[Row]:
    """Every row that was ever committed, as far as it is asked for."""
    return from_arrow(bench.ledger.store.open().query(f"select * from t where {where} order by seq"))


async def decided(bench: Bench, count: int) -> tuple[str, Callable[[], Awaitable[None]]]:
    """So many traces, decided; the id of the last one, and what has that decided again with a late span."""
    at = bench.now - timedelta(hours=2)
    names = [f"t{number:03}" for number in range(count)]
    bench.append(*(answer(name, at=at + timedelta(seconds=number)) for number, name in enumerate(names)))
    await ticked(bench, active(Greets("old")), rescore_late=True)

    async def late() -> None:
        bench.append(span(names[-1], "late", parent="root", at=at + timedelta(seconds=count)))
        await ticked(bench, active(Greets("old")), rescore_late=True)

    return trace_id(names[-1]), late


async def test_an_evaluation_reads_the_turns_of_what_live_decided_while_it_was_at_work(
    tmp_path: Path,
) -> None:
    talks, live, sessions = Talks(tmp_path), Greets(), Counts()
    talks.now = NOON + timedelta(hours=1)
    talks.turn("t1")
    await talks.tick(live, sessions)
    talks.later(minutes=10)
    await talks.tick(live, sessions)

    async def goes_on() -> None:
        talks.later(minutes=5)
        talks.turn("t2", at=talks.now)
        await talks.tick(live, sessions)
        talks.later(minutes=10)
        await talks.tick(live, sessions)

    active = talks.parts(Steps("new", meanwhile=goes_on), sessions).active
    await talks.evaluate(*active, session_idle=IDLE)

    assert [len(record.session.turns) for record in sessions.seen if record.session] == [1, 2]


async def test_what_two_open_versions_pass_to_a_third_is_asked_and_written_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluator.live.work.CHUNK_TRACES", 2)
    tables = SimpleNamespace(ledger=bench.ledger)
    monkeypatch.setattr("evaluator.commands.interventions.build_tables", lambda _: tables)
    monkeypatch.setattr("evaluator.commands.interventions.utc_now", bench.clock)
    bench.append(*(answer(name, at=bench.now - timedelta(hours=3)) for name in "ab"))
    await ticked(bench, active(Greets(version="v1", fails=Reason.REFUSED)))
    await ticked(bench, active(Greets(version="v2", fails=Reason.REFUSED), since=DAY))
    retry_unscored(None, None, None)  # type: ignore[arg-type]  # only its tables are used
    third = Greets(version="v3")

    await ticked(bench, active(third))

    assert sorted(third.seen) == [trace_id("a"), trace_id("b")]
    assert [row.state for row in rows(bench, "version = 'v3'")] == ["scored", "scored"]

    await ticked(bench, active(third))

    assert len(third.seen) == 2
    assert not look(replace(bench.parts(), active=[active(third)])).work


async def test_what_two_open_versions_pass_to_a_third_is_not_lost_with_one_of_them(bench: Bench) -> None:
    bench.append(answer("a", at=bench.now - timedelta(hours=3)))
    await ticked(bench, active(Greets(version="v1", fails=Reason.UNAVAILABLE)))
    book = bench.ledger.open()
    [first] = book.rows("scorer = 'greets'").values()
    book.commit([[replace(first, version="v2", seq=0)]])

    async def the_first_one_is_scored() -> None:
        scored = replace(first, state="scored", value="1", due=None, reason=None, error=None, seq=0)
        bench.ledger.open().commit([[scored]])

    for meanwhile in (the_first_one_is_scored, None):
        await ticked(bench, active(Steps(version="v3", meanwhile=meanwhile)))

    told = {row.version: row.state for row in bench.states().values() if row.scorer}
    assert told == {"v1": "scored", "v2": "replaced", "v3": "scored"}


async def test_a_wait_that_ended_on_an_earlier_day_does_not_hold_up_a_catch_up(bench: Bench) -> None:
    child = bench.now - timedelta(hours=30)
    bench.append(span("long", "child", parent="root", at=child))
    await ticked(bench, active(Greets("old")))
    bench.append(answer("long", at=child - 3 * DAY), answer("a", at=bench.now - timedelta(hours=2)))
    await ticked(bench, active(Greets("old")))
    new = active(Greets("new"), since=2 * DAY)

    await ticked(bench, active(Greets("old")), new)

    assert trace_id("a") in new.scorer.seen  # type: ignore[attr-defined]
    assert not look(replace(bench.parts(), active=[active(Greets("old")), new])).work


async def test_a_wait_that_ended_on_an_earlier_day_makes_no_second_revision(tmp_path: Path) -> None:
    bench, midnight, counts = Talks(tmp_path), NOON.replace(hour=0), Steps()

    async def turn() -> None:
        await bench.tick(counts, rescore_late=True, settle=timedelta(minutes=1))

    bench.now = midnight + timedelta(hours=1)
    bench.append(answer("a", at=midnight + timedelta(minutes=30)))
    bench.later(minutes=2)
    await turn()
    bench.append(span("a", "noon", parent="root", at=midnight + timedelta(hours=2)))
    await turn()
    bench.append(span("a", "before", parent="root", at=midnight - timedelta(hours=1)))
    await turn()
    bench.later(minutes=2)
    await turn()
    bench.now = midnight + timedelta(days=1, hours=10)
    bench.append(span("a", "after", parent="root", at=bench.now))
    for _ in range(3):
        await turn()
        bench.later(hours=2)

    told = [(row.revision, row.value) for row in rows(bench, "scorer is not null")]
    assert told == [(0, "1"), (1, "3")]


async def test_an_evaluation_scores_the_revision_that_a_trace_was_decided_as(bench: Bench) -> None:
    at = bench.now - timedelta(minutes=30)
    new = Greets("new")
    bench.append(answer("a", at=at))
    await ticked(bench, active(Greets("old")), rescore_late=True)
    bench.append(span("a", "late", parent="root", at=at))
    await ticked(bench, active(Greets("old")), rescore_late=True)

    await bench.evaluate(active(new))
    await ticked(bench, active(Greets("old")), active(new, since=DAY), rescore_late=True)

    assert [(row.revision, row.scope) for row in rows(bench, "scorer = 'new'")] == [(1, "eval")]
    assert new.seen == [trace_id("a")]


async def test_what_an_evaluation_has_scored_meanwhile_is_not_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluator.live.work.CHUNK_TRACES", 1)
    at = bench.now - timedelta(minutes=30)
    bench.append(*(answer(f"t{number}", at=at) for number in range(12)))
    await ticked(bench, active(Steps(fails=Reason.UNAVAILABLE)))
    bench.later(hours=1)

    async def beside() -> None:
        await bench.evaluate(active(Steps()))

    live = Steps(meanwhile=beside)
    await ticked(bench, active(live))

    assert len(live.seen) <= 3  # the chunks that were underway
    assert len(rows(bench, "state = 'scored'")) == 12


async def test_what_an_evaluation_scores_stands_below_a_newer_revision(bench: Bench) -> None:
    at = bench.now - timedelta(minutes=30)
    bench.append(answer("a", at=at))
    await ticked(bench, active(Greets("old")), rescore_late=True)

    async def late() -> None:
        bench.append(span("a", "late", parent="root", at=at))
        await ticked(bench, active(Steps()), rescore_late=True)

    await bench.evaluate(active(Steps(meanwhile=late)))

    assert [(row.revision, row.value) for row in rows(bench, "scorer = 'greets'")] == [(1, "2")]


async def test_an_evaluation_sees_the_late_spans_of_what_was_decided_anew_meanwhile(bench: Bench) -> None:
    last, late = await decided(bench, PIECE_TRACES + 1)

    evaluation = await bench.evaluate(active(Steps("new", meanwhile=late)))

    told = [(row.revision, row.value) for row in rows(bench, f"scorer = 'new' and trace_id = '{last}'")]
    assert told == [(1, "2")]
    assert (evaluation.summary.traces, evaluation.summary.waiting) == (PIECE_TRACES + 1, 0)


async def test_late_spans_are_seen_though_the_evaluation_itself_wrote_nothing_since(bench: Bench) -> None:
    last, late = await decided(bench, PIECE_TRACES + 1)

    fails = Steps("fails", fails=Reason.UNAVAILABLE, meanwhile=late)
    only_last = SelectionRule(
        name="new", filter=Condition(text=f"trace_id = '{last}'", columns=("trace_id",))
    )
    await bench.evaluate(active(fails), Active(scorer=Steps("new"), rule=only_last))

    assert [(row.revision, row.value) for row in rows(bench, "scorer = 'new'")] == [(1, "2")]


async def test_only_what_was_decided_meanwhile_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, late = await decided(bench, 3 * PIECE_TRACES)
    read: list[list[str]] = []
    around = SpansSnapshot.around

    def noted(spans: SpansSnapshot, ids: Sequence[str], when: tuple[datetime, datetime]) -> list[Arrival]:
        read.append(list(ids))
        return around(spans, ids, when)

    async def late_and_noted() -> None:
        await late()
        monkeypatch.setattr(SpansSnapshot, "around", noted)

    evaluation = await bench.evaluate(active(Steps("new", meanwhile=late_and_noted)))

    assert read == [[last]]
    assert evaluation.summary.traces == evaluation.summary.results == 3 * PIECE_TRACES


async def test_what_was_forgotten_meanwhile_is_not_judged(bench: Bench) -> None:
    last, _ = await decided(bench, PIECE_TRACES + 1)

    async def forgotten() -> None:
        target = Target(type="TRACE", target_id=last, trace_id=last)
        bench.ledger.open().commit([[tombstone(target, revision=1)]])

    new = Steps("new", meanwhile=forgotten)
    evaluation = await bench.evaluate(active(new))

    assert last not in new.seen
    assert evaluation.summary.traces == PIECE_TRACES


async def test_what_an_older_version_said_does_not_end_what_is_open(bench: Bench) -> None:
    bench.append(answer("a", at=bench.now - timedelta(hours=2)))
    await ticked(bench, active(Steps()))
    await bench.evaluate(active(Steps()), rescore=True)
    await ticked(bench, active(Steps(version="v2", fails=Reason.UNAVAILABLE), since=DAY))
    bench.later(hours=2)

    await ticked(bench, active(Steps(version="v2"), since=DAY))

    told = {(row.version, row.revision): row.state for row in bench.states().values() if row.scorer}
    assert told == {("v1", 0): "scored", ("v1", 1): "scored", ("v2", 0): "scored"}


async def test_a_late_span_is_judged_though_an_evaluation_takes_the_revision(bench: Bench) -> None:
    at = bench.now - timedelta(minutes=30)
    bench.append(answer("a", at=at))
    await ticked(bench, active(Steps()), rescore_late=True)
    bench.append(span("a", "late", parent="root", at=at))

    async def rescored() -> None:
        book = bench.ledger.open()
        key = Key("TRACE", trace_id("a"), "greets", "v1", 0)
        book.commit([[replace(book.rows("scorer = 'greets'")[key], revision=1, scope="eval", seq=0)]])

    await ticked(bench, active(Steps(meanwhile=rescored)), rescore_late=True)
    await ticked(bench, active(Steps()), rescore_late=True)

    told = [(row.revision, row.scope, row.value) for row in rows(bench, "scorer = 'greets'")]
    assert told == [(0, "live", "1"), (1, "eval", "1"), (2, "live", "2")]


async def test_a_new_revision_is_paid_for_once_though_an_evaluation_scores_what_it_ends(bench: Bench) -> None:
    at = bench.now - timedelta(minutes=30)
    bench.append(answer("a", at=at))
    flaky = Steps("flaky", fails=Reason.UNAVAILABLE)
    await ticked(bench, active(Steps("good")), active(flaky), rescore_late=True)

    async def before_the_late_span() -> None:
        await bench.evaluate(active(Steps("flaky", meanwhile=late)))

    good = Steps("good")

    async def late() -> None:
        bench.append(span("a", "late", parent="root", at=at))
        asked.set()
        await answered.wait()

    async def ends() -> None:
        answered.set()
        await evaluation

    asked, answered = asyncio.Event(), asyncio.Event()
    evaluation = asyncio.create_task(before_the_late_span())
    await asked.wait()
    good.meanwhile = ends
    for _ in range(2):
        await ticked(bench, active(good), active(Steps("flaky")), rescore_late=True)

    assert good.seen == [trace_id("a")]
    assert [(row.revision, row.value) for row in rows(bench, "scorer = 'good'")] == [(0, "1"), (1, "2")]


@dataclass
class Turns(Counts):
    """How many turns a session has; `meanwhile` happens once, while it is asked."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        happens, self.meanwhile = self.meanwhile, None
        if happens:
            await happens()
        return await super().score(records)


@pytest.mark.parametrize("rescore_late", [False, True])
async def test_a_turn_is_judged_though_an_evaluation_scores_its_session_without_it_meanwhile(
    tmp_path: Path, rescore_late: bool
) -> None:
    talks, live = Talks(tmp_path), Greets()
    talks.now = NOON + timedelta(hours=1)
    talks.turn("t1", at=NOON + timedelta(minutes=50))
    await talks.tick(live)
    talks.later(minutes=6)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await answered.wait()

    async def ends() -> None:
        answered.set()
        await evaluation

    active = talks.parts(Turns(meanwhile=slow)).active
    evaluation = asyncio.create_task(talks.evaluate(*active, session_idle=IDLE))
    await asked.wait()
    talks.turn("t2", at=talks.now)
    judge = Turns()
    await talks.tick(live, judge, rescore_late=rescore_late)
    talks.later(minutes=10)
    judge.meanwhile = ends
    for _ in range(2):
        await talks.tick(live, judge, rescore_late=rescore_late)

    told = [
        (row.revision, row.scope, row.value)
        for row in rows(talks, "target_type = 'SESSION' and scorer <> ''")
    ]
    assert told == [(0, "eval", "1"), (1, "live", "2")]


async def test_an_evaluation_ends_where_another_spans_table_took_the_place_of_its_own(bench: Bench) -> None:
    bench.append(answer("a"))

    async def anew() -> None:
        await ticked(bench, active(Greets("old")))
        shutil.rmtree(bench.spans_store.uri)
        spans_store(Path(bench.spans_store.uri).parent)

    with pytest.raises(TableError, match="made anew"):
        await bench.evaluate(active(Steps("new", meanwhile=anew)))
