"""The ledger: every decision exactly once, whatever is killed, raced or replayed.

One application transaction, `seq`, guards every deciding commit; its value is also a column of every row.
It is the lock, the total order and the publishers' cursor.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from evaluator.errors import TableError
from evaluator.feedback import Erased
from evaluator.tables.delta import DeltaStore
from evaluator.tables.integers import LAYOUT, LAYOUT_NUMBER, OPEN, SEQ, Integers
from evaluator.tables.known import Known
from evaluator.tables.rows import (
    COLUMNS,
    FORGOTTEN,
    REQUIRED,
    UNDATED,
    Key,
    Moved,
    Row,
    State,
    Unit,
    from_arrow,
    gone_on,
    latest,
    newest_of_each,
    rebase,
    stamped,
    to_arrow,
    waits_stand,
)
from evaluator.tables.schemas import LEDGER
from evaluator.tables.snapshot import CommitConflict, Snapshot, quoted

log = logging.getLogger(__name__)

CONTROL = "CONTROL"
"""The target type of the ledger's own notes (the fence's key, what is paused, known scorers)."""
FENCE_KEY = "fence-key"
SCORER_NOTE = "scorer/"
PAUSE_NOTE = "pause/"
TRANSACTION_EXPIRY = "delta.setTransactionRetentionDuration"
PROPERTIES = {"delta.dataSkippingStatsColumns": "seq,due", "delta.logRetentionDuration": "interval 7 days"}
"""Bounds of ids and texts skip nothing, slow every opening down, and would copy the beginnings of rationales into the
log. Nobody reads the ledger by its log, which after a year of commits would be most of what opening it reads."""
REOPENED_EVERY = 16
"""Appends through one opened table: each makes the next slower, 31 ms growing to 219 ms at 1,200 (deltalake 1.6.6)."""
NAMED_CHARACTERS = 16_384
"""So much text of ids a query may name, some 500 of traces. One that names 200 takes the CPU of reading 500,000 rows and
looking there, and 3 MB in place of 150; one that names 2,000 takes four times the CPU (deltalake 1.6.6)."""
_KEY_COLUMNS = ["seq", "target_type", "target_id", "scorer", "version", "revision", "state", "due"]
_TURN_COLUMNS = ["day", "trace_id", "session_id", "first", "last", "trace_start", "upto", "reason", "at"]
"""Beside the key: what tells of a decision where it stands in time, and of a session which turns it knows."""

Clock = Callable[[], datetime]


class Ledger:
    """Where the ledger lies. `open` gives a book to read from and commit to; make one for each piece of work."""

    def __init__(self, store: DeltaStore, clock: Clock) -> None:
        self.store = store
        self._clock = clock

    def provision(self) -> bool:
        """Create the ledger with the fence's key, if there is none. True when this call made it."""
        made = self.store.create(
            LEDGER,
            partition_by=["day"],
            description="Provisioned by evaluator: the ledger of decisions",
            configuration=PROPERTIES,
        )
        book = self.open()
        if FENCE_KEY not in book.notes():
            book.commit([[note(FENCE_KEY, state="done", value=secrets.token_hex(32))]])
        return made

    def open(self) -> "Book":
        """The ledger as it is now. Raises TableError: missing, unreadable, or of a newer layout."""
        return Book(self.store, self.store.open(), self._clock)


class Book(Integers):
    """The ledger at one moment, and the commits made from there on.

    A plan made on this book is held against all that others committed since it was opened, however many
    commits of its own lie between. Not to be shared between tasks.
    """

    def __init__(self, store: DeltaStore, snapshot: Snapshot, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        super().__init__(snapshot)
        self._missing = missing_columns(snapshot)
        self.seq = snapshot.transaction(SEQ) or 0
        self._since: dict[Key, list[State]] = {}
        self._sessions_since: dict[str, Row] = {}
        self._of_sessions: pa.Table | None = None
        self._open: dict[Key, int] | None = None
        self._gone: set[tuple[str, str]] = set()
        self._gone_are_read = False
        self._known = Known()
        self._appended = 0

    @property
    def table_id(self) -> str:
        return self._snapshot.table_id

    @property
    def version(self) -> int:
        return self._snapshot.version

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

    def states(self, target_ids: Collection[str], days: Collection[date] | None) -> dict[Key, Row]:
        """The newest row of each key of these targets (only what tells its state), in these partitions.

        `days` None reads them all. What was decided stays so, though late spans may wait to be known as late.
        """
        if not target_ids:
            return {}
        if days is not None and _too_long_to_name(target_ids):
            target_ids = self._known_of(target_ids, days)
            if not target_ids:
                return {}
        columns = [*_KEY_COLUMNS, "day", "skipped", "upto", "reason"]
        rows = from_arrow_keys(self._read_of("target_id", target_ids, _in_days(days), columns))
        return latest(rows) | latest(row for row in rows if row.state == "done")

    def decided(self, target_ids: Collection[str], days: Iterable[date] | None = None) -> dict[Key, Row]:
        """Every decision on these traces, whole, from these partitions (None: from all)."""
        if not target_ids:
            return {}
        where = "target_type = 'TRACE' and scorer is null and state = 'done'"
        table = self._read_of("target_id", target_ids, f"{where} and {_in_days(days)}", COLUMNS)
        return latest(from_arrow(table))

    def of_sessions(self, session_ids: Collection[str]) -> dict[Key, Row]:
        """What was decided and said of these sessions when this book was first asked: the newest row of each key, only
        what tells its state and its turns.

        From all partitions, once for all that are asked for: a session may go on at any time.
        """
        if self._of_sessions is None:
            where = "target_type = 'SESSION' and state <> 'waiting'"
            self._of_sessions = self._read(where, [*_KEY_COLUMNS, *_TURN_COLUMNS])
        return latest(_of_these(self._of_sessions, "target_id", session_ids))

    def turns(self, session_ids: Collection[str], within: tuple[date, date]) -> list[Row]:
        """The newest decision on each trace of these sessions, from the partitions of a range of days."""
        days = f"(day = '{UNDATED}' or day >= '{within[0]}' and day <= '{within[1]}')"
        where = f"{days} and target_type = 'TRACE' and scorer is null and state = 'done' and session_id is not null"
        table = self._read(where, [*_KEY_COLUMNS, *_TURN_COLUMNS])
        of_these = {row.target_id for row in _of_these(table, "session_id", session_ids)}
        newest = newest_of_each("TRACE", latest(_of_these(table, "target_id", of_these)))
        return [row for row in newest.values() if row.session_id in session_ids]

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
        where = f"scorer is not null and {_in_days(days)}"
        return latest(from_arrow(self._read_of("trace_id", trace_ids, where, COLUMNS)))

    def session_results(self, session_ids: Collection[str]) -> dict[Key, Row]:
        """The newest row of each result of these sessions, whole, from all partitions."""
        if not session_ids:
            return {}
        where = "target_type = 'SESSION' and scorer is not null"
        return latest(from_arrow(self._read_of("target_id", session_ids, where, COLUMNS)))

    def of_trace(self, trace_id: str) -> list[Row]:
        """The newest row of each key of one trace, whole, in all partitions."""
        return list(latest(from_arrow(self._read(f"trace_id = {quoted(trace_id)}", COLUMNS))).values())

    def of_session(self, session_id: str) -> list[Row]:
        """The newest row of each key of one session, whole, in all partitions; not those of its traces."""
        where = f"target_type = 'SESSION' and target_id = {quoted(session_id)}"
        return list(latest(from_arrow(self._read(where, COLUMNS))).values())

    def final_since(self, cursor: int, upto: int) -> list[Row]:
        """The newest row of each result's key among those with cursor < seq <= upto (P1), oldest first."""
        table = self._read(f"seq > {cursor} and seq <= {upto} and scorer is not null", COLUMNS)
        return sorted(latest(from_arrow(table)).values(), key=lambda row: row.seq)

    def seq_before(self, at: datetime) -> int:
        """The `seq` after which every row lies that is as new as `at` or newer."""
        told = self._snapshot.query(
            f"""select min(seq) as first from t where "at" >= timestamptz '{at.isoformat()}'"""
        )
        first = told.column("first")[0].as_py()
        return self.seq if first is None else int(first) - 1

    def forgotten(self, cursor: int, upto: int) -> list[Erased]:
        """What was erased by the commits with cursor < seq <= upto."""
        return [row.erased for row in self.tombstones(f"seq > {cursor} and seq <= {upto}")]

    def tombstones(self, where: str = "true") -> list[Row]:
        """What stands in the place of the targets that were erased."""
        columns = [*_KEY_COLUMNS, "trace_id", "span_id", "session_id", "reason", "at"]
        rows = self.rows(f"day = '{UNDATED}' and reason = '{FORGOTTEN}' and {where}", columns)
        return [row for row in rows.values() if row.forgotten]

    def days(self, before: date) -> dict[date, tuple[int, int]]:
        """The partitions before a day: the highest `seq` in each, and how many rows it holds."""
        told = self._snapshot.query(
            f"select day, max(seq) as newest, count(*) as rows from t where day < '{before}' group by day"
        )
        return {row["day"]: (row["newest"], row["rows"]) for row in told.to_pylist()}

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
        decisions_yield: bool = False,
    ) -> list[Row]:
        """Commit a plan that was made on this book; those of its rows that were written, which may be fewer or none.

        On a conflict the plan is rebased on what the others decided and committed again (C2); nobody is
        asked again for what stays in it (`decisions_yield`: see `rebase`). The cursor never goes back (C3), and
        stays where it is when a waiting row of the plan yields: its spans have to be read again. Raises TableError.
        """
        while True:
            units = self._without_forgotten(units)
            if self._sessions_since:
                units = [gone_on(unit, self._sessions_since) for unit in units]
            rows = rebase(units, self._since, decisions_yield=decisions_yield)
            marks = self._marks(moved if waits_stand(units, self._since) else None, floor)
            if not rows and not marks:
                return []
            seq = self.seq + 1
            at = self._time()
            opened = self._open_after(rows, seq)
            marks |= self._guard(seq, at)
            marks[OPEN] = min(opened.values(), default=seq)
            if self._missing and rows:
                log.info(
                    "the ledger gets the columns of this version", extra={"columns": list(self._missing)}
                )
            try:
                self._snapshot.append(stamped(rows, seq=seq, at=at), marks)
            except CommitConflict:
                self._reopen()
                continue
            self.seq = seq
            self._open = opened
            self._known.add(rows)
            self._appended += 1
            if self._appended % REOPENED_EVERY == 0:
                self._snapshot = self._store.open()
            self._see_others()
            return rows

    def replace(self, where: str, rows: Sequence[Row], *, floor: datetime | None = None) -> bool:
        """Commit rows in the place of all those that satisfy a condition, as they have to themselves.

        Guarded like any other commit; False when another came between: look again at what is there. Raises
        TableError.
        """
        seq = self.seq + 1
        at = self._time()
        left = self._read(f"seq >= {self.open_from} and ({where}) is not true", _KEY_COLUMNS)
        opened = {row.key: row.seq for row in latest(from_arrow_keys(left)).values() if row.due}
        marks = self._marks(None, floor) | self._guard(seq, at)
        marks[OPEN] = min(opened.values(), default=seq)
        known = [name for name in COLUMNS if name not in self._missing]
        try:
            self._snapshot.replace(where, stamped(rows, seq=seq, at=at).select(known), marks)
        except CommitConflict:
            self._reopen()
            return False
        self.seq = seq
        self._open = opened
        self._known.add(rows)
        self._see_others()
        return True

    def share_out(self, count: int, table_id: str) -> bool:
        """Share the live work out among so many workers: each goes on where the last of the old ones is (S3).

        False when another committed meanwhile: look again. Raises TableError.
        """
        marks = self._shared_out(count, table_id) | self._guard(self.seq + 1, self._time())
        try:
            self._snapshot.append(to_arrow([]), marks)
        except CommitConflict:
            self._reopen()
            return False
        self.seq += 1
        self._see_others()
        return True

    def mark(self, app_id: str, value: int) -> bool:
        """Set a lease or a sink's cursor, alone in a commit; False when another set it since."""
        try:
            self._snapshot.append(to_arrow([]), {app_id: value})
        except CommitConflict:
            self._reopen()
            return False
        self._see_others()
        return True

    def _open_after(self, written: Sequence[Row], seq: int) -> dict[Key, int]:
        """The open keys once these rows are committed as `seq`, each with its own."""
        if self._open is None:
            since = self._read(f"seq >= {self.open_from}", _KEY_COLUMNS)
            self._open = {row.key: row.seq for row in latest(from_arrow_keys(since)).values() if row.due}
        opened = dict(self._open)
        for row in written:
            if row.due is not None:
                opened[row.key] = seq
            else:
                opened.pop(row.key, None)
        return opened

    def _time(self) -> datetime:
        """Now, but never before what the ledger has seen: `at` follows `seq` (C4)."""
        known, now = self.last_at, self._clock()
        return now if known is None or now > known else known + timedelta(microseconds=1)

    def _without_forgotten(self, units: Sequence[Unit]) -> list[Unit]:
        """A plan without what is about forgotten targets: traces ever, sessions since this book was opened.

        That a session goes on stays: it is judged again, without the turns that were forgotten.
        """
        if all(row.trace_id is None for unit in units for row in unit):
            return list(units)
        if not self._gone_are_read:
            erased = [one.target for one in self.forgotten(0, self.seq)]
            self._gone |= {(target.type, target.target_id) for target in erased if target.type == "TRACE"}
            self._gone_are_read = True
        if not self._gone:
            return list(units)
        kept = []
        for unit in units:
            head, *rest = unit
            if not self._is_gone(head):
                others = [
                    replace(row, trace_id=head.trace_id) if row.goes_on and self._is_gone(row) else row
                    for row in rest
                    if row.goes_on or not self._is_gone(row)
                ]
                kept.append([head, *others])
        return kept

    def _is_gone(self, row: Row) -> bool:
        return bool(self._gone & {("TRACE", row.trace_id), row.key[:2]})

    def _reopen(self) -> None:
        self._snapshot = self._store.open()
        self._missing = missing_columns(self._snapshot)
        self._see_others()

    def _see_others(self) -> None:
        """See what others committed: the states of their rows, by key, and the open ones anew.

        Also after a commit of one's own: one without rows reads on to the newest version (deltalake 1.6.6).
        """
        seq = self._snapshot.transaction(SEQ) or 0
        if seq > self.seq:
            self._open = None
            rows = from_arrow_keys(self._read(f"seq > {self.seq}", [*_KEY_COLUMNS, *_TURN_COLUMNS]))
            self._known.add(rows)
            for row in sorted(rows, key=lambda row: row.seq):
                self._since.setdefault(row.key, []).append(row.state)
                if row.target_type == "SESSION" and row.scorer is None:
                    known = self._sessions_since.get(row.target_id, row)
                    if row.revision >= known.revision:
                        self._sessions_since[row.target_id] = row
                if row.forgotten:
                    self._gone.add((row.target_type, row.target_id))
        self.seq = seq

    def _known_of(self, target_ids: Collection[str], days: Collection[date]) -> set[str]:
        """Those of many targets of which these days may have rows."""
        days = {*days, UNDATED}
        unread = self._known.unread(days)
        if unread:
            self._known.take_in(unread, self._read(_in_days(unread), ["day", "target_id"]))
        return self._known.among(target_ids, days)

    def _read_of(self, column: str, ids: Collection[str], where: str, columns: Sequence[str]) -> pa.Table:
        """The rows of some ids: few are named in the query, so that no others are held; many are looked for here."""
        if not _too_long_to_name(ids):
            return self._read(f"{where} and {column} in ({', '.join(map(quoted, ids))})", columns)
        wanted = pa.array(set(ids), pa.string())
        return self._read(where, columns, lambda table: table.filter(pc.is_in(table.column(column), wanted)))

    def _read(
        self, where: str, columns: Sequence[str], keep: Callable[[pa.Table], pa.Table] | None = None
    ) -> pa.Table:
        names = ", ".join(f'"{name}"' for name in columns)
        if not self._missing:
            return self._snapshot.query(f"select {names} from t where {where}", keep)
        added = ", ".join(f'null as "{name}"' for name in self._missing)
        table = self._snapshot.query(f"select {names} from (select *, {added} from t) where {where}", keep)
        return table.cast(pa.schema([LEDGER.field(name) for name in columns]))


def missing_columns(snapshot: Snapshot) -> list[str]:
    """The columns of this version that an older ledger lacks; the first commit with rows adds them.

    Raises TableError: the table is no ledger, one of a newer layout, or one that forgets its transactions.
    """
    uri = snapshot.store.uri
    layout = snapshot.transaction(LAYOUT)
    if layout is not None and layout > LAYOUT_NUMBER:
        raise TableError(
            f"{uri}: the ledger has layout {layout}, this program knows {LAYOUT_NUMBER}: "
            "it was written by a newer version; upgrade this one"
        )
    missing = [name for name in COLUMNS if name not in snapshot.schema.names]
    if REQUIRED.intersection(missing):
        raise TableError(
            f"{uri}: this is not a ledger (it has no column {', '.join(sorted(missing))}); "
            "`prefix` in evaluator.yaml must name one that is free"
        )
    expiry = snapshot.configuration.get(TRANSACTION_EXPIRY)
    if expiry is not None:
        raise TableError(
            f"{uri}: the table forgets its transactions after {expiry}, and with them what was decided: "
            f"ALTER TABLE … UNSET TBLPROPERTIES ('{TRANSACTION_EXPIRY}') takes that off"
        )
    return missing


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


def _of_these(table: pa.Table, column: str, ids: Collection[str]) -> list[Row]:
    """The rows in which a column has one of some values."""
    wanted = pc.is_in(table.column(column), pa.array(set(ids), pa.string()))
    return from_arrow_keys(table.filter(wanted))


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


def _too_long_to_name(ids: Collection[str]) -> bool:
    return sum(map(len, ids)) > NAMED_CHARACTERS


def _in_days(days: Iterable[date] | None) -> str:
    if days is None:
        return "true"
    return "day in (" + ", ".join(f"'{day}'" for day in sorted({*days, UNDATED})) + ")"
