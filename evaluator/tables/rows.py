"""A row of the ledger."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from evaluator.errors import TableError
from evaluator.feedback import Erased, SourceType, Target
from evaluator.shards import WHOLE, Shard
from evaluator.tables.schemas import LEDGER, TIMESTAMP

State = Literal["waiting", "done", "scored", "deferred", "unscored", "replaced"]

UNDATED = date(1970, 1, 1)
"""The partition of targets whose times are absurd, and of the ledger's own control rows."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FORGOTTEN = "forgotten"
"""The reason of a decision that stands in the place of everything the ledger knew of a target."""


class Key(NamedTuple):
    """What a row tells the state of: a target, or a target's result by one version of a scorer."""

    target_type: str
    target_id: str
    scorer: str | None = None
    version: str | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, its fields named and ordered as the ledger's columns. `seq` and `at` are given at the commit: only what
    was read from the ledger has them.

    A target row has no scorer. A row with a `due` is open: waiting, deferred, or to be tried again.
    """

    seq: int = 0
    day: date
    scope: str
    target_type: str
    target_id: str
    trace_id: str | None = None
    span_id: str | None = None
    session_id: str | None = None
    scorer: str | None = None
    version: str | None = None
    revision: int = 0
    state: State
    reason: str | None = None
    due: datetime | None = None
    attempts: int = 0
    first: datetime | None = None
    last: datetime | None = None
    commits: Sequence[int] = ()
    upto: datetime | None = None
    set: str | None = None
    skipped: str | None = None
    run_id: str | None = None
    at: datetime | None = None
    value: str | None = None
    passed: bool | None = None
    rationale: str | None = None
    error: str | None = None
    source_type: SourceType | None = None
    model: str | None = None
    calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    metadata: str | None = None
    trace_start: datetime | None = None

    @property
    def key(self) -> Key:
        return Key(self.target_type, self.target_id, self.scorer, self.version, self.revision)

    @property
    def forgotten(self) -> bool:
        """Whether the target was erased: it is decided, and nothing of it is ever judged again."""
        return self.scorer is None and self.reason == FORGOTTEN

    @property
    def erased(self) -> Erased:
        """What a row erased that stands in the place of others."""
        return Erased(target=self.target, revision=self.revision)

    @property
    def goes_on(self) -> bool:
        """Whether it is a session's wait. Within the unit of a turn it says that the session went on."""
        return self.target_type == "SESSION" and self.state == "waiting"

    @property
    def target(self) -> Target:
        return Target(
            type=self.target_type,  # type: ignore[arg-type]  # a column of text; written from a Target
            target_id=self.target_id,
            trace_id=self.trace_id or "",
            span_id=self.span_id,
            session_id=self.session_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Marks that ride on a commit: the live cursor of a spans table, with the time of its commit, and what tells that from
    the commit of another copy of the table.

    `begins`: it says where scoring starts, which is said once; a cursor that is there already stays.
    """

    table_id: str
    cursor: int
    cursor_at: datetime
    cursor_mark: int | None = None
    shard: Shard = WHOLE
    begins: bool = False


Unit = list[Row]
"""Rows that are committed together or not at all; the first one speaks for the unit."""

COLUMNS = [field.name for field in fields(Row)]
REQUIRED = {"seq", *(field.name for field in fields(Row) if field.default is MISSING)}
"""The columns without which a table is no ledger; a ledger of an older layout may lack others."""


def to_arrow(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of the ledger's schema."""
    return pa.table({name: [getattr(row, name) for row in rows] for name in COLUMNS}, schema=LEDGER)


def stamped(rows: Sequence[Row], *, seq: int, at: datetime) -> pa.Table:
    """Rows as they are committed: under one `seq`, at one time. As columns: copies of the rows take six times as long."""
    table = to_arrow(rows)
    for name, value in (("seq", seq), ("at", at)):
        field = LEDGER.field(name)
        stamps = pa.repeat(pa.scalar(value, field.type), len(rows))
        table = table.set_column(table.schema.get_field_index(name), field, stamps)
    return table


def from_arrow(table: pa.Table) -> list[Row]:
    """Rows of a table that has the ledger's columns, or those of them that were asked for. Raises TableError."""
    names = table.column_names
    nothing = [name for name in names if name in REQUIRED and table.column(name).null_count]
    if nothing:
        raise TableError(
            f"the ledger has rows without {', '.join(nothing)}: none of ours lacks it; RESTORE it"
        )
    columns = [_values(table.column(name)) for name in names]
    return [
        Row(**{name: value for name, value in zip(names, values, strict=True) if value is not None})
        for values in zip(*columns, strict=True)
    ]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column, None for an empty list. Times are few among many rows: each is made once (by `to_pylist`
    they take most of the time of reading a row)."""
    if pa.types.is_timestamp(column.type):
        micros = column.cast(TIMESTAMP).cast(pa.int64()).to_pylist()
        moments = {one: None if one is None else EPOCH + timedelta(microseconds=one) for one in set(micros)}
        return [moments[one] for one in micros]
    values: list[Any] = column.to_pylist()
    return [one or None for one in values] if pa.types.is_list(column.type) else values


def latest(rows: Iterable[Row]) -> dict[Key, Row]:
    """The state of each key: its row with the highest `seq`."""
    newest: dict[Key, Row] = {}
    for row in rows:
        known = newest.get(row.key)
        if known is None or row.seq >= known.seq:
            newest[row.key] = row
    return newest


def newest_of_each(kind: str, states: Mapping[Key, Row]) -> dict[str, Row]:
    """The target row of the newest revision of each target of a kind, by its id."""
    of_kind = [row for row in states.values() if row.target_type == kind and row.scorer is None]
    return {row.target_id: row for row in sorted(of_kind, key=lambda row: row.revision)}


def widened(row: Row, other: Row) -> Row:
    """A session's row, also of what another one of that session knows: from when to when, and when it is due."""
    if other.forgotten:
        return replace(row, trace_start=min(filter(None, (row.trace_start, other.trace_start)), default=None))
    earlier = other if (other.trace_start or _LATEST) < (row.trace_start or _LATEST) else row
    return replace(
        row,
        day=earlier.day,
        trace_id=earlier.trace_id,
        trace_start=earlier.trace_start,
        first=min(filter(None, (row.first, other.first)), default=None),
        last=max(filter(None, (row.last, other.last)), default=None),
        due=max(filter(None, (row.due, other.due)), default=None),
    )


_LATEST = datetime.max.replace(tzinfo=UTC)


def tombstone(target: Target, revision: int = 0, trace_start: datetime | None = None) -> Row:
    """What is left of a target that is forgotten: that it is decided, without a word about it; of a session, which may go
    on, also when its first turn began.

    In the partition that is always read and that retention never touches.
    """
    return Row(
        day=UNDATED,
        scope="forget",
        target_type=target.type,
        target_id=target.target_id,
        trace_id=target.trace_id,
        session_id=target.target_id if target.type == "SESSION" else None,
        revision=revision,
        state="done",
        reason=FORGOTTEN,
        set="{}",
        trace_start=trace_start,
    )


def partition_day(earliest: datetime | None, now: datetime) -> date:
    """The UTC date of a target's earliest span; hostile times share one partition."""
    if earliest is None or earliest.year < 2020 or earliest > now + timedelta(days=1):
        return UNDATED
    return earliest.astimezone(UTC).date()
