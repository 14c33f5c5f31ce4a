"""From the ledger to each sink, by `seq`; one that is down delays only itself."""

import asyncio
import logging
from collections.abc import Sequence

from evaluator.decisions import assessment_of
from evaluator.errors import SinkError
from evaluator.ports import Book, LedgerPort
from evaluator.sinks.sink import Behind, Sink

log = logging.getLogger(__name__)

COMMITS_AT_ONCE = 100
"""How many of the ledger's commits go to a sink together: what is held in memory stays bounded."""


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
            rows = await asyncio.to_thread(book.final_since, cursor, upto)
            await sink.publish([told for told in map(assessment_of, rows) if told], upto)
            cursor = upto
        if sink.due():
            await sink.publish([], cursor)
    except SinkError as error:
        log.warning("a sink is behind", extra={"sink": sink.name, "cursor": cursor, "cause": str(error)})
        return Behind(sink=sink.name, cursor=cursor, detail=str(error))
    return None
