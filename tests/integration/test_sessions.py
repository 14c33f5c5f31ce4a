"""Sessions and late spans on real tables: judged whole, judged again when more comes, the newest in force."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from evaluator.chunk import Range
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.feedback import Feedback, Reason, Scored, SourceType, Unscored
from evaluator.live.work import Parts
from evaluator.offline import Evaluation, pending_work
from evaluator.ports import Spans
from evaluator.publish import publish
from evaluator.score import Active
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.tables.rows import Key, Row
from evaluator.tick import look, tick
from evaluator.traces.columns import SESSIONS
from tests.bench import Bench, Greets
from tests.traffic import NOON, answer, span, stamp, trace_id

IDLE = timedelta(minutes=5)


@dataclass
class Counts:
    """A scorer of code that tells the turns of a session, or what it was told to say instead."""

    name: str = "counts"
    version: str = "v1"
    fails: Reason | None = None
    seen: list[Record] = field(default_factory=list)
    source_type: SourceType = "CODE"
    waits: bool = False

    @property
    def definition(self) -> Mapping[str, Any]:
        return {"kind": "test"}

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        self.seen += records
        if self.fails:
            return [Scored(outcome=Unscored(reason=self.fails, detail="as the test asked")) for _ in records]
        return [
            Scored(
                outcome=Feedback(
                    value=len(record.session.turns) if record.session else -1,
                    passed=None,
                    rationale="counted",
                )
            )
            for record in records
        ]


class Talks(Bench):
    """A bench whose scorers judge sessions, but for those that greet."""

    def parts(self, *scorers: Any, where: str | None = None, **settings: Any) -> Parts:
        condition = None if where is None else parse_condition(where, SESSIONS)
        active = [
            Active(
                scorer=scorer,
                rule=SelectionRule(name=scorer.name, filter=condition, target="session")
                if isinstance(scorer, Counts)
                else SelectionRule(name=scorer.name),
            )
            for scorer in scorers
        ]
        return super().parts(active=active, session_idle=IDLE, **settings)

    def append(self, *rows: dict[str, Any]) -> int:
        """One commit, made now by the bench's clock."""
        version = super().append(*rows)
        stamp(Path(self.spans_store.uri) / "_delta_log" / f"{version:020d}.json", self.now)
        return version

    def turn(self, name: str, session: str = "s", **values: Any) -> None:
        self.append(answer(name, f"Hello {name}", f"Hi {name}?", **values, **{"session.id": session}))

    def session(self, revision: int = 0, session: str = "s") -> Row | None:
        return self.states().get(Key("SESSION", session, revision=revision))

    def results(self, session: str = "s") -> dict[tuple[str | None, int], Row]:
        return {
            (row.version, row.revision): row
            for row in self.states().values()
            if row.target_type == "SESSION" and row.scorer and row.target_id == session
        }

    async def published(self) -> list[dict[str, Any]]:
        book = self.ledger.open()
        assert await publish(self.ledger, [AnnotationsSink(self.annotations, book.table_id)]) == []
        return self.views.query("select * from assessments order by trace_id, name").to_pylist()


@dataclass
class Frozen:
    """The spans table as it was once."""

    snapshot: Spans

    def open(self) -> Spans:
        return self.snapshot


@pytest.fixture
def talks(tmp_path: Path) -> Talks:
    talks = Talks(tmp_path)
    talks.now = NOON + timedelta(hours=1)
    return talks


async def test_a_session_is_judged_once_it_is_idle_with_its_turns_in_the_order_of_time(talks: Talks) -> None:
    scorer = Counts()
    talks.turn("late", at=NOON + timedelta(minutes=2))
    talks.turn("early", at=NOON)
    talks.turn("other", session="t")
    early = await talks.tick(scorer, Greets())
    talks.later(minutes=6)
    assert look(talks.parts(scorer)).work

    judged = await talks.tick(scorer, Greets())

    assert (early.traces, early.sessions, early.results) == (3, 0, 3)
    assert (judged.traces, judged.sessions, judged.results) == (0, 2, 2)
    [record] = [record for record in scorer.seen if record.target.target_id == "s"]
    assert record.session is not None
    assert [turn.trace_id for turn in record.session.turns] == [trace_id("early"), trace_id("late")]
    assert (record.inputs, record.outputs) == ("Hi early?\n\nHi late?", "Hello early\n\nHello late")
    assert (record.trace.request, record.trace.response) == ("Hi early?", "Hello late")
    done = talks.session()
    assert done is not None
    assert (done.state, done.trace_id) == ("done", trace_id("early"))
    assert talks.results()["v1", 0].trace_id == trace_id("early")
    assert not look(talks.parts(scorer)).work


async def test_a_session_that_goes_on_is_judged_again_and_its_newest_result_stands(talks: Talks) -> None:
    scorer = Counts()
    talks.turn("a")
    await talks.tick(scorer)
    talks.later(minutes=6)
    await talks.tick(scorer)
    await talks.published()
    talks.turn("b", at=NOON + timedelta(days=40))
    await talks.tick(scorer)
    waits = talks.session(1)
    talks.later(minutes=6)
    await talks.tick(scorer)

    assert waits is not None
    assert (waits.state, waits.reason) == ("waiting", "session_idle")
    assert {key: row.value for key, row in talks.results().items()} == {("v1", 0): "1", ("v1", 1): "2"}
    [told] = await talks.published()
    assert (told["value"], told["revision"], told["is_current"]) == ("2", 1, True)
    assert (told["trace_id"], told["session_id"]) == (trace_id("a"), "s")


async def test_a_turn_that_comes_while_a_session_is_judged_has_it_judged_again(talks: Talks) -> None:
    other = Counts()

    class Slow(Counts):
        async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
            if not self.seen:
                talks.turn("b")
                await talks.tick(other)
            return await super().score(records)

    slow = Slow()
    talks.turn("a")
    await talks.tick(slow)
    talks.later(minutes=6)

    overtaken = await talks.tick(slow)
    states = {
        key.revision: row.state for key, row in talks.states().items() if key[:3] == ("SESSION", "s", None)
    }
    talks.later(minutes=6)
    await talks.tick(slow)

    assert overtaken.results == 0
    assert states == {0: "waiting"}
    assert {key: row.value for key, row in talks.results().items()} == {("v1", 0): "2"}


async def test_a_turn_that_is_decided_while_its_session_is_opens_the_next_revision(talks: Talks) -> None:
    scorer = Counts()
    talks.turn("a")
    await talks.tick(scorer)
    talks.later(minutes=6)

    class Overtaken(Greets):
        """While it looks at the next turn, another worker judges the session without it."""

        async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
            theirs = replace(talks.parts(scorer), spans=old)
            assert (await tick(theirs, "other")).sessions == 1
            return await super().score(records)

    old = Frozen(talks.spans.open())
    talks.turn("b")
    await talks.tick(scorer, Overtaken())
    states = {
        key.revision: row.state for key, row in talks.states().items() if key[:3] == ("SESSION", "s", None)
    }
    talks.later(minutes=6)
    await talks.tick(scorer)

    assert states == {0: "done", 1: "waiting"}
    assert {key: row.value for key, row in talks.results().items()} == {("v1", 0): "1", ("v1", 1): "2"}


async def test_what_could_not_be_judged_is_tried_again_with_the_same_turns(talks: Talks) -> None:
    talks.turn("a")
    talks.turn("b")
    await talks.tick(Counts(fails=Reason.UNAVAILABLE))
    talks.later(minutes=6)
    await talks.tick(Counts(fails=Reason.UNAVAILABLE))
    first = talks.results()["v1", 0]
    scorer = Counts()

    await talks.tick(scorer)

    result = talks.results()["v1", 0]
    assert (first.state, first.attempts) == ("unscored", 1)
    assert (result.state, result.value, result.attempts) == ("scored", "2", 2)


async def test_an_open_result_of_a_session_that_goes_on_is_replaced(talks: Talks) -> None:
    talks.turn("a")
    broken = Counts(fails=Reason.UNAVAILABLE)
    await talks.tick(broken)
    talks.later(minutes=6)
    await talks.tick(broken)
    talks.turn("b")
    await talks.tick(broken)
    talks.later(minutes=6)
    scorer = Counts()

    await talks.tick(scorer)

    results = talks.results()
    assert (results["v1", 0].state, results["v1", 1].value) == ("replaced", "2")
    assert len(scorer.seen) == 1
    assert talks.ledger.open().open_rows() == []


async def test_an_edited_judge_takes_over_a_sessions_open_result(talks: Talks) -> None:
    talks.turn("a")
    await talks.tick(Counts(fails=Reason.UNAVAILABLE))
    talks.later(minutes=6)
    await talks.tick(Counts(fails=Reason.UNAVAILABLE))

    await talks.tick(Counts(version="v2"))

    assert {key: row.state for key, row in talks.results().items()} == {
        ("v1", 0): "replaced",
        ("v2", 0): "scored",
    }


async def test_a_session_is_filtered_by_its_turns_and_sampled_by_its_id(talks: Talks) -> None:
    talks.turn("a")
    talks.turn("b")
    talks.turn("c", session="t")
    scorer = Counts()
    await talks.tick(scorer, where="turns >= 2")
    talks.later(minutes=6)
    judged = await talks.tick(scorer, where="turns >= 2")

    assert [record.target.target_id for record in scorer.seen] == ["s"]
    assert (judged.sessions, judged.skipped) == (2, {"filtered": 1})
    skipped = talks.session(session="t")
    assert skipped is not None
    assert skipped.skipped == '{"counts":"filtered"}'


async def test_without_a_judge_of_sessions_none_is_waited_for(talks: Talks) -> None:
    talks.turn("a")
    await talks.tick(Greets())
    talks.later(minutes=6)

    await talks.tick(Greets(), Counts())

    assert talks.session() is None


async def test_sessions_that_wait_when_their_last_judge_is_removed_end(talks: Talks) -> None:
    talks.turn("a")
    await talks.tick(Greets(), Counts())
    talks.later(minutes=6)

    await talks.tick(Greets())

    ended = talks.session()
    assert ended is not None
    assert (ended.state, ended.set) == ("done", "{}")
    assert talks.ledger.open().open_rows() == []


async def test_a_session_whose_traces_are_gone_ends(talks: Talks) -> None:
    talks.turn("a")
    await talks.tick(Counts())
    DeltaTable(talks.spans_store.uri).delete()
    talks.later(minutes=6)

    await talks.tick(Counts())

    ended = talks.session()
    assert ended is not None
    assert (ended.state, talks.results()) == ("done", {})


# --- late spans


async def test_late_spans_make_the_next_revision_of_a_trace_where_that_is_wanted(talks: Talks) -> None:
    talks.append(answer("a", "Good day"))
    await talks.tick(Greets(), rescore_late=True)
    await talks.published()
    talks.append(span("a", "tool", parent="root"))
    talks.append(answer("b"))
    scorer = Greets()

    late = await talks.tick(scorer, rescore_late=True)

    keys = {
        key.revision: row.state
        for key, row in talks.states().items()
        if key.target_id == trace_id("a") and key.scorer
    }
    assert keys == {0: "scored", 1: "scored"}
    assert sorted(scorer.seen) == [trace_id("a"), trace_id("b")]
    assert (late.late, late.traces) == (0, 2)
    told = [row for row in await talks.published() if row["trace_id"] == trace_id("a")]
    assert [(row["revision"], row["is_current"]) for row in told] == [(1, True)]


async def test_the_same_spans_again_are_no_late_spans(talks: Talks) -> None:
    talks.append(answer("a"), span("a", "tool", parent="root"))
    await talks.tick(Greets(), rescore_late=True)
    talks.append(span("a", "tool", parent="root"))
    scorer = Greets()

    again = await talks.tick(scorer, rescore_late=True)

    assert (scorer.seen, again.late) == ([], 1)


async def test_spans_that_come_after_the_late_window_change_nothing(talks: Talks) -> None:
    talks.append(answer("a"))
    await talks.tick(Greets(), rescore_late=True)
    talks.later(days=8)
    talks.append(span("a", "tool", parent="root"))
    scorer = Greets()

    late = await talks.tick(scorer, rescore_late=True)

    assert (scorer.seen, late.late) == ([], 1)


async def test_a_trace_that_still_grows_waits_again_until_it_is_quiet(talks: Talks) -> None:
    talks.append(answer("a"))
    await talks.tick(Greets(), rescore_late=True)
    talks.append(span("a", "tool", parent="root"))
    settle = timedelta(seconds=60)
    waiting = await talks.tick(Greets(), rescore_late=True, settle=settle)
    wait = talks.states()[Key("TRACE", trace_id("a"), revision=1)]
    talks.later(seconds=61)
    scorer = Greets()

    judged = await talks.tick(scorer, rescore_late=True, settle=settle)

    assert (waiting.waiting, wait.state, wait.reason) == (1, "waiting", "settling")
    assert (judged.traces, scorer.seen) == (1, [trace_id("a")])
    assert talks.ledger.open().open_rows() == []


async def test_what_was_open_of_a_trace_is_replaced_by_its_next_revision(talks: Talks) -> None:
    talks.append(answer("a"))
    await talks.tick(Greets(fails=Reason.UNAVAILABLE), rescore_late=True)
    talks.append(span("a", "tool", parent="root"))
    scorer = Greets()

    await talks.tick(scorer, rescore_late=True)

    states = {key.revision: row.state for key, row in talks.states().items() if key.scorer}
    assert states[1] == "scored"
    assert talks.ledger.open().open_rows() == []


async def test_a_turn_that_is_judged_anew_has_its_session_judged_anew(talks: Talks) -> None:
    scorer = Counts()
    talks.turn("a")
    await talks.tick(scorer, rescore_late=True)
    talks.later(minutes=6)
    await talks.tick(scorer, rescore_late=True)
    talks.append(span("a", "tool", parent="root"))
    await talks.tick(scorer, rescore_late=True)
    talks.later(minutes=6)

    await talks.tick(scorer, rescore_late=True)

    assert [record.trace.span_count for record in scorer.seen] == [1, 2]
    assert sorted(talks.results()) == [("v1", 0), ("v1", 1)]


# --- eval


async def evaluated(talks: Talks, *scorers: Any, hours: float = 0, **settings: Any) -> Evaluation:
    """An evaluation of the two hours around noon, or of two later ones."""
    start = NOON + timedelta(hours=hours - 1)
    within = Range(start=start, end=start + timedelta(hours=2))
    active = talks.parts(*scorers).active
    return await talks.evaluate(*active, within=within, session_idle=IDLE, **settings)


async def test_eval_scores_the_sessions_that_began_in_its_range_whole(talks: Talks) -> None:
    talks.turn("a", at=NOON)
    talks.turn("b", at=NOON + timedelta(hours=3))
    talks.later(minutes=6)
    scorer = Counts()

    evaluation = await evaluated(talks, scorer, Greets())
    later = await evaluated(talks, scorer, hours=3)

    assert (evaluation.summary.traces, evaluation.summary.sessions, evaluation.summary.results) == (1, 1, 2)
    assert [len(record.session.turns) for record in scorer.seen if record.session] == [2]
    assert {key: row.value for key, row in talks.results().items()} == {("v1", 0): "2"}
    assert later.summary.sessions == 0


async def test_eval_reports_a_session_that_may_go_on_and_writes_nothing_of_it(talks: Talks) -> None:
    talks.turn("a", at=NOON)

    evaluation = await evaluated(talks, Counts())

    assert (evaluation.summary.sessions, evaluation.summary.waiting) == (0, 1)
    assert talks.results() == {}


async def test_eval_and_live_pay_for_a_session_once(talks: Talks) -> None:
    talks.turn("a", at=NOON)
    await talks.tick(Counts())
    talks.later(minutes=6)
    scorer = Counts()
    await evaluated(talks, scorer)
    live = await talks.tick(scorer)

    again = await evaluated(talks, scorer)

    assert len(scorer.seen) == 1
    assert (live.sessions, live.reused, again.summary.reused) == (1, 1, 1)
    assert [assessment.target.type for assessment in again.assessments] == ["SESSION"]


async def test_eval_judges_a_session_that_went_on_as_its_next_revision(talks: Talks) -> None:
    talks.turn("a", at=NOON)
    await talks.tick(Counts())
    talks.later(minutes=6)
    await evaluated(talks, Counts())
    talks.turn("b", at=NOON + timedelta(minutes=1))
    await talks.tick(Counts())
    talks.later(minutes=6)
    scorer = Counts()

    await evaluated(talks, scorer)
    await talks.tick(scorer)

    assert len(scorer.seen) == 1
    assert {key: row.value for key, row in talks.results().items()} == {("v1", 0): "1", ("v1", 1): "2"}


async def test_a_dry_run_tells_of_sessions(talks: Talks) -> None:
    talks.turn("a", at=NOON)
    talks.later(minutes=6)
    parts = talks.wanted(*talks.parts(Counts()).active, session_idle=IDLE)
    within = Range(start=NOON - timedelta(hours=1), end=NOON + timedelta(hours=1))

    found = [
        (assignment.record.target.type, evaluation.summary.sessions)
        async for evaluation, assignments in pending_work(parts, within, "dry-run")
        for assignment in assignments
    ]

    assert found == [("SESSION", 1)]
