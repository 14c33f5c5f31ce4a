"""What the main paths need of the tables, whoever keeps them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Protocol

from evaluator.feedback import Erased
from evaluator.shards import Shard
from evaluator.tables.rows import Key, Moved, Row, Unit
from evaluator.traces.assembly import Arrival


class SpanBatch(Protocol):
    """What the commits after a cursor brought, up to `upto`; `more` says that there are further ones.

    `upto_mark` tells that version from the same one of another copy of the table, where anything does. `by_time`: the spans
    were found by their times, so that the batch may hold more than is new, never less; `caught_up`: why, where the log
    could not be followed.
    """

    @property
    def arrivals(self) -> Sequence[Arrival]: ...
    @property
    def upto(self) -> int: ...
    @property
    def upto_at(self) -> datetime: ...
    @property
    def upto_mark(self) -> int | None: ...
    @property
    def more(self) -> bool: ...
    @property
    def by_time(self) -> bool: ...
    @property
    def caught_up(self) -> str | None: ...


class Spans(Protocol):
    """A spans table as of one version. Every method raises TableError when it cannot be read."""

    @property
    def version(self) -> int: ...
    @property
    def table_id(self) -> str: ...
    @property
    def ours(self) -> bool:
        """Whether `evaluator init` made the table, so that all of it is new to us."""
        ...

    def since(self, cursor: int, cursor_at: datetime | None, cursor_mark: int | None = None) -> SpanBatch:
        """The next batch after a cursor: whole commits, perhaps too much, never too little."""
        ...

    def mark(self, version: int) -> int | None:
        """What tells a version from the same one of another copy of the table, where anything does."""
        ...

    def of_traces(
        self, trace_ids: Collection[str], commits: Iterable[int], around: tuple[datetime, datetime] | None
    ) -> list[Arrival]:
        """The spans of some traces that some commits brought, or, those commits gone, that lie around a time."""
        ...

    def around(
        self, trace_ids: Collection[str] | None, around: tuple[datetime, datetime] | None
    ) -> list[Arrival]:
        """The spans of some traces (None: of all) around a range of time (None: ever)."""
        ...

    def ids_between(
        self, start: datetime, end: datetime
    ) -> Iterator[tuple[Sequence[str], tuple[datetime, datetime]]]:
        """The ids of the traces with a span in [start, end), in portions, in the order of time.

        With each portion the first and the last of the times that placed them.
        """
        ...

    def try_out(self) -> None:
        """Read one span, as cheaply as can be, of a table that has any."""
        ...


class SpanSource(Protocol):
    def open(self) -> Spans:
        """The newest version. Raises TableError: missing, foreign, unreadable."""
        ...


class Book(Protocol):
    """A ledger as it stands, and the exactly-once commits made from there on. Not shared between tasks."""

    @property
    def table_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def floor(self) -> datetime | None: ...
    @property
    def shards(self) -> int: ...
    def cursor(self, table_id: str, shard: Shard | None = None) -> int | None:
        """How far the spans table was read, by a shard; None: by all of them."""
        ...

    def cursor_at(self, table_id: str, shard: Shard | None = None) -> datetime | None: ...
    def cursor_mark(self, table_id: str, shard: Shard) -> int | None: ...
    def open_rows(self) -> list[Row]:
        """What waits, is deferred or is to be tried again, oldest first."""
        ...

    def states(self, target_ids: Collection[str], days: Collection[date] | None) -> dict[Key, Row]:
        """The newest row of each key of these targets in these partitions (None: in all)."""
        ...

    def decided(self, target_ids: Collection[str], days: Iterable[date] | None = None) -> dict[Key, Row]:
        """Every decision on these traces, whole, from these partitions (None: from all)."""
        ...

    def of_sessions(self, session_ids: Collection[str]) -> dict[Key, Row]:
        """What was decided and said of these sessions before, from all partitions."""
        ...

    def turns(self, session_ids: Collection[str], within: tuple[date, date]) -> list[Row]:
        """The newest decision on each trace of these sessions, from the partitions of a range of days."""
        ...

    def results(self, trace_ids: Collection[str], days: Iterable[date] | None) -> dict[Key, Row]:
        """The newest row of each result of these traces, whole, in these partitions (None: in all)."""
        ...

    def session_results(self, session_ids: Collection[str]) -> dict[Key, Row]:
        """The newest row of each result of these sessions, whole, from all partitions."""
        ...

    def of_trace(self, trace_id: str) -> list[Row]:
        """The newest row of each key of one trace, whole, in all partitions."""
        ...

    def of_session(self, session_id: str) -> list[Row]:
        """The newest row of each key of one session, whole, in all partitions; not those of its traces."""
        ...

    def final_since(self, cursor: int, upto: int) -> list[Row]:
        """The newest row of each result key among those with cursor < seq <= upto."""
        ...

    def forgotten(self, cursor: int, upto: int) -> list[Erased]:
        """What the commits with cursor < seq <= upto erased."""
        ...

    def notes(self) -> dict[str, Row]: ...
    @property
    def seq(self) -> int: ...
    @property
    def others_upto(self) -> int:
        """Up to which `seq` the book has seen what others committed since it was opened; 0: nothing."""
        ...

    def read_on(self) -> None:
        """See what others committed until now."""
        ...

    def commit(
        self,
        units: Sequence[Unit],
        *,
        moved: Moved | None = None,
        floor: datetime | None = None,
        decisions_yield: bool = False,
    ) -> list[Row]:
        """Commit units whole or not at all, under one guard, with the cursor; the rows that were written.

        `decisions_yield`: decisions on traces give way to what others wrote meanwhile that these wait for.
        """
        ...


class LedgerPort(Protocol):
    def open(self) -> Book:
        """Raises TableError: missing, foreign, of a newer layout."""
        ...
