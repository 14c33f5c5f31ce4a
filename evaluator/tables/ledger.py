"""The ledger: every decision exactly once, whatever is killed, raced or replayed.

One application transaction, `seq`, guards every deciding commit; its value is also a column of every row.
It is the lock, the total order and the publishers' cursor.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from evaluator.errors import TableError
from evaluator.tables.delta import CommitConflict, DeltaStore, Snapshot
from evaluator.tables.rows import (
    COLUMNS,
    UNDATED,
    Key,
    Moved,
    Row,
    State,
    Unit,
    from_arrow,
    latest,
    rebase,
    stamped,
    to_arrow,
    waits_stand,
)
from evaluator.tables.schemas import LEDGER

log = logging.getLogger(__name__)

SEQ, OPEN, FLOOR, AT, LAYOUT = "seq", "open", "floor", "at", "layout"
LAYOUT_NUMBER = 1
CONTROL = "CONTROL"
"""The target type of the ledger's own notes (the fence's key, what is paused, known scorers)."""
FENCE_KEY = "fence-key"
SCORER_NOTE = "scorer/"
PAUSE_NOTE = "pause/"
REOPENED_EVERY = 16
"""Appends through one opened table: each makes the next slower, 31 ms growing to 219 ms at 1,200 (deltalake 1.6.6)."""
_KEY_COLUMNS = ["seq", "target_type", "target_id", "scorer", "version", "revision", "state", "due"]

Clock = Callable[[], datetime]


class Ledger:
    """Where the ledger lies. `open` gives a book to read from and commit to; make one for each piece of work."""

    def __init__(self, store: DeltaStore, clock: Clock) -> None:
        self.store = store
        self._clock = clock

    def provision(self) -> bool:
        """Create the ledger with the fence's key, if there is none. True when this call made it."""
        made = self.store.create(
            LEDGER, partition_by=["day"], description="Provisioned by evaluator: the ledger of decisions"
        )
        book = self.open()
        if FENCE_KEY not in book.notes():
            book.commit([[note(FENCE_KEY, state="done", value=secrets.token_hex(32))]])
        return made

    def open(self) -> "Book":
        """The ledger as it is now. Raises TableError: missing, unreadable, or of a newer layout."""
        return Book(self.store, self.store.open(), self._clock)


class Book:
    """The ledger at one moment, and the commits made from there on.

    A plan made on this book is held against all that others committed since it was opened, however many
    commits of its own lie between. Not to be shared between tasks.
    """

    def __init__(self, store: DeltaStore, snapshot: Snapshot, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._snapshot = snapshot
        layout = snapshot.transaction(LAYOUT)
        if layout is not None and layout > LAYOUT_NUMBER:
            raise TableError(
                f"{store.uri}: the ledger has layout {layout}, this program knows {LAYOUT_NUMBER}: "
                "it was written by a newer version; upgrade this one"
            )
        missing = set(COLUMNS) - set(snapshot.schema.names)
        if missing:
            raise TableError(
                f"{store.uri}: this is not a ledger (it has no column {', '.join(sorted(missing))}); "
                "`prefix` in evaluator.yaml must name one that is free"
            )
        self.seq = snapshot.transaction(SEQ) or 0
        self._since: dict[Key, list[State]] = {}
        self._open: dict[Key, int] | None = None
        self._appended = 0

    # --- what the integers say

    @property
    def table_id(self) -> str:
        return self._snapshot.table_id

    @property
    def version(self) -> int:
        return self._snapshot.version

    def cursor(self, table_id: str) -> int | None:
        """The version of the spans table up to which every trace has a target row, None before the start."""
        return self._snapshot.transaction(f"live/{table_id}/0of1")

    def cursor_at(self, table_id: str) -> datetime | None:
        """When the cursor's commit was made."""
        return _from_micros(self._snapshot.transaction(f"live_at/{table_id}/0of1"))

    @property
    def floor(self) -> datetime | None:
        """What ended before is out of scope."""
        value = self._snapshot.transaction(FLOOR)
        return None if value is None else datetime.fromtimestamp(value / 1000, UTC)

    def sink_cursor(self, sink: str) -> int:
        return self._snapshot.transaction(f"sink/{sink}") or 0

    def lease(self, scope: str) -> int:
        return self._snapshot.transaction(f"lease/{scope}") or 0

    @property
    def open_from(self) -> int:
        """The lowest `seq` of an open row, so far as the integers say."""
        return self._snapshot.transaction(OPEN) or 0

    # --- what the rows say

    def open_rows(self) -> list[Row]:
        """The open rows (R3), oldest `seq` first."""
        since = self._read(f"seq >= {self.open_from}", _KEY_COLUMNS)
        open_keys = {row.key: row.seq for row in latest(from_arrow_keys(since)).values() if row.due}
        self._open = open_keys
        if not open_keys:
            return []
        ids = pa.array({key.target_id for key in open_keys}, pa.string())
        table = self._read(f"seq >= {self.open_from} and due is not null", COLUMNS)
        rows = from_arrow(table.filter(pc.is_in(table.column("target_id"), ids)))
        return sorted((row for row in rows if open_keys.get(row.key) == row.seq), key=lambda row: row.seq)

    def states(self, target_ids: Collection[str], days: Iterable[date] | None) -> dict[Key, Row]:
        """The newest row of each key of these targets (only what tells its state), in these partitions.

        `days` None reads them all.
        """
        if not target_ids:
            return {}
        columns = [*_KEY_COLUMNS, "day", "skipped", "upto"]
        table = self._read(_in_days(days), columns)
        wanted = pc.is_in(table.column("target_id"), pa.array(set(target_ids), pa.string()))
        return latest(from_arrow_keys(table.filter(wanted)))

    def rows(self, where: str, columns: Sequence[str] = COLUMNS) -> dict[Key, Row]:
        """The newest row of each key among those that satisfy a condition over the ledger's columns."""
        return latest(from_arrow_keys(self._read(where, columns)))

    def table(self, where: str = "true", columns: Sequence[str] = COLUMNS) -> pa.Table:
        """The rows that satisfy a condition, every one of the history."""
        return self._read(where, columns)

    def results(self, trace_ids: Collection[str], days: Iterable[date] | None) -> dict[Key, Row]:
        """The newest row of each result of these traces, whole, in these partitions (None: in all)."""
        if not trace_ids:
            return {}
        table = self._read(f"scorer is not null and {_in_days(days)}", COLUMNS)
        wanted = pc.is_in(table.column("trace_id"), pa.array(set(trace_ids), pa.string()))
        return latest(from_arrow(table.filter(wanted)))

    def of_trace(self, trace_id: str) -> list[Row]:
        """The newest row of each key of one trace, whole, in all partitions."""
        quoted = trace_id.replace("'", "''")
        return list(latest(from_arrow(self._read(f"trace_id = '{quoted}'", COLUMNS))).values())

    def final_since(self, cursor: int, upto: int) -> list[Row]:
        """The newest row of each result's key among those with cursor < seq <= upto (P1), oldest first."""
        table = self._read(f"seq > {cursor} and seq <= {upto} and scorer is not null", COLUMNS)
        return sorted(latest(from_arrow(table)).values(), key=lambda row: row.seq)

    def notes(self) -> dict[str, Row]:
        """The ledger's own notes by name, the newest of each."""
        rows = self._read(f"day = '{UNDATED}' and target_type = '{CONTROL}'", COLUMNS)
        return {row.target_id: row for row in latest(from_arrow(rows)).values()}

    # --- committing

    def commit(
        self,
        units: Sequence[Unit],
        *,
        moved: Moved | None = None,
        floor: datetime | None = None,
    ) -> list[Row]:
        """Commit a plan that was made on this book; the rows that were written, which may be fewer or none.

        On a conflict the plan is rebased on what the others decided and committed again (C2); nobody is
        asked again for what is in it. The cursor never goes back (C3), and stays where it is when a waiting
        row of the plan yields: its spans have to be read again. Raises TableError.
        """
        while True:
            rows = rebase(units, self._since)
            marks = self._marks(moved if waits_stand(units, self._since) else None, floor)
            if not rows and not marks:
                return []
            seq = self.seq + 1
            at = self._time()
            written = stamped(rows, seq=seq, at=at)
            opened = self._open_after(written)
            marks |= {SEQ: seq, AT: _micros(at), LAYOUT: LAYOUT_NUMBER}
            marks[OPEN] = min(opened.values(), default=seq)
            try:
                self._snapshot.append(to_arrow(written), marks)
            except CommitConflict:
                self._reopen()
                continue
            self.seq = seq
            self._open = opened
            self._appended += 1
            if self._appended % REOPENED_EVERY == 0:
                self._snapshot = self._store.open()
            self._see_others()
            return written

    def mark(self, app_id: str, value: int) -> bool:
        """Set a lease or a sink's cursor, alone in a commit; False when another set it since."""
        try:
            self._snapshot.append(to_arrow([]), {app_id: value})
        except CommitConflict:
            self._reopen()
            return False
        self._see_others()
        return True

    def _marks(self, moved: Moved | None, floor: datetime | None) -> dict[str, int]:
        marks: dict[str, int] = {}
        if moved is not None:
            known = self.cursor(moved.table_id)
            if known is not None and moved.begins:
                return {}
            if known is None or moved.cursor > known:
                marks[f"live/{moved.table_id}/0of1"] = moved.cursor
                marks[f"live_at/{moved.table_id}/0of1"] = _micros(moved.cursor_at)
        if floor is not None and (self.floor is None or floor > self.floor):
            marks[FLOOR] = int(floor.timestamp() * 1000)
        return marks

    def _open_after(self, written: Sequence[Row]) -> dict[Key, int]:
        """The open keys once these rows are committed, each with its `seq`."""
        if self._open is None:
            since = self._read(f"seq >= {self.open_from}", _KEY_COLUMNS)
            self._open = {row.key: row.seq for row in latest(from_arrow_keys(since)).values() if row.due}
        opened = dict(self._open)
        for row in written:
            if row.due is not None:
                opened[row.key] = row.seq
            else:
                opened.pop(row.key, None)
        return opened

    def _time(self) -> datetime:
        """Now, but never before what the ledger has seen: `at` follows `seq` (C4)."""
        known = _from_micros(self._snapshot.transaction(AT))
        now = self._clock()
        return now if known is None or now > known else known + timedelta(microseconds=1)

    def _reopen(self) -> None:
        self._snapshot = self._store.open()
        self._see_others()

    def _see_others(self) -> None:
        """See what others committed: the states of their rows, by key, and the open ones anew.

        Also after a commit of one's own: one without rows reads on to the newest version (deltalake 1.6.6).
        """
        seq = self._snapshot.transaction(SEQ) or 0
        if seq > self.seq:
            self._open = None
            rows = from_arrow_keys(self._read(f"seq > {self.seq}", _KEY_COLUMNS))
            for row in sorted(rows, key=lambda row: row.seq):
                self._since.setdefault(row.key, []).append(row.state)
        self.seq = seq

    def _read(self, where: str, columns: Sequence[str]) -> pa.Table:
        names = ", ".join(f'"{name}"' for name in columns)
        return self._snapshot.query(f"select {names} from t where {where}")


def note(name: str, *, state: State, value: str | None = None, metadata: str | None = None) -> Row:
    """One of the ledger's own notes, kept in the partition that retention never touches."""
    return Row(
        day=UNDATED,
        scope="control",
        target_type=CONTROL,
        target_id=name,
        state=state,
        value=value,
        metadata=metadata,
    )


def from_arrow_keys(table: pa.Table) -> list[Row]:
    """Rows of which only some columns were read; the others are at their defaults."""
    defaults = {"day": UNDATED, "scope": ""}
    return from_arrow(
        table if all(name in table.column_names for name in defaults) else _with_defaults(table, defaults)
    )


def _with_defaults(table: pa.Table, defaults: Mapping[str, object]) -> pa.Table:
    for name, value in defaults.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, LEDGER.field(name).type))
    return table


def _in_days(days: Iterable[date] | None) -> str:
    if days is None:
        return "true"
    return "day in (" + ", ".join(f"'{day}'" for day in sorted({*days, UNDATED})) + ")"


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def _from_micros(value: int | None) -> datetime | None:
    return None if value is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=value)
