"""Group commits: requests that wait together are appended to a table in one commit."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

import pyarrow as pa
from google.protobuf.message import Message

from evaluator.collector.encoding import Export
from evaluator.collector.otlp import rows
from evaluator.collector.signals import LOGS, METRICS, TRACES, Signal
from evaluator.errors import TableError
from evaluator.tables import schemas
from evaluator.tables.delta import DeltaStore
from evaluator.tables.snapshot import CommitConflict, Snapshot

MAX_WAITING = 256 * 2**20
"""Bytes of requests that may wait for one table; beyond, clients are asked to come again."""

MAX_GROUP = 64 * 2**20
"""Bytes of requests that go into one commit, unless a single request is larger."""

MAX_APPENDS = 8
"""Appends through one opened table. An append replays what was committed since the table was opened: 12 ms with
this bound, 28 ms after 300 appends and rising without it (deltalake 1.6.6)."""

SCHEMAS = {TRACES.name: schemas.SPANS, LOGS.name: schemas.LOGS, METRICS.name: schemas.METRICS}

_log = logging.getLogger(__name__)


class OverloadedError(Exception):
    """More requests wait than are taken; the same one will be welcome later."""


@dataclass(slots=True, kw_only=True)
class SignalCounters:
    """What became of one signal's records and commits since the start; `own` are those refused as the evaluator's."""

    accepted: int = 0
    refused: int = 0
    own: int = 0
    commits: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    export: Export
    durable: asyncio.Future[None] = field(compare=False)


class GroupCommits:
    """The way into one table. An append runs in a thread of its own; while it does, the next group gathers."""

    def __init__(self, signal: Signal, store: DeltaStore, counters: SignalCounters) -> None:
        self._signal = signal
        self._counters = counters
        self._appender = _Appender(signal, store)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"append-{signal.name}")
        self._queue: deque[_Waiting] = deque()
        self._weight = 0
        self._writing: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Open the table. Raises TableError when it is missing or has other columns."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._appender.open)

    async def add(self, export: Export) -> None:
        """Return when the export's rows are durable.

        Raises TableError when they could not be written, OverloadedError when too much waits already.
        """
        if self._queue and self._weight + export.weight > MAX_WAITING:
            raise OverloadedError(f"more than {MAX_WAITING:,} bytes wait to be written")
        waiting = _Waiting(export=export, durable=asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._weight += export.weight
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await waiting.durable

    async def close(self, grace: timedelta) -> None:
        """Wait until everything that was added is durable or refused, but no longer; then end the thread."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=grace.total_seconds())
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            group = self._next_group()
            if not group:
                continue
            messages = [waiting.export.message for waiting in group]
            failure: TableError | None = None
            try:
                await loop.run_in_executor(self._thread, self._appender.append, messages)
                self._counters.commits += 1
            except TableError as error:
                failure = error
                self._counters.failures += 1
                _log.warning("The collector could not write.", extra={"cause": str(error)})
            self._weight -= sum(waiting.export.weight for waiting in group)
            for waiting in group:
                with contextlib.suppress(asyncio.InvalidStateError):  # its request was given up
                    waiting.durable.set_result(None) if failure is None else waiting.durable.set_exception(
                        failure
                    )

    def _next_group(self) -> list[_Waiting]:
        """What is to be written together, in the order of arrival; requests that were given up are left out."""
        group: list[_Waiting] = []
        weight = 0
        while self._queue and (not group or weight + self._queue[0].export.weight <= MAX_GROUP):
            waiting = self._queue.popleft()
            if waiting.durable.cancelled():
                self._weight -= waiting.export.weight
            else:
                group.append(waiting)
                weight += waiting.export.weight
        return group


class _Appender:
    """What runs in the thread: rows are made and appended. After any failure the table is opened anew."""

    def __init__(self, signal: Signal, store: DeltaStore) -> None:
        self._signal = signal
        self._store = store
        self._snapshot: Snapshot | None = None
        self._columns = SCHEMAS[signal.name]
        self._appends = 0
        self._app_id = f"evaluator-collector-{uuid.uuid4()}"
        self._number = 0

    def open(self) -> Snapshot:
        snapshot = self._store.open()
        columns = snapshot.empty().schema
        if differences := _differences(columns, SCHEMAS[self._signal.name]):
            raise TableError(
                f"{self._store.uri}: has not the columns of a table that `evaluator init` makes "
                f"({', '.join(differences)}), so the collector cannot write it (let `tables` in evaluator.yaml name a "
                "place for tables of our own)"
            )
        self._snapshot, self._columns, self._appends = snapshot, columns, 0
        return snapshot

    def append(self, messages: Sequence[Message]) -> None:
        """Raises TableError, whatever went wrong: who waits has to be answered."""
        try:
            self._append(rows(self._signal, messages, time.time_ns()))
        except BaseException as error:
            self._snapshot = None
            if isinstance(error, TableError):
                raise
            raise TableError(f"{self._store.uri}: cannot be written: {error}") from error

    def _append(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        snapshot = self._snapshot
        # Through the object of a table that was moved away, an append would begin a broken log in its place.
        if snapshot is None or self._appends >= MAX_APPENDS or not snapshot.has_commit(snapshot.version):
            snapshot = self.open()
        self._appends += 1
        self._number += 1
        try:
            snapshot.append(_filled(table, self._columns), {self._app_id: self._number})
        except CommitConflict as error:
            self._snapshot = None
            if self.open().transaction(self._app_id) != self._number:
                raise TableError(f"{self._store.uri}: cannot be written: {error}") from error


def _differences(columns: pa.Schema, ours: pa.Schema) -> list[str]:
    """Why rows of our columns cannot be put into a table of these; one that was added there is left null."""
    told = []
    for column in ours:
        if column.name not in columns.names:
            told.append(f"{column.name} is missing")
        elif (kind := columns.field(column.name).type) != column.type:
            told.append(f"{column.name} is {kind} and not {column.type}")
    return told + [
        f"{column.name} was added and must not be null"
        for column in columns
        if column.name not in ours.names and not column.nullable
    ]


def _filled(table: pa.Table, columns: pa.Schema) -> pa.Table:
    """The table with null in each column that it lacks."""
    for column in columns:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table
