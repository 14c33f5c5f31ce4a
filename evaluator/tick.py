"""One tick: what is new is read, put together, selected, scored, committed and published."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from evaluator.live.arrivals import Arrivals
from evaluator.live.past import Past, has_past, with_since
from evaluator.live.retrials import Retrials
from evaluator.live.sessions import Sessions, idle_sessions
from evaluator.live.work import Parts, Work, is_due, is_ours
from evaluator.ports import Book
from evaluator.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a look at the tables told: whether there is work, and else when something is due.

    `due` is None where nothing waits, and now where what waits is held back by something that no table tells.
    """

    work: bool
    spans_version: int
    ledger_version: int
    due: datetime | None


def look(parts: Parts, book: Book | None = None) -> Outlook:
    """Whether a tick would find anything to decide: only then is a lease worth taking. Raises TableError.

    `book` is the ledger as it was just opened.
    """
    book = book or parts.ledger.open()
    spans = parts.spans.open()
    cursor = book.cursor(spans.table_id, parts.shard)
    by_name = {active.scorer.name: active for active in parts.active}
    now, opened = parts.clock(), [row for row in book.open_rows() if is_ours(row, parts.shard)]
    past = bool(with_since(parts)) and has_past(parts, book.notes())
    new = cursor is None or cursor != spans.version
    return Outlook(
        work=new or past or any(is_due(row, by_name, now) for row in opened),
        spans_version=spans.version,
        ledger_version=book.version,
        due=min((row.due for row in opened if row.due), default=None),
    )


async def tick(parts: Parts, run_id: str) -> Summary:
    """Decide what is new and try again what is due; what was done.

    What a configuration that has to be mended kept from being judged stays as it is; the summary's `failure` says
    what to mend. Raises TableError.
    """
    summary = Summary(run_id=run_id)
    work = await asyncio.to_thread(Work, parts, run_id, summary)
    retrials, past = Retrials(work), Past(work)
    await past.begin()
    await retrials.catch_up()
    all_read = await Arrivals(work).decide()
    await retrials.try_what_is_due()
    if idle_sessions(work):
        await Sessions(await asyncio.to_thread(Work, parts, run_id, summary)).judge()
    if all_read:
        await past.go_on()
    return summary
