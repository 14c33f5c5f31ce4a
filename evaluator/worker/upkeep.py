"""Upkeep of the tables that we own: what `maintain` does, and `run` once a day."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

from evaluator.config import Config
from evaluator.decisions import without_spend
from evaluator.errors import SinkError
from evaluator.portions import portions
from evaluator.sinks.sink import Sink
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import FENCE_KEY, PROPERTIES, Ledger, note
from evaluator.tables.maintenance import KEEP, Maintained, maintain
from evaluator.tables.provision import DESCRIPTION, TRACE_TABLES, table_properties
from evaluator.tables.retention import Expired, expire
from evaluator.wiring import Tables, build_cache, build_sinks, build_store, utc_now

EVERY = timedelta(days=1)
AT_THE_LATEST = timedelta(hours=30)
"""From when on a tick that found nothing to do is followed by upkeep, and from when on any."""
MAINTAINED = "maintained"
"""The ledger's note of the last upkeep: whoever writes it does it."""
RESTATED_AFTER = timedelta(days=1)
FORGOTTEN_AGAIN_FOR = timedelta(days=2)
ROWS_A_COMMIT = 2_000


@dataclass(slots=True, kw_only=True)
class Upkeep:
    """What was done, or would be: open rows told again, days of the ledger that went, and each table's share.

    `notes` are sentences for the operator.
    """

    restated: int = 0
    expired: Expired = field(default_factory=Expired)
    tables: list[Maintained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As `maintain --json` prints it."""
        return {
            "restated": self.restated,
            "removed_days": len(self.expired.days),
            "removed_rows": self.expired.rows,
            "floor": None if self.expired.floor is None else self.expired.floor.isoformat(),
            "tables": [asdict(table) for table in self.tables],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }


async def keep_up(
    config: Config,
    tables: Tables,
    clock: Callable[[], datetime] = utc_now,
    *,
    include_traces: bool = False,
    dry_run: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Upkeep:
    """Maintain the ledger, the annotations that `init` made and, if asked for, the traces that it made.

    Safe beside workers, publishers and readers; told to stop, it leaves the rest to the next time. Raises TableError.
    """
    began = monotonic()
    done = Upkeep()
    sinks = await asyncio.to_thread(build_sinks, config, tables)
    published = await _published(tables, sinks, done)
    for step in _steps(config, tables, clock, done, published, include_traces, dry_run):
        if stopping():
            break
        await asyncio.to_thread(step)
    if not dry_run and not stopping():
        await _forget_again(config, tables, clock, sinks, done)
    done.seconds = monotonic() - began
    return done


async def _published(tables: Tables, sinks: Sequence[Sink], done: Upkeep) -> int:
    """The `seq` that every sink has reached."""
    cursors = [await asyncio.to_thread(lambda: tables.ledger.open().seq)]
    for sink in sinks:
        try:
            cursors.append(await sink.cursor())
        except SinkError as error:
            done.notes.append(f"no day of the ledger is removed while a sink is out of reach: {error}")
            cursors.append(0)
    return min(cursors)


def _steps(
    config: Config,
    tables: Tables,
    clock: Callable[[], datetime],
    done: Upkeep,
    published: int,
    include_traces: bool,
    dry_run: bool,
) -> Iterator[Callable[[], None]]:
    """The work in pieces, between which it may be left."""

    def check(store: DeltaStore) -> None:
        if not dry_run:
            store.check_writable()

    def restate_and_expire() -> None:
        check(tables.ledger.store)
        done.restated = restate(tables.ledger, clock() - RESTATED_AFTER, dry_run=dry_run)
        keep = config.retention.ledger
        spans = tables.spans.open() if tables.spans.store.exists() else None
        done.expired = expire(
            tables.ledger, keep, spans=spans, published=published, now=clock(), dry_run=dry_run
        )
        if done.expired.held:
            done.notes.append(f"no day of the ledger is removed while {done.expired.held}")

    def maintain_ledger() -> None:
        store = tables.ledger.store
        done.tables.append(maintain("eval_ledger", store, PROPERTIES, now=clock(), dry_run=dry_run))

    def maintain_if_ours(name: str) -> None:
        store = build_store(config, name)
        if not store.exists():
            return
        if not store.open().description.startswith(DESCRIPTION):
            done.notes.append(f"{store.uri} is not ours: left to whoever made it")
        elif name == "otel_spans" and _is_behind(tables, clock()):
            done.notes.append(f"{store.uri} is left as it is until the worker has read what came to it")
        else:
            check(store)
            done.tables.append(maintain(name, store, table_properties(name), now=clock(), dry_run=dry_run))

    yield restate_and_expire
    yield maintain_ledger
    for name in TRACE_TABLES if include_traces else ("otel_annotations",):
        yield partial(maintain_if_ours, name)


async def _forget_again(
    config: Config, tables: Tables, clock: Callable[[], datetime], sinks: Sequence[Sink], done: Upkeep
) -> None:
    """Erase what a worker cached, or a publisher that was then killed posted, just after it was forgotten."""
    stones = await asyncio.to_thread(lambda: tables.ledger.open().tombstones())
    if not stones:
        return
    try:
        cache = build_cache(config, clock)
        await asyncio.to_thread(cache.forget, [row.trace_id for row in stones if row.trace_id])
    except sqlite3.Error as error:
        done.notes.append(f"what was forgotten could not be looked for in the cache: {error}")
    recent = [row.erased for row in stones if row.at is not None and clock() - row.at < FORGOTTEN_AGAIN_FOR]
    for sink in sinks if recent else ():
        try:
            await sink.forget(recent)
        except SinkError as error:
            done.notes.append(f"what was forgotten could not be looked for in {sink.name}: {error}")


def _is_behind(tables: Tables, now: datetime) -> bool:
    """Whether commits of the spans table were not read for so long that cleaning up might take them away."""
    spans, book = tables.spans.open(), tables.ledger.open()
    cursor, at = book.cursor(spans.table_id), book.cursor_at(spans.table_id)
    return cursor is not None and cursor < spans.version and (at is None or now - at > KEEP / 2)


def restate(ledger: Ledger, before: datetime, *, dry_run: bool = False) -> int:
    """Tell open rows again that were told before a time, so that the oldest is never far back; how many.

    They say what they said; what the attempt took, and in which run, stays with the row of the attempt.
    """
    book = ledger.open()
    old = [row for row in book.open_rows() if row.at is not None and row.at < before]
    if dry_run:
        return len(old)
    restated = 0
    for rows in portions(old, ROWS_A_COMMIT):
        restated += len(book.commit([[replace(without_spend(row), run_id=None)] for row in rows]))
    return restated


class Schedule:
    """Once a day, after a tick, by one of all workers."""

    def __init__(self, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._not_before: datetime | None = None

    def claim(self, *, quiet: bool) -> bool:
        """Whether upkeep is due after a tick (a `quiet` one found nothing to do), and nobody else does it.

        Raises TableError.
        """
        now = self._clock()
        if self._not_before is not None and now < self._not_before:
            return False
        book = self._ledger.open()
        notes = book.notes()
        last = notes.get(MAINTAINED) or notes.get(FENCE_KEY)
        at = now if last is None or last.at is None else last.at
        self._not_before = at + EVERY
        if now < at + (EVERY if quiet else AT_THE_LATEST):
            return False
        # Not final: of two notes planned at once one yields (R5).
        self._not_before = now + EVERY
        return bool(book.commit([[note(MAINTAINED, state="waiting")]]))
