"""The spans table: what came since a cursor, what belongs to a trace, what lies in a range of time."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from evaluator.errors import TableError
from evaluator.portions import portions
from evaluator.tables.actions import Commit, DataFile, interval
from evaluator.tables.decoding import spans_of
from evaluator.tables.delta import DeltaStore
from evaluator.tables.snapshot import Snapshot
from evaluator.traces.assembly import Arrival

log = logging.getLogger(__name__)

COLUMNS = (
    "time",
    "service_name",
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "attributes",
    "events",
    "status",
    "resource",
    "instrumentation_scope",
)
"""What a trace is made of; the other columns of the table are not read."""

REQUIRED = ("trace_id", "span_id", "name", "start_time_unix_nano", "attributes")
PROVISIONED = "Provisioned by evaluator"
"""How the description of a table that `init` made begins."""

IDENTITY = ("trace_id", "span_id", "start_time_unix_nano", "time")
FOUND_BY_TIME = -1
"""The commit of spans that were taken by their time: no log has it, so they are found by time again."""
HEX_ID = "^[0-9a-fA-F]{32}$"
SPANS_A_BATCH = 50_000
TRACES_A_PORTION = 1_000
COMMITS_A_LOOK = 32
"""How many commits are looked at before their files are read."""

CATCH_UP_MARGIN = timedelta(days=1)
LOG_KEPT_FOR = timedelta(days=30)
"""What Delta tables do where nothing else is said."""
LONGEST_TRACE = timedelta(days=1)
"""How far a trace's spans may lie from its root's start to be read with it over a range of time."""

CLEANED_UP = "its log was cleaned up past the cursor"
SHORTER = "its log ends before the cursor: cut off, or an older copy was put back"
ANOTHER = "its log is another one than was read: an older copy was put back"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """What the commits after a cursor, up to `upto`, brought. `upto_mark` tells that commit, where it can be read.

    `by_time`: the spans were found by their times, so that the batch may hold more than is new, never less; `caught_up`:
    why, where the log could not be followed.
    """

    arrivals: list[Arrival]
    upto: int
    upto_at: datetime
    upto_mark: int | None
    more: bool
    by_time: bool
    caught_up: str | None = None


class SpansTable:
    """Where the spans lie. `open` gives the table as it is now."""

    def __init__(self, store: DeltaStore, clock: Callable[[], datetime]) -> None:
        self.store = store
        self._clock = clock

    def open(self) -> "SpansSnapshot":
        """Raises TableError: missing, foreign, unreadable."""
        snapshot = self.store.open()
        missing = [name for name in REQUIRED if name not in snapshot.schema.names]
        if missing:
            raise TableError(
                f"{self.store.uri}: this is not a table of OpenTelemetry spans (it has no column "
                f"{', '.join(missing)}); `spans` or `prefix` in evaluator.yaml must name the right one"
            )
        return SpansSnapshot(snapshot, self._clock)


class SpansSnapshot:
    """The spans table as of one version."""

    def __init__(self, snapshot: Snapshot, clock: Callable[[], datetime]) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._columns = [name for name in COLUMNS if name in snapshot.schema.names]
        self._time_column = "time" if "time" in snapshot.schema.names else "start_time_unix_nano"

    @property
    def version(self) -> int:
        return self._snapshot.version

    @property
    def table_id(self) -> str:
        return self._snapshot.table_id

    @property
    def ours(self) -> bool:
        """Whether `evaluator init` made this table."""
        return self._snapshot.description.startswith(PROVISIONED)

    @property
    def log_kept_for(self) -> timedelta:
        """How long the table's log keeps its commits before they may be cleaned up."""
        return interval(self._snapshot.configuration.get("delta.logRetentionDuration")) or LOG_KEPT_FOR

    def log_keeps_until(self, version: int) -> datetime | None:
        """From when on a commit may be cleaned up; None when it is no longer in the log."""
        commit = self._snapshot.commit(version)
        if commit is None:
            return None
        made = commit.at or max((file.modified for file in commit.added), default=self._clock())
        return made + self.log_kept_for

    def since(self, cursor: int, cursor_at: datetime | None, cursor_mark: int | None = None) -> SpanBatch:
        """The next batch after a cursor: whole commits, until they hold enough spans.

        A commit that can no longer be read, or another one than was read (by its mark) at the cursor: the files that
        are not older than the cursor's commit, less a day. Raises TableError.
        """
        now = self._clock()
        arrivals: list[Arrival] = []
        if cursor > self.version:
            return self._catch_up(SHORTER, cursor, cursor_at, now)
        if cursor_mark is not None and self.mark(cursor) not in (cursor_mark, None):
            return self._catch_up(ANOTHER, cursor, cursor_at, now)
        version, at, mark = cursor, cursor_at or now, cursor_mark
        try:
            for commit, tables in self._commits(range(cursor + 1, self.version + 1)):
                arrivals += _arrived(commit, tables, now)
                version, at, mark = commit.version, commit.at or now, commit.mark
                if len(arrivals) >= SPANS_A_BATCH:
                    break
        except FileNotFoundError:
            return self._catch_up(CLEANED_UP, cursor, cursor_at, now)
        return SpanBatch(
            arrivals=arrivals,
            upto=version,
            upto_at=min(at, now),
            upto_mark=mark,
            more=version < self.version,
            by_time=not self._snapshot.raw_readable,
        )

    def mark(self, version: int) -> int | None:
        """What tells a commit from that of another copy of the table; None where it cannot be read any more."""
        commit = self._snapshot.commit(version)
        return None if commit is None else commit.mark

    def of_traces(
        self, trace_ids: Collection[str], commits: Iterable[int], around: tuple[datetime, datetime] | None
    ) -> list[Arrival]:
        """The spans of some traces, from the commits that brought them.

        When such a commit is gone (cleaned up, or its files compacted away and vacuumed), and for what no
        commit is known of, the files are taken by time: `around`, less and more a day; None reads them all.
        """
        now = self._clock()
        arrivals: list[Arrival] = []
        try:
            for commit, tables in self._commits(sorted(set(commits))):
                arrivals += _arrived(commit, tables, now, trace_ids)
        except FileNotFoundError:
            return self.around(trace_ids, around)
        return arrivals

    def around(
        self, trace_ids: Collection[str] | None, around: tuple[datetime, datetime] | None
    ) -> list[Arrival]:
        """The spans (of some traces, or all) whose times lie in a range, widened by a day on both sides."""
        start, end = (
            (None, None)
            if around is None
            else (_shifted(around[0], -LONGEST_TRACE), _shifted(around[1], LONGEST_TRACE))
        )
        now = self._clock()
        if not self._snapshot.raw_readable:
            table = self._snapshot.query(self._select(start, end))
            return _decoded(table, now, FOUND_BY_TIME, trace_ids)
        files = [file for file in self._snapshot.files(self._time_column) if file.overlaps(start, end)]
        return self._found_by_time(files, now, trace_ids)

    def ids_between(
        self, start: datetime, end: datetime
    ) -> Iterator[tuple[Sequence[str], tuple[datetime, datetime]]]:
        """The ids of the traces that have a span in [start, end), in the order of their first one there.

        In portions, each with the first and the last of those times.
        """
        first: dict[str, int] = {}
        low, high = _nanos(start), _nanos(end)
        for table in self._tables(IDENTITY, start, end):
            for span in spans_of(table):
                nanos = span.start_time_unix_nano
                if nanos is not None and low <= nanos < high:
                    first[span.trace_id] = min(nanos, first.get(span.trace_id, nanos))
        ordered = sorted(first, key=lambda trace_id: (first[trace_id], trace_id))
        for portion in portions(ordered, TRACES_A_PORTION):
            yield portion, (_moment(first[portion[0]]), _moment(first[portion[-1]]))

    def try_out(self) -> None:
        """Read one span, of the smallest file. Raises TableError where that cannot be done."""
        if not self._snapshot.raw_readable:
            table = self._snapshot.query(f"{self._select(None, None)} limit 1")
        else:
            files = self._snapshot.files(self._time_column)
            smallest = sorted(files, key=lambda file: file.size)[:1]
            table = next(self._active(smallest, self._columns), self._snapshot.empty())
        spans_of(table.slice(0, 1))

    def everything(self) -> pa.Table:
        """The whole table with its own columns, for SQL."""
        names = self._snapshot.schema.names
        tables = list(self._tables(names, None, None))
        return pa.concat_tables(tables, promote_options="default") if tables else self._snapshot.empty()

    def _tables(
        self, columns: Sequence[str], start: datetime | None, end: datetime | None
    ) -> Iterator[pa.Table]:
        """The rows that may lie in a range of time, as they are stored."""
        if not self._snapshot.raw_readable:
            yield self._snapshot.query(self._select(start, end, columns))
            return
        files = self._snapshot.files(self._time_column)
        yield from self._active([file for file in files if file.overlaps(start, end)], columns)

    def _commits(self, versions: Sequence[int]) -> Iterator[tuple[Commit, list[pa.Table]]]:
        """Some commits, each with the rows that it brought. Raises FileNotFoundError where a commit is gone, or a file.

        A table whose files do not speak for themselves is read as a whole from the earliest time that the commit's
        files hold: more than is new, never less.
        """
        for look in portions(versions, COMMITS_A_LOOK):
            commits = _until_gone(self._snapshot.commits(look))
            if self._snapshot.raw_readable:
                added = [file for commit in commits for file in commit.added]
                tables = self._snapshot.read_files(added, self._columns)
                yield from ((commit, list(islice(tables, len(commit.added)))) for commit in commits)
            else:
                yield from ((commit, self._whole_from(commit)) for commit in commits)
            if len(commits) < len(look):
                raise FileNotFoundError(f"commit {look[len(commits)]}")

    def _whole_from(self, commit: Commit) -> list[pa.Table]:
        if not commit.added:
            return []
        starts = [file.earliest for file in commit.added]
        earliest = min(start for start in starts if start) if all(starts) else None
        return [self._snapshot.query(self._select(earliest, None))]

    def _found_by_time(
        self, files: Sequence[DataFile], now: datetime, trace_ids: Collection[str] | None = None
    ) -> list[Arrival]:
        return [
            arrival
            for file, table in zip(files, self._active(files, self._columns), strict=True)
            for arrival in _decoded(table, min(file.modified, now), FOUND_BY_TIME, trace_ids)
        ]

    def _catch_up(self, why: str, cursor: int, cursor_at: datetime | None, now: datetime) -> SpanBatch:
        told = {"why": why, "cursor": cursor, "version": self.version}
        log.warning("the spans table is caught up on by its files' age", extra=told)
        since = None if cursor_at is None else cursor_at - CATCH_UP_MARGIN
        arrivals: list[Arrival] = []
        if self._snapshot.raw_readable:
            files = self._snapshot.files(self._time_column)
            recent = [file for file in files if since is None or file.modified >= since]
            arrivals = self._found_by_time(recent, now)
        else:
            arrivals = _decoded(self._snapshot.query(self._select(None, None)), now, FOUND_BY_TIME)
        mark = self.mark(self.version)
        return SpanBatch(
            arrivals=arrivals,
            upto=self.version,
            upto_at=now,
            upto_mark=mark,
            more=False,
            by_time=True,
            caught_up=why,
        )

    def _active(self, files: Iterable[DataFile], columns: Iterable[str]) -> Iterator[pa.Table]:
        """Files that this version of the table is made of. Raises TableError when one is not there."""
        try:
            yield from self._snapshot.read_files(files, columns)
        except FileNotFoundError as error:
            raise TableError(
                f"{self._snapshot.store.uri}: the data file {error} of version {self.version} is gone: a VACUUM "
                "ran meanwhile (try again), or the table is damaged (RESTORE it, or FSCK REPAIR TABLE it)"
            ) from error

    def _select(self, start: datetime | None, end: datetime | None, columns: Sequence[str] = ()) -> str:
        names = ", ".join(f'"{name}"' for name in columns or self._columns)
        bounds = []
        for moment, comparison in ((start, ">="), (end, "<")):
            if moment is not None:
                bounds.append(f"start_time_unix_nano {comparison} {_nanos(moment)}")
        where = f" where {' and '.join(bounds)} or start_time_unix_nano is null" if bounds else ""
        return f"select {names} from t{where}"


def _until_gone(commits: Iterable[Commit | None]) -> list[Commit]:
    """The commits before the first that is no longer there."""
    there = []
    for commit in commits:
        if commit is None:
            break
        there.append(commit)
    return there


def _arrived(
    commit: Commit, tables: Iterable[pa.Table], now: datetime, trace_ids: Collection[str] | None = None
) -> list[Arrival]:
    """What one commit brought."""
    if not commit.added:
        return []
    at = min(commit.at or max(file.modified for file in commit.added), now)
    return [arrival for table in tables for arrival in _decoded(table, at, commit.version, trace_ids)]


def _decoded(
    table: pa.Table, arrived: datetime, commit: int, trace_ids: Collection[str] | None = None
) -> list[Arrival]:
    """Rows as arrivals; of some traces, or of all."""
    spans = spans_of(table if trace_ids is None else _likely(table, trace_ids))
    return [
        Arrival(span, arrived, commit) for span in spans if trace_ids is None or span.trace_id in trace_ids
    ]


def _likely(table: pa.Table, trace_ids: Collection[str]) -> pa.Table:
    """The rows of some traces, found before they are decoded where all ids are hex text."""
    column = table.column("trace_id")
    if not pa.types.is_string(column.type) or not pc.all(pc.match_substring_regex(column, HEX_ID)).as_py():
        return table
    return table.filter(pc.is_in(pc.utf8_lower(column), pa.array(set(trace_ids), pa.string())))


def _moment(nanos: int) -> datetime:
    return datetime.fromtimestamp(nanos // 1_000_000_000, UTC)


def _nanos(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1_000


def _shifted(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return moment.replace(tzinfo=UTC)
