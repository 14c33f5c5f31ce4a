"""Workers in lock step: each runs the real code in a thread of its own and stops at every step it takes.

One thread runs at a time. Where a worker stops, the driver lets another go on, or has it die there.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from evaluator.tables.delta import DeltaStore
from evaluator.tables.snapshot import CommitConflict, Snapshot

Observer = Callable[["Worker", pa.Table, Mapping[str, int]], None]
Work = Callable[["Worker"], Coroutine[Any, Any, object]]


class Killed(BaseException):
    """The process is gone: no handler of the code under test may hold this up."""


class Worker:
    """One process of the history. `step` says where it stands, `error` how it ended if not well."""

    def __init__(self, name: str, kind: str, work: Work) -> None:
        self.name = name
        self.kind = kind
        self.step = "start"
        self.done = False
        self.error: BaseException | None = None
        self.conflicts = 0
        self.harmed = False
        """Whether it was killed, refused or left without a reply: then it may have paid in vain."""
        self.stopping = False
        self.notes: dict[str, Any] = {}
        self._work = work
        self._fate: BaseException | None = None
        self._dead = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def resume(self, fate: BaseException | None = None) -> None:
        """Let it take its step, or meet its fate there; returns where it stops next, or at its end."""
        self._fate = fate
        self.harmed = self.harmed or fate is not None
        self._go.release()
        self._stopped.acquire()
        if self.done:
            self._thread.join()

    def at(self, step: str) -> None:
        """Called by what the worker uses, before and after whatever others can see."""
        if self._dead:
            raise Killed
        self.step = step
        self._stopped.release()
        self._go.acquire()
        fate, self._fate = self._fate, None
        if fate is not None:
            self._dead = isinstance(fate, Killed)
            raise fate

    def _run(self) -> None:
        self._go.acquire()
        try:
            if self._fate is not None:
                raise self._fate
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 -- the driver judges how it may end
            self.error = error
        self.done = True
        self._stopped.release()

    async def _main(self) -> None:
        await self._work(self)


async def in_place(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for `asyncio.to_thread`, so that a worker is one thread and a history is told by its seed."""
    await asyncio.sleep(0)
    return work(*args, **kwargs)


class GatedStore(DeltaStore):
    """A table as one worker sees it: every opening and every commit is a step."""

    def __init__(
        self,
        uri: str,
        worker: Worker,
        observe: Observer,
        observe_replacement: Callable[[Worker, str, pa.Table, Mapping[str, int]], None],
    ) -> None:
        super().__init__(uri)
        self.worker = worker
        self.observe = observe
        self.observe_replacement = observe_replacement

    def open(self) -> "GatedSnapshot":
        self.worker.at("open")
        return GatedSnapshot(self, _GatedTable(self.uri))


class GatedSnapshot(Snapshot):
    """Stops before a commit, between a commit and the reading of what it made, and before the reply."""

    store: GatedStore
    _table: "_GatedTable"

    def append(self, data: pa.Table, transactions: Mapping[str, int] | None = None) -> int:
        worker = self.store.worker
        worker.at("append")

        def observe() -> None:
            self._table.committed = lambda: None
            self.store.observe(worker, data, transactions or {})

        def reread() -> None:
            observe()
            worker.at("reread")

        self._table.committed = reread if not data.num_rows else lambda: None
        try:
            version = super().append(data, transactions)
        except CommitConflict:
            worker.conflicts += 1
            raise
        if data.num_rows:
            observe()
        worker.at("appended")
        return version

    def replace(self, where: str, data: pa.Table, transactions: Mapping[str, int] | None = None) -> int:
        worker = self.store.worker
        worker.at("append")
        try:
            version = super().replace(where, data, transactions)
        except CommitConflict:
            worker.conflicts += 1
            raise
        self.store.observe_replacement(worker, where, data, transactions or {})
        worker.at("appended")
        return version


class _GatedTable(DeltaTable):
    """A commit without rows is made first and read after: between the two others may commit."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.committed: Callable[[], None] = lambda: None

    def update_incremental(self) -> None:
        self.committed()
        super().update_incremental()
