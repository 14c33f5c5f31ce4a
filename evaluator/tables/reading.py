"""What a ledger's rows say, as of one snapshot."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from evaluator.feedback import Erased
from evaluator.tables.integers import SEQ, Integers
from evaluator.tables.known import Known
from evaluator.tables.rows import (
    COLUMNS,
    FORGOTTEN,
    UNDATED,
    Key,
    Row,
    from_arrow,
    latest,
    newest_of_each,
)
from evaluator.tables.schemas import LEDGER
from evaluator.tables.snapshot import Snapshot, quoted

CONTROL = "CONTROL"
"""The target type of the ledger's own notes (the fence's key, what is paused, known scorers)."""
NAMED_CHARACTERS = 16_384
"""So much text of ids a query may name, some 500 of traces. One that names 200 takes the CPU of reading 500,000 rows and
looking there, and 3 MB in place of 150; one that names 2,000 takes four times the CPU (deltalake 1.6.6)."""
KEY_COLUMNS = ["seq", "target_type", "target_id", "scorer", "version", "revision", "state", "due"]
TURN_COLUMNS = ["day", "trace_id", "session_id", "first", "last", "trace_start", "upto", "reason", "at"]
"""Beside the key: what tells of a decision where it stands in time, and of a session which turns it knows."""


class Reading(Integers):
    """The rows of a ledger at one moment. `missing`: the columns of this version that an older ledger lacks."""

    def __init__(self, snapshot: Snapshot, missing: list[str]) -> None:
        super().__init__(snapshot)
        self.seq = snapshot.transaction(SEQ) or 0
        self._missing = missing
        self._known = Known()
        self._open: dict[Key, int] | None = None
        self._of_sessions: pa.Table | None = None

    @property
    def table_id(self) -> str:
        return self._snapshot.table_id

    @property
    def version(self) -> int:
        return self._snapshot.version

    def open_rows(self) -> list[Row]:
        """The open rows (R3), oldest `seq` first."""
        since = self._read(f"seq >= {self.open_from}", KEY_COLUMNS)
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
        columns = [*KEY_COLUMNS, "day", "skipped", "upto", "reason"]
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
            self._of_sessions = self._read(where, [*KEY_COLUMNS, *TURN_COLUMNS])
        return latest(_of_these(self._of_sessions, "target_id", session_ids))

    def turns(self, session_ids: Collection[str], within: tuple[date, date]) -> list[Row]:
        """The newest decision on each trace of these sessions, from the partitions of a range of days."""
        days = f"(day = '{UNDATED}' or day >= '{within[0]}' and day <= '{within[1]}')"
        where = f"{days} and target_type = 'TRACE' and scorer is null and state = 'done' and session_id is not null"
        table = self._read(where, [*KEY_COLUMNS, *TURN_COLUMNS])
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
        columns = [*KEY_COLUMNS, "trace_id", "span_id", "session_id", "reason", "at"]
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
