"""What is done to the ledger as it grows old: layout, restating, retention, forgetting, and who does it when."""

import logging
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.forgetting import forget
from evaluator.tables.integers import AT, LAYOUT, LAYOUT_NUMBER, SEQ
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.retention import expire
from evaluator.tables.rows import FORGOTTEN, UNDATED, Key, Row
from evaluator.tables.schemas import LEDGER
from evaluator.worker.upkeep import AT_THE_LATEST, EVERY, Schedule, restate

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
EVERYTHING = 10**9


class Clock:
    now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    made = Ledger(DeltaStore(str(tmp_path / "ledger")), clock)
    made.provision()
    return made


def a_row(
    trace: str, state: str = "done", scorer: str | None = None, *, days_ago: int = 0, **values: object
) -> Row:
    row = Row(
        day=NOON.date() - timedelta(days=days_ago),
        scope="live",
        target_type="TRACE",
        target_id=trace,
        trace_id=trace,
        scorer=scorer,
        version=scorer and "v1",
        state=state,  # type: ignore[arg-type]  # a state's name
        rationale=f"about {trace}" if scorer else None,
    )
    return replace(row, **values)  # type: ignore[arg-type]  # columns by their names


def decided(book: Book, *traces: str, days_ago: int = 0) -> None:
    """Each in a commit, and one more after the last: what the newest commit holds counts as open until the next."""
    for trace in traces:
        unit = [
            a_row(trace, days_ago=days_ago),
            a_row(trace, "scored", "judge", days_ago=days_ago, value='"yes"'),
        ]
        book.commit([unit])


def rows_of(ledger: Ledger, trace: str) -> list[Row]:
    return ledger.open().of_trace(trace)


# --- layout


def an_older_ledger(folder: Path, clock: Clock) -> Ledger:
    """As a program wrote it that knew no calls and no start of a trace, with one decided trace."""
    store = DeltaStore(str(folder / "older"))
    columns = [field for field in LEDGER if field.name not in ("calls", "trace_start")]
    store.create(pa.schema(columns), partition_by=["day"])
    made = Ledger(store, clock)
    old = {
        "seq": 1,
        "day": NOON.date(),
        "scope": "live",
        "target_type": "TRACE",
        "target_id": "a",
        "trace_id": "a",
    }
    table = pa.Table.from_pylist([{**old, "state": "done", "at": NOON}], schema=pa.schema(columns))
    store.open().append(table, {SEQ: 1, AT: int(NOON.timestamp() * 1e6), LAYOUT: 0})
    return made


def test_an_older_ledger_is_read_as_it_is_and_gets_its_columns_with_the_next_rows(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = an_older_ledger(tmp_path, clock)
    [read] = rows_of(ledger, "a")
    before = ledger.store.open().schema.names
    with caplog.at_level(logging.INFO):
        ledger.open().commit([[a_row("b", "scored", "judge", calls=3)]])

    snapshot = ledger.store.open()
    assert (read.state, read.calls, read.trace_start) == ("done", None, None)
    assert "calls" not in before
    assert set(LEDGER.names) == set(snapshot.schema.names)
    assert (snapshot.transaction(LAYOUT), snapshot.transaction(SEQ)) == (1, 2)
    assert [row.calls for row in rows_of(ledger, "b")] == [3]
    assert [row.calls for row in rows_of(ledger, "a")] == [None]
    assert "the ledger gets the columns of this version" in caplog.text


def test_who_adds_the_columns_reads_on_and_commits_again(tmp_path: Path, clock: Clock) -> None:
    book = an_older_ledger(tmp_path, clock).open()

    for trace in "bc":
        book.commit([[a_row(trace, "scored", "judge", calls=3)]])

    assert [[row.calls for row in book.of_trace(trace)] for trace in "abc"] == [[None], [3], [3]]


def test_a_commit_that_was_planned_on_the_older_layout_yields_like_any_other(
    tmp_path: Path, clock: Clock
) -> None:
    ledger = an_older_ledger(tmp_path, clock)
    one, other = ledger.open(), ledger.open()
    one.commit([[a_row("b")]])
    other.commit([[a_row("b")], [a_row("c")]])

    assert [len(rows_of(ledger, trace)) for trace in "bc"] == [1, 1]
    assert ledger.store.open().transaction(SEQ) == 3


def test_forgetting_in_an_older_ledger_needs_no_column_of_today(tmp_path: Path, clock: Clock) -> None:
    ledger = an_older_ledger(tmp_path, clock)
    forget(ledger, ["a"], [])

    assert [row.reason for row in rows_of(ledger, "a")] == [FORGOTTEN]


def test_a_ledger_of_a_newer_layout_is_refused_also_by_who_has_it_open(ledger: Ledger) -> None:
    book = ledger.open()
    ledger.store.open().append(LEDGER.empty_table(), {LAYOUT: LAYOUT_NUMBER + 1, SEQ: book.seq + 1})

    with pytest.raises(TableError, match="written by a newer version"):
        ledger.open()
    with pytest.raises(TableError, match="written by a newer version"):
        book.commit([[a_row("a")]])


def test_a_ledger_that_forgets_its_transactions_is_refused(ledger: Ledger) -> None:
    properties = {"delta.setTransactionRetentionDuration": "interval 1 days"}
    DeltaTable(ledger.store.uri).alter.set_table_properties(properties)

    with pytest.raises(
        TableError, match=r"forgets its transactions after interval 1 days.*UNSET TBLPROPERTIES"
    ):
        ledger.open()


def test_the_log_holds_no_word_of_a_rationale(ledger: Ledger) -> None:
    decided(ledger.open(), "secret")

    log = "".join(file.read_text() for file in (Path(ledger.store.uri) / "_delta_log").glob("*.json"))
    assert "about secret" not in log


# --- open rows told again


def test_open_rows_older_than_a_day_are_told_again_and_say_the_same(ledger: Ledger, clock: Clock) -> None:
    due = NOON + timedelta(days=9)
    waits = a_row("a", "deferred", "judge", due=due, reason="budget", attempts=2, cost_usd=1.5, run_id="run")
    ledger.open().commit([[waits]])
    decided(ledger.open(), "b", "c")
    clock.now += timedelta(days=2)
    before = ledger.open()
    restated = restate(ledger, clock.now - timedelta(days=1))

    after = ledger.open()
    [row] = after.open_rows()
    assert restated == 1
    assert (row.state, row.reason, row.due, row.attempts) == ("deferred", "budget", due, 2)
    assert (row.cost_usd, row.run_id) == (None, None)  # told once, by the row of the attempt
    assert before.open_from < after.open_from == row.seq == after.seq
    assert restate(ledger, clock.now - timedelta(days=1)) == 0


def test_an_open_row_told_again_yields_to_what_came_of_it_meanwhile(ledger: Ledger) -> None:
    ledger.open().commit([[a_row("a", "deferred", "judge", due=NOON)]])
    book = ledger.open()
    [stale] = book.open_rows()
    ledger.open().commit([[a_row("a", "scored", "judge")]])

    assert book.commit([[stale]]) == []


# --- retention


def expired(ledger: Ledger, clock: Clock, published: int = EVERYTHING, days: int = 10) -> list[date]:
    return list(expire(ledger, timedelta(days=days), spans=None, published=published, now=clock.now).days)


def test_days_that_are_old_decided_and_published_are_removed_and_the_floor_rises(
    ledger: Ledger, clock: Clock
) -> None:
    book = ledger.open()
    decided(book, "old", "older", days_ago=20)
    decided(book, "new")
    notes = ledger.open().notes()
    gone = expired(ledger, clock)

    after = ledger.open()
    assert gone == [NOON.date() - timedelta(days=20)]
    assert (rows_of(ledger, "old"), rows_of(ledger, "older")) == ([], [])
    assert len(rows_of(ledger, "new")) == 2
    assert after.floor == datetime(2026, 11, 11, tzinfo=UTC)  # the first kept day, and a day for long traces
    assert after.notes().keys() == notes.keys()
    assert after.seq == book.seq + 1
    assert expired(ledger, clock) == []


def test_a_day_stays_while_it_holds_an_open_row_or_one_that_a_sink_lacks(
    ledger: Ledger, clock: Clock
) -> None:
    book = ledger.open()
    decided(book, "published", days_ago=30)
    published = book.seq
    decided(book, "unpublished", days_ago=29)
    book.commit([[a_row("open", "deferred", "judge", days_ago=28, due=NOON)]])
    decided(book, "new")
    first = expired(ledger, clock, published)
    book = ledger.open()
    restate(ledger, clock.now + timedelta(days=1))
    second = expired(ledger, clock)

    assert first == [NOON.date() - timedelta(days=30)]
    assert second == [NOON.date() - timedelta(days=29)]
    assert len(rows_of(ledger, "open")) == 1


def test_nothing_is_removed_while_a_trace_of_that_time_waits(ledger: Ledger, clock: Clock) -> None:
    book = ledger.open()
    decided(book, "old", days_ago=30)
    book.commit([[a_row("waits", "waiting", days_ago=12, due=NOON)]])
    decided(book, "new")

    assert expired(ledger, clock) == []


def test_what_an_ended_wait_said_on_another_day_does_not_come_back(ledger: Ledger, clock: Clock) -> None:
    book = ledger.open()
    book.commit([[a_row("a", "waiting", days_ago=5, due=NOON)]])
    decided(book, "a", days_ago=30)
    decided(book, "new", "newer")
    expired(ledger, clock)

    assert [row.target_id for row in ledger.open().open_rows()] == []


def test_retention_looks_again_when_another_commit_comes_between(ledger: Ledger, clock: Clock) -> None:
    book = ledger.open()
    decided(book, "old", days_ago=30)
    decided(book, "new")
    replaced = Book.replace
    late: list[str] = []

    def another_is_first(self: Book, *args: object, **kwargs: object) -> bool:
        if not late:
            late.append("late")
            ledger.open().commit([[a_row("late", "deferred", "judge", days_ago=30, due=NOON)]])
        return replaced(self, *args, **kwargs)  # type: ignore[arg-type]  # as it was called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Book, "replace", another_is_first)
        gone = expired(ledger, clock)

    assert gone == []
    assert len(rows_of(ledger, "old")) == 2
    assert len(rows_of(ledger, "late")) == 1


# --- forgetting


def test_a_forgotten_trace_leaves_a_decision_without_content_and_nothing_else(ledger: Ledger) -> None:
    decided(ledger.open(), "a", "b")
    erasure = forget(ledger, ["a"], [])

    book = ledger.open()
    [left] = rows_of(ledger, "a")
    assert (erasure.rows, erasure.committed) == (2, True)
    assert (left.state, left.reason, left.day, left.rationale, left.session_id) == (
        "done",
        FORGOTTEN,
        UNDATED,
        None,
        None,
    )
    assert len(rows_of(ledger, "b")) == 2
    assert [one.target.trace_id for one in book.forgotten(0, book.seq)] == ["a"]
    assert book.states(["a"], {NOON.date()})[Key("TRACE", "a")].state == "done"


def test_forgetting_twice_commits_once_and_a_dry_run_nothing(ledger: Ledger) -> None:
    decided(ledger.open(), "a")
    seq = ledger.open().seq
    dry = forget(ledger, ["a"], [], dry_run=True)
    after_dry = ledger.open().seq
    forget(ledger, ["a"], [])
    again = forget(ledger, ["a"], [])

    assert (dry.rows, dry.committed, after_dry) == (2, False, seq)
    assert (again.rows, again.committed) == (0, False)
    assert [one.target.trace_id for one in again.erased] == ["a"]
    assert ledger.open().seq == seq + 1


def test_a_trace_that_nobody_has_read_yet_is_never_judged(ledger: Ledger) -> None:
    forget(ledger, ["a"], [])
    written = ledger.open().commit([[a_row("a"), a_row("a", "scored", "judge")], [a_row("b")]])

    assert [row.target_id for row in written] == ["b"]


@pytest.mark.parametrize(
    "unit",
    [
        [a_row("a"), a_row("a", "scored", "judge")],
        [a_row("a", "scored", "another")],
        [a_row("a", "replaced", "judge"), a_row("a", "scored", "judge", version="v2")],
        [a_row("a", "waiting", due=NOON)],
        [replace(a_row("a", "scored", "judge"), target_type="SPAN", target_id="a:1")],
    ],
)
def test_a_plan_made_before_holds_nothing_of_it_any_more(ledger: Ledger, unit: list[Row]) -> None:
    book = ledger.open()
    forget(ledger, ["a"], [])
    written = book.commit([unit, [a_row("b")]])

    assert [row.target_id for row in written] == ["b"]
    assert [row.reason for row in rows_of(ledger, "a")] == [FORGOTTEN]


def test_a_sessions_results_go_with_any_of_its_traces_and_it_may_be_judged_again(ledger: Ledger) -> None:
    book = ledger.open()
    turns = [[a_row(trace, session_id="s")] for trace in "ab"]
    session = a_row("s", target_type="SESSION", trace_id="a", session_id="s", revision=2)
    result = a_row("s", "scored", "judge", target_type="SESSION", trace_id="a", session_id="s", revision=2)
    book.commit([*turns, [session, result]])
    early = ledger.open()
    forget(ledger, ["b"], [])
    planned_before = early.commit([[replace(session, revision=3), replace(result, revision=3)]])
    planned_after = ledger.open().commit([[replace(result, revision=3)]])

    [stone] = [row for row in rows_of(ledger, "a") if row.key[:3] == ("SESSION", "s", None)]
    assert (stone.reason, stone.revision, stone.rationale) == (FORGOTTEN, 2, None)
    assert len([row for row in rows_of(ledger, "a") if row.target_type == "TRACE"]) == 1
    assert planned_before == []
    assert len(planned_after) == 1


def test_a_session_whose_name_is_an_attack_is_a_name(ledger: Ledger) -> None:
    name = "x') or true --"
    book = ledger.open()
    book.commit([[a_row("a")], [a_row(name, target_type="SESSION", trace_id="b", session_id=name)]])
    forget(ledger, [], [name])

    assert rows_of(ledger, "a")[0].reason is None
    assert rows_of(ledger, "b")[0].reason == FORGOTTEN


# --- who does it when


def test_upkeep_follows_a_quiet_tick_once_a_day_or_any_tick_some_hours_later(
    ledger: Ledger, clock: Clock
) -> None:
    schedule = Schedule(ledger, clock)
    at_once = schedule.claim(quiet=True)
    clock.now += EVERY
    busy = schedule.claim(quiet=False)
    quiet = schedule.claim(quiet=True)
    again = Schedule(ledger, clock).claim(quiet=True)
    clock.now += AT_THE_LATEST
    at_the_latest = schedule.claim(quiet=False)

    assert (at_once, busy, quiet, again, at_the_latest) == (False, False, True, False, True)


def test_of_two_workers_one_does_the_upkeep(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.now += EVERY
    one, other = Schedule(ledger, clock), Schedule(ledger, clock)
    notes = Book.notes
    claimed: list[bool] = []

    def another_claims_first(self: Book) -> dict[str, Row]:
        told = notes(self)
        monkeypatch.setattr(Book, "notes", notes)
        claimed.append(other.claim(quiet=True))
        return told

    monkeypatch.setattr(Book, "notes", another_claims_first)
    claimed.append(one.claim(quiet=True))

    assert claimed == [True, False]
