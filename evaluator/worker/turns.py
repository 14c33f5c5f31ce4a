"""One turn: the guidelines that are in force, a tick, and its publishing."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from uuid import uuid4

from evaluator.config import Config
from evaluator.errors import ConfigurationError, SharedOutError
from evaluator.footprint import give_back
from evaluator.lease import Held
from evaluator.live.work import Parts
from evaluator.models.client import Model
from evaluator.models.exchange import Listener
from evaluator.notes import note_scorers, paused, scorer_units
from evaluator.publish import Publishing
from evaluator.scorers.source import find_module
from evaluator.shards import WHOLE, Shard
from evaluator.sinks.sink import Behind
from evaluator.summary import Summary
from evaluator.tables.ledger import Book
from evaluator.tick import look, tick
from evaluator.wiring import (
    Caching,
    Scorers,
    Tables,
    build_lease,
    build_scorers,
    build_sinks,
    definitions_of,
    past_for,
    start_of,
    utc_now,
)
from evaluator.worker.rest import Rest, rest_after

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the ledger stands after a turn: the cursor, the spans table's commits after it, and what is open by state."""

    cursor: int | None
    commits_behind: int | None
    backlog: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn did. `held_by` names the worker that was at work instead."""

    summary: Summary
    behind: list[Behind]
    standing: Standing
    held_by: str | None = None

    def check_models(self) -> None:
        """Raises ModelError when models were called and none of the calls came through."""
        self.summary.check_answers()


class Worker:
    """Does turns: reload what was edited, decide what is new, publish. One turn at a time."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        clock: Callable[[], datetime] = utc_now,
        *,
        caching: Caching = "on",
        listeners: Sequence[Listener] = (),
        shard: Shard | None = None,
    ) -> None:
        """`listeners` are told of each call to a model. `shard` is the part of the work to do; None: all of it, if it is
        not shared out."""
        self._config = config
        self._caching = caching
        self._listeners = listeners
        self._tables = tables
        self._clock = clock
        self._scorers: Scorers | None = None
        self._edits: object = None
        self._shard = shard
        self._takes_part = False
        self._rest: Rest | None = None
        self._standing: Standing | None = None
        self.broken_edit: str | None = None
        self.stopping = False

    async def turn(self, *, wait: bool) -> Turn:
        """One tick and its publishing. `wait`: for another worker that is at it; else it is left alone.

        Raises EvaluatorError: what is said is what to mend, and nothing that was not committed is lost.
        """
        started = monotonic()
        run_id = uuid4().hex
        summary, held_by = Summary(run_id=run_id), None
        before = self._scorers
        scorers = await self._current_scorers()
        if scorers is before and await asyncio.to_thread(self._at_rest):
            return self._idle(summary, started)
        self._rest = None
        book = await asyncio.to_thread(self._take_part)
        notes = await asyncio.to_thread(book.notes)
        sinks = build_sinks(self._config, self._tables, book)
        publishing = Publishing(self._tables.ledger, sinks)
        async with AsyncExitStack() as stack:
            lease = build_lease(self._config, self._tables, self._clock, self._shard or WHOLE)
            parts = await asyncio.to_thread(
                self._parts, scorers, paused(notes), lambda: self.stopping or lease.lost
            )
            outlook = await asyncio.to_thread(look, parts, book)
            if outlook.work:
                await asyncio.to_thread(self._tables.check_writable, self._config.publish)
                try:
                    await stack.enter_async_context(lease.held(wait=wait))
                    if scorer_units(scorers.scorers, notes):
                        await asyncio.to_thread(note_scorers, self._tables.ledger, scorers.scorers)
                    await stack.enter_async_context(publishing.beside())
                    try:
                        summary = await tick(replace(parts, committed=publishing.tell), run_id)
                    finally:
                        await scorers.budget.settle()
                except Held as held:
                    held_by = str(held)
        self._standing = await asyncio.to_thread(self._stands)
        if summary.cursor is None:
            self._tell_standing(summary, self._standing)
        behind = await publishing.finish()
        if held_by is None and not behind:
            self._rest = rest_after(outlook, sinks, self._clock())
        await asyncio.to_thread(give_back)
        summary.seconds = monotonic() - started
        return Turn(summary=summary, behind=behind, standing=self._standing, held_by=held_by)

    def _take_part(self) -> Book:
        """The ledger, opened; it shares the work out as this worker was told. Its first turn may change that.

        Raises SharedOutError.
        """
        book = self._tables.ledger.open()
        count = (self._shard or WHOLE).count
        if book.shards != count and (self._takes_part or self._shard is None):
            raise SharedOutError(
                f"the work on {self._tables.ledger.store.uri} is shared out among {book.shards} workers: start this one "
                f"with --shard i/{book.shards} (or with --shard 0/1, to have one do all of it again)"
                if book.shards > 1
                else f"the work on {self._tables.ledger.store.uri} is done by one worker now, no longer shared out: start this "
                "one without --shard"
            )
        while book.shards != count:
            log.warning("the work is shared out anew", extra={"among": count, "before": book.shards})
            book.share_out(count, self._tables.spans.open().table_id)
        self._takes_part = True
        return book

    def _at_rest(self) -> bool:
        return self._rest is not None and self._rest.lasts(self._tables, self._clock())

    def _idle(self, summary: Summary, started: float) -> Turn:
        """A turn with nothing to do: all stands as it stood."""
        assert self._standing is not None
        self._tell_standing(summary, self._standing)
        summary.seconds = monotonic() - started
        return Turn(summary=summary, behind=[], standing=self._standing)

    @staticmethod
    def _tell_standing(summary: Summary, standing: Standing) -> None:
        summary.cursor, summary.waiting = standing.cursor, standing.backlog.get("waiting", 0)

    @property
    def models(self) -> Sequence[Model]:
        """The models that the judges in force ask."""
        return () if self._scorers is None else self._scorers.models

    async def prepare(self) -> None:
        """Read the guidelines and open the tables. Raises EvaluatorError: what has to be mended first."""
        await self._current_scorers()
        await asyncio.to_thread(self._tables.spans.open)

    async def close(self) -> None:
        if self._scorers is not None:
            await self._scorers.close()

    async def _current_scorers(self) -> Scorers:
        """The scorers of the guideline files as they are now; a broken edit keeps the last good ones."""
        files = await asyncio.to_thread(guideline_files, self._config)
        if self._scorers is not None and (stamps(files), stamps(self._modules())) == self._edits:
            return self._scorers
        read = stamps(files)
        try:
            fresh = await asyncio.to_thread(self._build)
        except ConfigurationError as error:
            if self._scorers is None:
                raise
            self.broken_edit = str(error)
            log.warning(
                "an edit of the guidelines is broken: the last good set stays in force",
                extra={"mistakes": self.broken_edit},
            )
        else:
            if self._scorers is not None:
                await self._scorers.close()
                log.info("the guidelines were read anew", extra={"scorers": len(fresh.entries)})
            self._scorers, self.broken_edit = fresh, None
        self._edits = (read, stamps(self._modules()))
        return self._scorers

    def _modules(self) -> list[Path]:
        """The files of the modules that `python` scorers come from."""
        known = self._scorers.processes if self._scorers is not None else {}
        found = [find_module(module, self._config.home) for module in known]
        return [file for file in found if file is not None]

    def _build(self) -> Scorers:
        definitions = definitions_of(self._config)
        if not definitions:
            raise ConfigurationError(
                f"{self._config.path(self._config.guidelines)}: no judge and no scorer is enabled: every trace would be "
                "passed over for good (add one, or `evaluator pause` to wait)"
            )
        return build_scorers(
            self._config,
            definitions,
            self._tables.ledger.open(),
            self._clock,
            caching=self._caching,
            listeners=self._listeners,
        )

    def _parts(self, scorers: Scorers, off: Collection[str], stopping: Callable[[], bool]) -> Parts:
        scorers.budget.begin()
        return Parts(
            spans=self._tables.spans,
            ledger=self._tables.ledger,
            active=scorers.active(off),
            clock=self._clock,
            settle=self._config.settle,
            max_wait=self._config.max_wait,
            session_idle=self._config.session_idle,
            rescore_late=self._config.rescore_late,
            late_window=self._config.late_window,
            start=start_of(self._config),
            past_for=past_for(self._config),
            shard=self._shard or WHOLE,
            stopping=stopping,
        )

    def _stands(self) -> Standing:
        book, spans = self._tables.ledger.open(), self._tables.spans.open()
        cursor = book.cursor(spans.table_id)
        return Standing(
            cursor=cursor,
            commits_behind=None if cursor is None else max(spans.version - cursor, 0),
            backlog=Counter(row.state for row in book.open_rows()),
        )


def guideline_files(config: Config) -> list[Path]:
    """The files that judges and scorers are declared in, and their prompts."""
    folders = [config.path(config.guidelines)] + ([config.path(config.prompts)] if config.prompts else [])
    return [
        file
        for folder in folders
        for file in ([folder] if folder.is_file() else sorted(folder.rglob("*")))
        if file.is_file()
    ]


def stamps(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a file was edited: its name, its time, its size."""
    found = []
    for file in files:
        try:
            stat = file.stat()
        except FileNotFoundError:  # edited away between the listing and the look
            continue
        found.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(found)
