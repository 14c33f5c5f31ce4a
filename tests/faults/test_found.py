"""What the histories found, each told once by itself."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from deltalake import DeltaTable

from evaluator.chunk import Range
from evaluator.dataset.records import Record
from evaluator.decisions import gone_row
from evaluator.feedback import Reason, Scored
from evaluator.tables.ledger import note
from evaluator.tables.rows import Key, Moved, Row
from evaluator.tables.spans import FOUND_BY_TIME
from evaluator.tables.yielding import Tail, rebase, waits_stand
from evaluator.tick import look
from tests.bench import Bench, Greets
from tests.traffic import NOON, answer, span, trace_id


def a_row(state: str, scorer: str | None = None) -> Row:
    return Row(day=NOON.date(), scope="live", target_type="TRACE", target_id="t", scorer=scorer, state=state)  # type: ignore[arg-type]


def test_a_result_yields_to_its_version_having_been_replaced() -> None:
    mine = a_row("scored", "judge")

    assert rebase([[mine]], Tail({mine.key: ["replaced"]})) == []


def test_the_cursor_may_not_pass_a_wait_that_yields() -> None:
    wait = a_row("waiting")

    assert waits_stand([[wait]], Tail())
    assert not waits_stand([[wait]], Tail({wait.key: ["waiting", "done"]}))
    assert not waits_stand([[wait]], Tail({wait.key: ["waiting"]}))


def test_the_cursor_never_goes_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    book = bench.ledger.open()
    book.commit([], moved=Moved(table_id="spans", cursor=7, cursor_at=NOON))
    book.commit([], moved=Moved(table_id="spans", cursor=5, cursor_at=NOON))

    assert bench.ledger.open().cursor("spans") == 7


def test_where_scoring_begins_is_said_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one, other = bench.ledger.open(), bench.ledger.open()
    one.commit([], moved=Moved(table_id="spans", cursor=3, cursor_at=NOON, begins=True), floor=NOON)
    later = NOON + timedelta(minutes=1)
    other.commit([], moved=Moved(table_id="spans", cursor=5, cursor_at=later, begins=True), floor=later)

    assert (other.cursor("spans"), other.floor) == (3, NOON)


def test_what_others_commit_right_after_a_commit_without_rows_is_seen(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    mine, theirs = bench.ledger.open(), bench.ledger.open()
    read = DeltaTable.update_incremental

    def another_is_first(table: DeltaTable) -> None:
        with patch.object(DeltaTable, "update_incremental", read):
            theirs.commit([[note("n", state="done", value="theirs")]])
        read(table)

    with patch.object(DeltaTable, "update_incremental", another_is_first):
        mine.commit([], moved=Moved(table_id="spans", cursor=1, cursor_at=NOON))
    written = mine.commit([[note("n", state="done", value="mine")]])

    assert written == []
    seqs = bench.ledger.open().table(columns=["seq"]).column("seq").to_pylist()
    assert len(seqs) == len(set(seqs))


async def test_a_judge_that_is_edited_and_set_back_judges_what_was_open(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    for version in ("v1", "v2"):
        await bench.tick(Greets(version=version, fails=Reason.UNAVAILABLE))

    await bench.tick(Greets(version="v1"))

    states = {key.version: row.state for key, row in bench.states().items() if key.scorer}
    assert states == {"v1": "scored", "v2": "replaced"}


async def test_a_result_whose_trace_is_gone_can_be_put_up_again_and_ends_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    broken = Greets(fails=Reason.UNAVAILABLE)
    await bench.tick(broken)
    table = DeltaTable(bench.spans_store.uri)
    table.delete()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    await bench.tick(broken)
    key = Key("TRACE", trace_id("a"), "greets", "v1", 0)
    gone = bench.states()[key]
    book = bench.ledger.open()
    [whole] = [row for row in book.of_trace(trace_id("a")) if row.key == key]
    again = {**{name: getattr(whole, name) for name in Row.__slots__}, "due": bench.now, "attempts": 0}
    book.commit([[Row(**again)]])
    bench.later(seconds=1)

    await bench.tick(broken)

    assert gone.due is None
    assert gone_row(whole, run_id="run").due is None
    assert not look(bench.parts(broken)).work


async def test_a_wait_is_told_anew_when_a_commit_came_with_an_older_clock(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.now = NOON - timedelta(days=400)  # before the commits' own times: all of them arrive now
    settle = timedelta(hours=1)
    bench.append(answer("a"))
    await bench.tick(Greets(), settle=settle)
    bench.append(span("a", "tool", parent="root"))
    await bench.tick(Greets(), settle=settle)

    [wait] = [row for row in bench.ledger.open().open_rows() if row.state == "waiting"]
    assert list(wait.commits) == [1, 2]


async def test_spans_that_were_found_by_time_are_found_by_time_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    bench.append(span("a", "tool", parent="root"))
    log = Path(bench.spans_store.uri) / "_delta_log"
    DeltaTable(bench.spans_store.uri).create_checkpoint()
    (log / f"{1:020d}.json").unlink()
    bench.now = NOON + timedelta(days=400)
    await bench.tick(Greets(), settle=timedelta(days=900), max_wait=timedelta(days=900))

    [wait] = [row for row in bench.ledger.open().open_rows() if row.state == "waiting"]
    assert list(wait.commits) == [FOUND_BY_TIME]


@pytest.mark.parametrize("root_again", [False, True])
async def test_a_span_days_from_a_decided_trace_does_not_have_it_decided_again(
    tmp_path: Path, root_again: bool
) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    await bench.tick(Greets())
    bench.append(span("a", "straggler", parent="root", at=NOON + timedelta(days=3)))
    await bench.tick(Greets())
    if root_again:
        bench.append(span("a", "second root"))
    bench.later(seconds=7200)
    await bench.tick(Greets())
    bench.append(span("a", "another", parent="root", at=NOON + timedelta(days=3)))
    later = await bench.tick(Greets())

    rows = bench.ledger.open().table().to_pylist()
    assert [row["state"] for row in rows if row["scorer"]] == ["scored"]
    assert (later.late, bench.ledger.open().open_rows()) == (1, [])


@dataclass
class Interrupted(Greets):
    """It judges while something else happens, once; `spans` are how many each trace had."""

    meanwhile: Callable[[], Awaitable[object]] | None = None
    spans: list[int] = field(default_factory=list)

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            await happens()
        self.spans += [len(record.trace.steps) for record in records]
        return await super().score(records)


async def test_what_another_worker_has_read_meanwhile_is_judged_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))

    async def another_reads_on() -> None:
        bench.append(span("a", "tool", parent="root"))
        await bench.tick(Greets(), rescore_late=True, settle=timedelta(minutes=1))

    judge = Interrupted(meanwhile=another_reads_on)
    for _ in range(3):
        await bench.tick(judge, rescore_late=True)
        bench.later(minutes=2)

    assert judge.spans == [1, 2]
    assert [key.revision for key in bench.states() if key.scorer] == [0]
    assert not look(bench.parts(judge)).work


def stamped_as(table: str, version: int, *, like: int) -> None:
    """Give a commit the time of another."""
    commit, other = (Path(table) / "_delta_log" / f"{one:020d}.json" for one in (version, like))
    at = re.compile(r'("commitInfo":\{"timestamp":|"inCommitTimestamp":)\d+')
    stamps = {found[1]: found[0] for found in at.finditer(other.read_text())}
    assert stamps
    commit.write_text(at.sub(lambda found: stamps[found[1]], commit.read_text()))


async def test_a_late_span_that_another_worker_has_read_meanwhile_is_judged_too(tmp_path: Path) -> None:
    """Though its commit is of an older clock, so that the trace's wait says nothing new."""
    bench = Bench(tmp_path)
    bench.now = datetime.now(UTC) + timedelta(hours=1)  # after the commits: what arrives has their times
    settings = {"rescore_late": True, "settle": timedelta(hours=2), "max_wait": timedelta(days=1)}
    bench.append(answer("a"))
    await bench.tick(Greets(), rescore_late=True)
    bench.append(span("a", "one", parent="root"))
    await bench.tick(Greets(), **settings)

    async def another_reads_on() -> None:
        of_older_clock = bench.append(span("a", "two", parent="root"))
        stamped_as(bench.spans_store.uri, of_older_clock, like=of_older_clock - 1)
        bench.later(hours=-2)
        await bench.tick(Greets(), **settings)
        bench.later(hours=2)

    judge = Interrupted(meanwhile=another_reads_on)
    for _ in range(3):
        bench.later(hours=2)
        await bench.tick(judge, **settings)

    assert judge.spans == [2, 3]
    assert sorted(key.revision for key in bench.states() if key.scorer) == [0, 1]
    assert not look(bench.parts(judge)).work


async def test_a_wait_of_which_only_what_is_out_of_scope_is_left_ends(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(span("a", "old", parent="root", at=NOON - timedelta(hours=3)))
    bench.append(answer("a", at=NOON - timedelta(minutes=1)))
    judge = Greets()
    await bench.tick(judge, start=timedelta(hours=1), settle=timedelta(minutes=1))
    table = DeltaTable(bench.spans_store.uri)
    table.delete("name = 'root'")
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    bench.later(minutes=2)

    await bench.tick(judge, settle=timedelta(minutes=1))

    [decision] = [row for key, row in bench.states().items() if key.scorer is None]
    assert (decision.state, judge.seen) == ("done", [])
    assert not look(bench.parts(judge)).work


async def test_a_trace_that_was_gone_and_came_again_is_judged_with_rescore_late(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    judge = Greets()
    await bench.tick(judge, rescore_late=True, settle=timedelta(minutes=1))
    table = DeltaTable(bench.spans_store.uri)
    table.delete()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    bench.later(minutes=2)
    await bench.tick(judge, rescore_late=True)
    bench.append(answer("a"))

    await bench.tick(judge, rescore_late=True)

    assert judge.seen == [trace_id("a")]


async def test_no_revision_is_decided_twice_where_the_trace_lies_on_three_days(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    midnight = NOON.replace(hour=0)
    judge = Greets()
    for name, at in (("root", 30), ("before", -60), ("after", 24 * 60 + 15)):
        parent = None if name == "root" else "root"
        bench.append(span("a", name, parent=parent, at=midnight + timedelta(minutes=at)))
        await bench.tick(judge, rescore_late=True)

    decisions = bench.ledger.open().table("scorer is null and state = 'done' and target_type = 'TRACE'")
    assert sorted(decisions.column("revision").to_pylist()) == [0, 1]


async def test_what_a_worker_decides_beside_an_evaluation_counts_as_reused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.now = datetime.now(UTC)
    bench.append(answer("a"), answer("b"))
    judge = Interrupted(meanwhile=lambda: bench.tick(Greets()))
    within = Range(start=NOON - timedelta(hours=1), end=NOON + timedelta(hours=1))

    evaluation = await bench.evaluate(*bench.parts(judge).active, within=within)

    assert (evaluation.summary.results, evaluation.summary.reused) == (0, 2)


async def test_a_decided_trace_whose_far_span_is_gone_stays_decided_as_it_was(tmp_path: Path) -> None:
    """A span days ahead waits as if it were of a new trace; deleted before its time, it ends nothing that was said."""
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    await bench.tick(Greets())
    [before] = [row for key, row in bench.states().items() if key.scorer is None]
    bench.append(span("a", "far", parent="root", at=bench.now + timedelta(days=3)))
    bench.later(minutes=1)
    await bench.tick(Greets())
    table = DeltaTable(bench.spans_store.uri)
    table.delete(f"trace_id = '{trace_id('a')}'")
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    bench.later(hours=2)

    await bench.tick(Greets())

    [after] = [row for key, row in bench.states().items() if key.scorer is None]
    assert (after.state, after.reason, after.set) == (before.state, before.reason, before.set)
