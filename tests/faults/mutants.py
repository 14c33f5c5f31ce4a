"""The code with one rule of the protocol broken at a time: the histories must notice each."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from deltalake import DeltaTable

from evaluator.dataset.selection import Selection
from evaluator.live.arrivals import Arrivals
from evaluator.shards import Shard, shards_of
from evaluator.tables import ledger, yielding
from evaluator.tables.known import Known
from evaluator.tables.ledger import Book
from evaluator.tables.rows import Moved, Row, State, Unit
from evaluator.tables.snapshot import Snapshot
from evaluator.tables.yielding import Tail

_append, _decide = Snapshot.append, Arrivals._decide
_see_others, _marks, _reopen, _days, _least = (
    Book._see_others,
    Book._marks,
    Book._reopen,
    Book.days,
    Book._least,
)


def no_shared_guard() -> list[Any]:
    """Every commit is made through the table's path, whatever was committed since the plan."""

    def append(self: Snapshot, data: Any, transactions: Mapping[str, int] | None = None) -> int:
        self._table.__init__(self._table.table_uri)  # type: ignore[misc]  # as new as can be
        return _append(self, data, transactions)

    return [patch.object(Snapshot, "append", append)]


def a_guard_of_ones_own() -> list[Any]:
    """Each worker guards its commits by an app id that no other one uses."""

    def append(self: Snapshot, data: Any, transactions: Mapping[str, int] | None = None) -> int:
        worker = getattr(self.store, "worker", None)
        suffix = "" if worker is None else f"-{worker.name}"
        shared = {f"{app}{suffix}": value for app, value in (transactions or {}).items() if app in SHARED}
        others = {app: value for app, value in (transactions or {}).items() if app not in SHARED}
        return _append(self, data, shared | others)

    def transaction(self: Snapshot, app_id: str) -> int | None:
        table: DeltaTable = self._table
        if app_id not in SHARED:
            return table.transaction_version(app_id)
        names = ["", *(f"-{kind}-{number}" for kind in KINDS for number in range(1, 60))]
        known = (table.transaction_version(f"{app_id}{name}") for name in names)
        return max((value for value in known if value is not None), default=None)

    return [patch.object(Snapshot, "append", append), patch.object(Snapshot, "transaction", transaction)]


SHARED = ("seq", "at", "open", "layout")
KINDS = ("live", "evaluation", "retrying")


def no_yield() -> list[Any]:
    """A plan's rows stand, whatever others decided since."""
    return [patch.object(yielding, "_yields", lambda row, since, wary: False)]


def no_rebase() -> list[Any]:
    """After a conflict the plan is committed as it was."""

    def see_others(self: Book) -> None:
        _see_others(self)
        self._since = Tail()

    return [patch.object(Book, "_see_others", see_others)]


def cursor_on_the_first_chunk() -> list[Any]:
    """The cursor moves before what it passes is decided."""

    async def decide(self: Arrivals, ready: Any, waiting: Any, moved: Moved | None) -> None:
        await asyncio.to_thread(self._work.commit, [], moved)
        await _decide(self, ready, waiting, None)

    return [patch.object(Arrivals, "_decide", decide)]


def open_forgotten() -> list[Any]:
    """`open` stands at the newest commit, as if nothing older were open."""
    return [patch.object(Book, "_open_after", lambda self, written, seq: {})]


def no_unit_rule() -> list[Any]:
    """When the head of a unit yields, the rest of it is committed all the same."""

    def rebase(units: Sequence[Unit], tail: Tail, **how: bool) -> list[Row]:
        return yielding.rebase([[row] for unit in units for row in unit], tail, **how)

    return [patch.object(ledger, "rebase", rebase)]


def replaced_not_final() -> list[Any]:
    """A result of an older version that was replaced may still be written."""
    return [patch.object(yielding, "FINAL", frozenset({"done", "scored"}))]


def random_mlflow_id() -> list[Any]:
    """MLflow gives each posted result an id of its own."""
    return [patch("evaluator.sinks.mlflow.assessment_id", lambda _: secrets.token_hex(8))]


def cursor_goes_back() -> list[Any]:
    """The cursor is set to where a plan ends, wherever others have brought it."""

    def marks(self: Book, moved: Moved | None, floor: Any) -> dict[str, int]:
        told = _marks(self, None, floor)
        return told if moved is None else {**told, f"live/{moved.table_id}/{moved.shard.name}": moved.cursor}

    return [patch.object(Book, "_marks", marks)]


def shares_begin_where_the_first_one_is() -> list[Any]:
    """Who takes the work over goes on where the fastest of those before was."""

    def least(self: Book, name: str, shard: Shard | None) -> int | None:
        if shard is not None:
            return _least(self, name, shard)
        told = [_least(self, name, one) for one in shards_of(self.shards)]
        return None if None in told else max(value for value in told if value is not None)

    return [patch.object(Book, "_least", least)]


def known_targets_are_as_they_were() -> list[Any]:
    """What was committed since the days were read is not known."""
    return [patch.object(Known, "add", lambda self, rows: None)]


def pending_in_memory() -> list[Any]:
    """What waits is kept in the process, and dies with it."""

    async def decide(self: Arrivals, ready: Any, waiting: Sequence[Row], moved: Moved | None) -> None:
        self._work.waiting |= {row.target_id: row for row in waiting}
        await _decide(self, ready, [], moved)

    return [patch.object(Arrivals, "_decide", decide)]


def cursor_passes_a_wait_that_yields() -> list[Any]:
    """The cursor moves although a waiting row gave way to one that may know fewer spans."""
    return [patch.object(ledger, "waits_stand", lambda units, tail: True)]


def a_decision_ends_what_others_know_of_late_spans() -> list[Any]:
    """A trace is decided though another worker, meanwhile, has read spans of it that its decision lacks."""
    return [patch.object(ledger, "rebase", lambda units, tail, **_: yielding.rebase(units, tail))]


def blind_after_its_own_commit() -> list[Any]:
    """What others committed between a commit without rows and its reading counts as seen."""

    def see_others(self: Book) -> None:
        if self._reopening:  # type: ignore[attr-defined]
            _see_others(self)

    def reopen(self: Book) -> None:
        self._reopening = True  # type: ignore[attr-defined]
        _reopen(self)
        self._reopening = False  # type: ignore[attr-defined]

    return [
        patch.object(Book, "_reopening", False, create=True),
        patch.object(Book, "_see_others", see_others),
        patch.object(Book, "_reopen", reopen),
    ]


def found_by_time_counts_as_a_commit() -> list[Any]:
    """Spans that were found by their time are said to come from the table's newest commit."""
    return [patch("evaluator.tables.spans.FOUND_BY_TIME", 0)]


def a_wait_is_told_by_its_times() -> list[Any]:
    """A waiting row is not written anew when only its commits are others."""
    return [patch("evaluator.live.arrivals._wait", lambda row: (row.due, row.reason, row.last))]


def a_plan_brings_back_what_was_forgotten() -> list[Any]:
    """What was planned or judged before a trace was forgotten is committed after."""
    return [patch.object(Book, "_without_forgotten", lambda self, units: list(units))]


def retention_by_age_alone() -> list[Any]:
    """Days are taken out of the ledger whatever is open or unpublished in them."""

    def days(self: Book, before: Any) -> dict[Any, tuple[int, int]]:
        return {day: (-1, rows) for day, (_, rows) in _days(self, before).items()}

    return [patch.object(Book, "days", days)]


def forgetting_without_the_sinks() -> list[Any]:
    """A publisher passes an erasure without erasing."""
    return [patch.object(Book, "forgotten", lambda self, cursor, upto: [])]


def spans_are_not_looked_up() -> list[Any]:
    """What is known of a trace is looked up, and of its spans nothing."""

    def targets(self: Selection) -> set[str]:
        return {self.trace_id}

    return [patch.object(Selection, "targets", property(targets))]


def a_session_stands_though_a_turn_came() -> list[Any]:
    """The decision on a session yields to another decision only, as that on a trace does."""

    def yields(row: Row, since: Sequence[State], wary: Collection[str]) -> bool:
        return any(state in yielding.FINAL for state in since) if row.state in yielding.FINAL else bool(since)

    return [patch.object(yielding, "_yields", yields)]


def a_turn_after_the_decision_opens_nothing() -> list[Any]:
    """The wait of a session that was decided meanwhile is not that of its next revision."""
    return [patch.object(ledger, "gone_on", lambda unit, since: unit)]


def a_turn_does_not_open_its_session() -> list[Any]:
    """A session's wait yields to any row of its key, as that of a trace does."""
    return [patch.object(Row, "goes_on", property(lambda self: False))]


UNRACED = {
    "spans_are_not_looked_up",
    "random_mlflow_id",
    "a_plan_brings_back_what_was_forgotten",
    "retention_by_age_alone",
    "forgetting_without_the_sinks",
}
"""Mutants that show themselves elsewhere than in a race of live workers."""

MUTANTS: Mapping[str, Callable[[], list[Any]]] = {
    mutant.__name__: mutant
    for mutant in (
        no_shared_guard,
        a_guard_of_ones_own,
        no_yield,
        no_rebase,
        cursor_on_the_first_chunk,
        open_forgotten,
        no_unit_rule,
        replaced_not_final,
        random_mlflow_id,
        cursor_goes_back,
        shares_begin_where_the_first_one_is,
        known_targets_are_as_they_were,
        pending_in_memory,
        cursor_passes_a_wait_that_yields,
        a_decision_ends_what_others_know_of_late_spans,
        blind_after_its_own_commit,
        found_by_time_counts_as_a_commit,
        a_wait_is_told_by_its_times,
        a_session_stands_though_a_turn_came,
        a_turn_after_the_decision_opens_nothing,
        a_turn_does_not_open_its_session,
        a_plan_brings_back_what_was_forgotten,
        retention_by_age_alone,
        forgetting_without_the_sinks,
        spans_are_not_looked_up,
    )
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The code under test with one rule broken."""
    with ExitStack() as stack:
        for change in MUTANTS[name]():
            stack.enter_context(change)
        yield
