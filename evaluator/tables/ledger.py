"""The ledger: every decision exactly once, whatever is killed, raced or replayed.

One application transaction, `seq`, guards every deciding commit; its value is also a column of every row.
It is the lock, the total order and the publishers' cursor.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.integers import LAYOUT, LAYOUT_NUMBER, OPEN, SEQ
from evaluator.tables.reading import CONTROL, KEY_COLUMNS, TURN_COLUMNS, Reading, from_arrow_keys
from evaluator.tables.rows import (
    COLUMNS,
    REQUIRED,
    UNDATED,
    Key,
    Moved,
    Row,
    State,
    Unit,
    latest,
    stamped,
    to_arrow,
)
from evaluator.tables.schemas import LEDGER
from evaluator.tables.snapshot import CommitConflict, Snapshot
from evaluator.tables.yielding import Tail, gone_on, rebase, waits_stand

log = logging.getLogger(__name__)

FENCE_KEY = "fence-key"
SCORER_NOTE = "scorer/"
PAUSE_NOTE = "pause/"
TRANSACTION_EXPIRY = "delta.setTransactionRetentionDuration"
PROPERTIES = {"delta.dataSkippingStatsColumns": "seq,due", "delta.logRetentionDuration": "interval 7 days"}
"""Bounds of ids and texts skip nothing, slow every opening down, and would copy the beginnings of rationales into the
log. Nobody reads the ledger by its log, which after a year of commits would be most of what opening it reads."""
REOPENED_EVERY = 16
"""Appends through one opened table: each makes the next slower, 31 ms growing to 219 ms at 1,200 (deltalake 1.6.6)."""

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


class Book(Reading):
    """The ledger at one moment, and the commits made from there on.

    A plan made on this book is held against all that others committed since it was opened, however many
    commits of its own lie between. Not to be shared between tasks.
    """

    def __init__(self, store: DeltaStore, snapshot: Snapshot, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        super().__init__(snapshot, missing_columns(snapshot))
        self._since = Tail()
        self._sessions_since: dict[str, Row] = {}
        self._gone: set[tuple[str, str]] = set()
        self._gone_are_read = False
        self._appended = 0
        self.others_upto = 0

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

    def read_on(self) -> None:
        """See what others committed until now. Raises TableError."""
        if self._store.has_commit_after(self.version):
            self._reopen()

    def replace(self, where: str, rows: Sequence[Row], *, floor: datetime | None = None) -> bool:
        """Commit rows in the place of all those that satisfy a condition, as they have to themselves.

        Guarded like any other commit; False when another came between: look again at what is there. Raises
        TableError.
        """
        seq = self.seq + 1
        at = self._time()
        left = self._read(f"seq >= {self.open_from} and ({where}) is not true", KEY_COLUMNS)
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
            since = self._read(f"seq >= {self.open_from}", KEY_COLUMNS)
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
        if self._missing:  # the commit, or another's, may have added them
            self._missing = missing_columns(self._snapshot)
        seq = self._snapshot.transaction(SEQ) or 0
        if seq > self.seq:
            self.others_upto = seq
            self._open = None
            rows = from_arrow_keys(self._read(f"seq > {self.seq}", [*KEY_COLUMNS, *TURN_COLUMNS]))
            self._known.add(rows)
            for row in sorted(rows, key=lambda row: row.seq):
                self._since.add(row.key, row.state)
                if row.target_type == "SESSION" and row.scorer is None:
                    known = self._sessions_since.get(row.target_id, row)
                    if row.revision >= known.revision:
                        self._sessions_since[row.target_id] = row
                if row.forgotten:
                    self._gone.add((row.target_type, row.target_id))
        self.seq = seq


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
