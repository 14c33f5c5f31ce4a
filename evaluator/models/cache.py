"""What judges have said already: the same version of a judge and the same prompt give the same result, with no call.

A small SQLite file that several processes share. Losing it, or not getting at it, costs money and nothing else.
"""

import asyncio
import hashlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

import orjson

from evaluator.feedback import Feedback
from evaluator.models.endpoint import Messages

log = logging.getLogger(__name__)

FILE = "cache-1.sqlite"
"""The number is that of the layout: another one begins anew."""
LEFT_ALONE_FOR = timedelta(minutes=1)
"""How long a cache that failed is not tried again."""
GATHERED_FOR = 0.05
"""Seconds for which results are gathered before they are written: as much as a kill may cost."""
READ_PATIENCE, WRITE_PATIENCE = 0.25, 10.0
"""Seconds to wait for a lock. Readers of a write-ahead log wait for nobody but who repairs it."""

_LAYOUT = """
create table if not exists results (key blob primary key, at integer not null, result text not null) without rowid;
create index if not exists results_at on results (at);
create table if not exists sources (trace text, key blob, primary key (trace, key)) without rowid;
"""
_EMPTY = "no such table: results"
"""What SQLite says of a file that somebody has just made and not laid out yet."""
_OLDEST = "delete from results where key in (select key from results order by at limit 1 + (select count(*) from results) / 8)"

_STRAY = "delete from sources where key not in (select key from results)"


def cache_key(version: str, messages: Messages) -> bytes:
    """What a result is found by: a hash, so that nothing of a prompt is kept."""
    [key] = cache_keys([version], messages)
    return key


def cache_keys(versions: Iterable[str], messages: Messages) -> list[bytes]:
    """What the results of several versions on one prompt are found by. The prompt, which is long, is hashed once."""
    prompt = hashlib.sha256(orjson.dumps(list(messages))).digest()
    return [hashlib.sha256(prompt + version.encode()).digest() for version in versions]


@dataclass(slots=True)
class _Batch:
    """What is to be written: results, and which traces they are about."""

    results: dict[bytes, Feedback] = field(default_factory=dict)
    sources: set[tuple[str, bytes]] = field(default_factory=set)


class Cache:
    """Results by key, for `max_age`, in a file of about `max_size` bytes at most: the oldest go first.

    `fresh`: nothing is taken from it, so that what is asked anew takes the place of what it holds. Who asks for a key
    within its `turn` while another does finds what that one was told.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_age: timedelta,
        max_size: int,
        clock: Callable[[], datetime],
        fresh: bool = False,
    ) -> None:
        self._path = folder / FILE
        self._max_age = max_age
        self._max_size = max_size
        self._clock = clock
        self._fresh = fresh
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._next, self._writing = _Batch(), _Batch()
        self._task: asyncio.Task[None] | None = None
        self._turns: dict[bytes, asyncio.Event] = {}
        self._expected: set[bytes] = set()
        self._left_alone_until = 0.0
        self._warned = False

    @asynccontextmanager
    async def turn(self, key: bytes) -> AsyncIterator[None]:
        """Around the look for a result and the call that makes it.

        Where the first call brings no result, all who waited for it ask at once: else a prompt that fails slowly, and
        that many traces share, would be tried one trace after the other.
        """
        if first := self._turns.get(key):
            await first.wait()
            yield
            return
        self._turns[key] = ended = asyncio.Event()
        try:
            yield
        finally:
            del self._turns[key]
            ended.set()

    def get(self, key: bytes, trace_id: str) -> Feedback | None:
        """The result, if there is one that is not too old; the trace counts as one that it is about, from then on."""
        if self._fresh:
            return None
        found = self._next.results.get(key) or self._writing.results.get(key) or self._read(key)
        if found is not None:
            self._next.sources.add((trace_id, key))
            self._write_soon()
        return found

    def expects(self, key: bytes) -> bool:
        """Whether `get` will give a result: there is one, or this was asked before, by who estimates."""
        if self._fresh:
            return False
        known = key in self._expected or self._read(key) is not None
        self._expected.add(key)
        return known

    def put(self, key: bytes, feedback: Feedback, trace_id: str) -> None:
        """Keep a result. It is written soon, with others."""
        self._next.results[key] = feedback
        self._next.sources.add((trace_id, key))
        self._write_soon()

    def forget(self, trace_ids: Iterable[str]) -> None:
        """Erase what was said about some traces. Raises sqlite3.Error: here, failing is not the same as done."""
        if not self._path.exists():
            return
        with closing(self._open()) as database:
            database.executescript("begin immediate; create temp table gone (key blob primary key);")
            for trace_id in trace_ids:
                database.execute(
                    "insert or ignore into gone select key from sources where trace = ?", [trace_id]
                )
            database.execute("delete from results where key in (select key from gone)")
            database.execute("delete from sources where key in (select key from gone)")
            database.execute("commit")
            database.execute("pragma wal_checkpoint(truncate)")

    async def close(self) -> None:
        """Write what is not written yet."""
        if self._task is not None:
            await self._task
        _close(self._reader)
        _close(self._writer)
        self._reader = self._writer = None

    # --- reading

    def _read(self, key: bytes) -> Feedback | None:
        if monotonic() < self._left_alone_until or not (self._reader or self._path.exists()):
            return None
        try:
            if self._reader is None:
                self._reader = sqlite3.connect(self._path, timeout=READ_PATIENCE, isolation_level=None)
            row = self._reader.execute(
                "select result from results where key = ? and at > ?", [key, self._oldest()]
            ).fetchone()
            return None if row is None else Feedback(**orjson.loads(row[0]))
        except (sqlite3.Error, ValueError, TypeError) as error:
            if isinstance(error, sqlite3.OperationalError) and str(error) == _EMPTY:
                return None
            _close(self._reader)
            self._reader = None
            self._fail(error)
            return None

    def _oldest(self) -> float:
        return (self._clock() - self._max_age).timestamp()

    # --- writing

    def _write_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        """Write until there is nothing left; meanwhile the next batch gathers."""
        while self._next.results or self._next.sources:
            await asyncio.sleep(GATHERED_FOR)
            self._writing, self._next = self._next, _Batch()
            if monotonic() >= self._left_alone_until:
                try:
                    await asyncio.to_thread(self._write, self._writing)
                except (sqlite3.Error, OSError) as error:
                    _close(self._writer)
                    self._writer = None
                    self._fail(error)
            self._writing = _Batch()

    def _write(self, batch: _Batch) -> None:
        database = self._writer = self._writer or self._open()
        now = self._clock().timestamp()
        with database:
            database.execute("begin immediate")
            database.executemany(
                "insert or replace into results values (?, ?, ?)",
                [(key, now, _told(feedback)) for key, feedback in batch.results.items()],
            )
            database.executemany("insert or ignore into sources values (?, ?)", batch.sources)
            gone = self._make_room(database)
        if gone:
            database.executescript("pragma incremental_vacuum")  # `execute` would free one page only

    def _make_room(self, database: sqlite3.Connection) -> bool:
        """Delete what is too old, and the oldest of what is too much; whether there was any."""
        gone = database.execute("delete from results where at <= ?", [self._oldest()]).rowcount
        while _size(database) > self._max_size:
            dropped = database.execute(_OLDEST).rowcount
            database.execute(_STRAY)
            if not dropped:
                break
            gone += dropped
        if gone:
            database.execute(_STRAY)
        return gone > 0

    def _open(self) -> sqlite3.Connection:
        """A connection that writes; the file is nobody else's to read."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(
            self._path, timeout=WRITE_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("pragma auto_vacuum = incremental")
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = normal")
            database.executescript(_LAYOUT)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _fail(self, error: Exception) -> None:
        """Go on without; said once."""
        self._left_alone_until = monotonic() + LEFT_ALONE_FOR.total_seconds()
        if not self._warned:
            self._warned = True
            log.warning(
                "the cache cannot be used: judging goes on without it (delete the file to begin anew)",
                extra={"file": str(self._path), "cause": f"{type(error).__name__}: {error}"},
            )


def _close(database: sqlite3.Connection | None) -> None:
    if database is not None:
        database.close()


def _told(feedback: Feedback) -> str:
    told: Mapping[str, object] = {
        "value": feedback.value,
        "passed": feedback.passed,
        "rationale": feedback.rationale,
    }
    return orjson.dumps(told).decode()


def _size(database: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    [pages], [free], [size] = (
        database.execute(f"pragma {name}").fetchone()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
