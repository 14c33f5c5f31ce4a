"""From the ledger to each sink, by `seq`; one that is down delays only itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from evaluator.decisions import assessment_of
from evaluator.errors import SinkError
from evaluator.ports import Book, LedgerPort
from evaluator.sinks.sink import Behind, Sink

log = logging.getLogger(__name__)

COMMITS_AT_ONCE = 16
"""How many of the ledger's commits go to a sink together: what is held in memory stays bounded."""


class Publishing:
    """Publishing beside a tick: what a chunk brought goes out while the next one is judged."""

    def __init__(self, ledger: LedgerPort, sinks: Sequence[Sink]) -> None:
        self._ledger = ledger
        self._sinks = list(sinks)
        self._behind: dict[str, Behind] = {}
        self._news = asyncio.Event()
        self._over = False

    def tell(self) -> None:
        """There is something new in the ledger."""
        self._news.set()

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Publish what is told of meanwhile; what is going out at the end is waited for, unless the tick is given up."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        except asyncio.CancelledError:
            task.cancel()  # `grace` is over: the next turn publishes it again
            raise
        finally:
            self._over = True
            self.tell()
            await task

    async def finish(self) -> list[Behind]:
        """Bring every sink up to the ledger's newest `seq`; those that are behind. One that was not reached meanwhile
        is not asked again: the next turn does."""
        await self._publish()
        return list(self._behind.values())

    async def _follow(self) -> None:
        while not self._over:
            await self._news.wait()
            self._news.clear()
            if not self._over:
                await self._publish()

    async def _publish(self) -> None:
        reached = [sink for sink in self._sinks if sink.name not in self._behind]
        self._behind |= {behind.sink: behind for behind in await publish(self._ledger, reached)}


async def publish(ledger: LedgerPort, sinks: Sequence[Sink]) -> list[Behind]:
    """Bring every sink up to the ledger's newest `seq`; those that could not be are returned as behind."""
    if not sinks:
        return []
    book = await asyncio.to_thread(ledger.open)
    caught_up = await asyncio.gather(*(_publish(book, sink) for sink in sinks))
    return [behind for behind in caught_up if behind is not None]


async def _publish(book: Book, sink: Sink) -> Behind | None:
    cursor = 0
    try:
        cursor = await sink.cursor()
        while cursor < book.seq:
            upto = min(cursor + COMMITS_AT_ONCE, book.seq)
            erased = await asyncio.to_thread(book.forgotten, cursor, upto)
            if erased:
                await sink.forget(erased)
            rows = await asyncio.to_thread(book.final_since, cursor, upto)
            await sink.publish([told for told in map(assessment_of, rows) if told], upto)
            cursor = upto
        if sink.due():
            await sink.publish([], cursor)
    except SinkError as error:
        log.warning("a sink is behind", extra={"sink": sink.name, "cursor": cursor, "cause": str(error)})
        return Behind(sink=sink.name, cursor=cursor, detail=str(error))
    return None
