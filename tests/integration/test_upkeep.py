"""`maintain` and `forget`, by themselves, as commands, and within `run`; beside others that are at work."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest

from evaluator.config import load_config
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import TableError
from evaluator.publish import publish
from evaluator.score import Active
from evaluator.shards import shards_of
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.tables import maintenance
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import PROPERTIES, Ledger
from evaluator.tables.maintenance import maintain
from evaluator.tables.provision import table_properties
from evaluator.tables.retention import Expired, expire
from evaluator.tables.schemas import ANNOTATIONS
from evaluator.tick import tick
from evaluator.wiring import build_tables
from evaluator.worker.upkeep import keep_up
from tests.bench import Bench, Greets
from tests.project import ONE_JUDGE, Project
from tests.stub_provider import StubProvider
from tests.traffic import NOON, answer, trace_id


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as provider:
        yield provider


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def files(store: DeltaStore) -> list[Path]:
    return [file for file in Path(store.uri).rglob("*.parquet") if "_delta_log" not in file.parts]


def now() -> datetime:
    return datetime.now(UTC)


# --- maintain


async def test_maintenance_changes_nothing_but_the_files(bench: Bench) -> None:
    for name in "abcd":
        bench.append(answer(name))
        await bench.tick(Greets())
    store = bench.ledger.store
    before, rows = bench.ledger.open(), bench.states()
    dry = maintain("ledger", store, PROPERTIES, now=now(), dry_run=True)
    done = maintain("ledger", store, PROPERTIES, now=now())
    again = maintain("ledger", store, PROPERTIES, now=now())

    after = bench.ledger.open()
    assert (dry.small_files, dry.became) == (4, 0)
    assert (done.small_files, done.became, again.small_files) == (4, 1, 0)
    assert bench.states() == rows
    assert (after.seq, after.open_from, after.cursor(bench.spans.open().table_id)) == (
        before.seq, before.open_from, before.cursor(bench.spans.open().table_id),
    )  # fmt: skip
    assert (await bench.tick(Greets())).results == 0


async def test_files_are_kept_for_readers_and_deleted_when_they_are_old(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        bench.append(answer(name))
        await bench.tick(Greets())
    reader = bench.ledger.open()
    kept = maintain("ledger", bench.ledger.store, PROPERTIES, now=now())
    read_meanwhile = len(reader.table())
    monkeypatch.setattr(maintenance, "KEEP", timedelta(0))
    deleted = maintain("ledger", bench.ledger.store, PROPERTIES, now=now())

    assert (kept.deleted, read_meanwhile) == (0, 5)
    assert deleted.deleted == 2
    assert len(files(bench.ledger.store)) == 2  # the notes of the ledger, and a day


def test_what_killed_writers_left_on_a_disk_is_removed_when_it_is_old(bench: Bench) -> None:
    folder = Path(bench.ledger.store.uri)
    names = [
        "_delta_log/00000000000000000007.json#1",
        "_delta_log/_commit_4f1a.json.tmp",
        "day=2026-11-20/p.parquet#2",
    ]
    (folder / "day=2026-11-20").mkdir()
    long_ago = (now() - timedelta(hours=2)).timestamp()
    for name in [*names, "day=2026-11-20/being-written.parquet#1"]:
        (folder / name).write_text("half")
    for name in names:
        os.utime(folder / name, (long_ago, long_ago))
    told = maintain("ledger", bench.ledger.store, PROPERTIES, now=now(), dry_run=True)
    done = maintain("ledger", bench.ledger.store, PROPERTIES, now=now())

    assert told.leftovers == done.leftovers == 3
    assert [path.name for path in folder.rglob("*#*")] == ["being-written.parquet#1"]
    assert not (folder / names[1]).exists()


async def test_a_table_made_before_gets_todays_properties(tmp_path: Path) -> None:
    store = DeltaStore(str(tmp_path / "annotations"))
    store.create(ANNOTATIONS)
    maintain("otel_annotations", store, table_properties("otel_annotations"), now=now())

    assert store.open().configuration["delta.dataSkippingStatsColumns"] == "created_at,updated_at"


async def test_ticks_and_publishers_and_maintenance_do_not_disturb_each_other(bench: Bench) -> None:
    """Everything at once: what is new arrives, is judged and published, and its tables are maintained without a pause."""
    sink = AnnotationsSink(bench.annotations, bench.ledger.open().table_id)
    over = threading.Event()
    failures: list[Exception] = []
    rounds = Counter[str]()

    def maintain_on() -> None:
        stores = {"ledger": bench.ledger.store, "annotations": bench.annotations, "spans": bench.spans_store}
        while not over.is_set():
            for name, store in stores.items():
                try:
                    maintain(name, store, PROPERTIES if name == "ledger" else {}, now=now())
                except Exception as error:  # noqa: BLE001 -- whatever it is, the test shows it
                    failures.append(error)
                rounds[name] += 1

    maintaining = threading.Thread(target=maintain_on)
    maintaining.start()
    try:
        for number in range(12):
            bench.append(answer(f"t{number}"))
            bench.later(seconds=1)
            await bench.tick(Greets())
            await publish(bench.ledger, [sink])
    finally:
        over.set()
        maintaining.join()

    results = [key for key, row in bench.states().items() if row.state == "scored"]
    published = bench.annotations.open().query("select target_id from t").column("target_id").to_pylist()
    assert failures == []
    assert rounds["ledger"] > 1
    assert Counter(key.target_id for key in results) == {trace_id(f"t{number}"): 1 for number in range(12)}
    assert sorted(published) == sorted(key.target_id for key in results)


def test_maintain_leaves_alone_what_is_not_ours_and_the_traces_unless_told(tmp_path: Path) -> None:
    theirs = DeltaStore(str(tmp_path / "theirs"))
    theirs.create(ANNOTATIONS)
    project = Project.create(tmp_path, annotations=str(tmp_path / "theirs"))
    version = theirs.open().version
    alone = project.run("maintain", "--json")
    whole = project.run("maintain", "--include-traces", "--json")

    assert [table["table"] for table in alone.json()["tables"]] == ["eval_ledger"]
    assert {table["table"] for table in whole.json()["tables"]} == {
        "eval_ledger", "otel_spans", "otel_logs", "otel_metrics",
    }  # fmt: skip
    assert "theirs is not ours: left to whoever made it" in alone.err
    assert theirs.open().version == version


@pytest.mark.parametrize("name", ["eval_ledger", "otel_annotations"])
async def test_a_table_that_cannot_be_written_is_told_before_anything_is_done_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of root, whom no permission stops, the system's own answer is the only one that can be had."""
    Project.create(tmp_path)
    config = load_config(tmp_path / "evaluator.yaml")
    table = tmp_path / "traces" / f"agent_{name}"
    monkeypatch.setattr(os, "access", lambda path, _: str(path) != str(table / "_delta_log"))
    before = sorted(table.rglob("*"))

    with pytest.raises(TableError, match=f"{name}: cannot be written: no permission to write there"):
        await keep_up(config, build_tables(config))
    dry = await keep_up(config, build_tables(config), dry_run=True)

    assert sorted(table.rglob("*")) == before
    assert {one.table for one in dry.tables} == {"eval_ledger", "otel_annotations"}


def test_a_worker_maintains_the_tables_after_a_tick_once_a_day(tmp_path: Path) -> None:
    store = DeltaStore(str(tmp_path / "traces" / "agent_eval_ledger"))
    Ledger(store, lambda: now() - timedelta(days=2)).provision()
    project = Project.create(tmp_path, every="1s")
    worker = project.start("run", "--port", "0")
    try:
        assert worker.stderr is not None
        told = next(line for line in worker.stderr if "kept up" in line)
        later = list(islice((line for line in worker.stderr if "done" in line or "kept up" in line), 3))
    finally:
        worker.terminate()
        worker.communicate(timeout=30)

    assert "eval_ledger" in told
    assert all("tick done" in line for line in later)


# --- forget


SAID = b"Decided by a hash of the prompt"
"""What the stub says of every trace."""


# --- retention beside those who read


def expired(bench: Bench, days: int) -> Expired:
    book, spans = bench.ledger.open(), bench.spans.open()
    return expire(bench.ledger, timedelta(days=days), spans=spans, published=book.seq, now=bench.now)


async def test_retention_removes_nothing_while_live_has_something_to_read(bench: Bench) -> None:
    """A wrong key may hold the work up for longer than the ledger is kept: what is unread has to stay in scope."""
    bench.append(answer("a"))
    await bench.tick(Greets())
    bench.append(answer("b", at=bench.now))
    bench.later(days=9)
    await bench.tick(Greets(raises=True, waits=True))

    held = expired(bench, days=7)
    await bench.tick(Greets())
    decided = {key.target_id for key, row in bench.states().items() if row.state == "scored"}
    removed = expired(bench, days=7)

    assert decided == {trace_id("a"), trace_id("b")}
    assert (held.days, held.held) == ((), "commits of the spans table are unread")
    assert len(removed.days) == 1
    assert bench.ledger.open().floor == removed.floor


async def test_retention_waits_for_the_slowest_shard(bench: Bench) -> None:
    """An imported history, of which one of two workers has read its part: none of the other's is out of scope."""
    old = [f"t{number}" for number in range(20)]
    bench.append(*(answer(name, at=bench.now - timedelta(days=500)) for name in old))
    bench.ledger.open().share_out(2, bench.spans.open().table_id)
    first, second = shards_of(2)
    await bench.tick(Greets(), shard=first)

    held = expired(bench, days=400)
    await bench.tick(Greets(), shard=second)
    decided = {key.target_id for key, row in bench.states().items() if row.state == "scored"}
    removed = expired(bench, days=400)

    assert held.held
    assert decided == {trace_id(name) for name in old}
    assert removed.rows == 40


async def test_what_a_session_needs_that_may_go_on_outlasts_retention(bench: Bench) -> None:
    """Its turns, since it began; what is older goes."""
    active = [Active(scorer=Greets("talk"), rule=SelectionRule(name="talk", target="session"))]
    for day in range(12):
        session = {"session.id": "thread"} if day >= 3 else {}
        bench.append(answer(f"t{day}", at=bench.now, **session))
        await tick(replace(bench.parts(session_idle=timedelta(days=30)), active=active), "run")
        if day < 11:
            bench.later(days=1)

    removed = expired(bench, days=2)

    assert len(removed.days) == 2
    assert {trace_id(f"t{day}") for day in range(3, 12)} <= {key.target_id for key in bench.states()}


# --- what is forgotten


def judged(folder: Path, stub: StubProvider) -> Project:
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    return Project.create(folder, ONE_JUDGE, judge=judge)


def holding(folder: Path, *words: bytes) -> set[str]:
    """The files that hold one of some words, those of the spans table left out."""
    return {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file()
        and "agent_otel_spans" not in file.parts
        and any(word in file.read_bytes() for word in words)
    }


def test_a_forgotten_trace_is_in_no_file_any_more_and_is_never_judged_again(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a", "Zanzibar"), answer("b", "Hello"))
    project.run("once")
    calls = len(stub.requests)
    before = holding(tmp_path, SAID)
    dry = project.run("forget", trace_id("a"), "--dry-run", "--json").json()
    done = project.run("forget", trace_id("a"), "--json")
    one_left = project.sql("select distinct trace_id from assessments")
    last = project.run("forget", trace_id("b"))
    project.append(answer("a", "Zanzibar"))
    again = project.run("once", "--json").json()
    evaluated = project.run("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--json").json()
    explained = project.run("explain", trace_id("a"), "--json").json()

    assert any("ledger" in name for name in before)
    assert any("annotations" in name for name in before)
    assert (dry["ledger_rows"], dry["annotation_rows"]) == (3, 2)
    assert (done.json()["ledger_rows"], done.json()["files_gone"]) == (3, True)
    assert "the spans stay in" in done.err
    assert last.out.startswith("1 trace and 0 sessions are forgotten: 3 rows of the ledger")
    assert one_left == [{"trace_id": trace_id("b")}]
    assert holding(tmp_path, SAID) == set()
    assert (again["traces"], evaluated["traces"], len(stub.requests)) == (0, 0, calls)
    assert explained["state"] == "forgotten"


def test_a_user_and_a_session_are_forgotten_with_their_traces(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(
        answer("a", **{"user.id": "anna"}), answer("b", **{"user.id": "ben", "session.id": "s"}),
        answer("c", **{"session.id": "s"}), answer("d"),
    )  # fmt: skip
    project.run("once")
    user = project.run("forget", "--user", "anna", "--json").json()
    session = project.run("forget", "--session", "s", "--json").json()
    nobody = project.run("forget", "--user", "carl", "--json")

    assert user["traces"] == [trace_id("a")]
    assert session["traces"] == [trace_id("b"), trace_id("c")]
    assert (nobody.code, nobody.json()["traces"]) == (0, [])
    assert project.sql("select trace_id from assessments") == [{"trace_id": trace_id("d")}]


def test_a_sink_that_is_away_erases_when_it_is_back_and_this_is_said(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))
    project.run("once")
    table, away = tmp_path / "traces" / "agent_otel_annotations", tmp_path / "away"
    table.rename(away)
    ran = project.run("forget", trace_id("a"))
    away.rename(table)
    project.run("once")

    assert ran.code == 1
    assert "annotations is behind: erased there when it is back" in ran.err
    assert project.sql("select * from assessments") == []


def test_one_thing_is_forgotten_at_a_time(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    assert project.run("forget").code == 2
    assert project.run("forget", trace_id("a"), "--user", "anna").code == 2
    assert "32 hexadecimal digits" in project.run("forget", "nonsense").err


@pytest.mark.parametrize(
    "judged_by", [("once",), ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--write")]
)
def test_a_session_that_went_on_since_a_turn_was_forgotten_keeps_what_was_said_since(
    tmp_path: Path, judged_by: tuple[str, ...]
) -> None:
    scorer = "scorers: [{name: greets, regex: Hello, target: session}]"
    project = Project.create(tmp_path, scorer, session_idle="0s")
    turns = [
        answer(name, f"Hello, {name}", at=NOON + timedelta(minutes=minute), **{"session.id": "s"})
        for minute, name in enumerate(("one", "two", "three"))
    ]
    project.append(*turns[:2])
    project.run("once")
    project.run("forget", trace_id("two"))
    told = "select session_id, revision, passed from assessments"
    forgotten = project.sql(told)
    project.append(*turns[2:])
    project.run(*judged_by)
    project.run("maintain")

    assert forgotten == []
    assert project.sql(told) == [{"session_id": "s", "revision": 1, "passed": True}]
