"""One turn: the guidelines that are in force, a tick, and its publishing."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from uuid import uuid4

from evaluator.config import Config
from evaluator.errors import ConfigurationError
from evaluator.lease import Held
from evaluator.notes import note_scorers, paused
from evaluator.publish import publish
from evaluator.scorers.source import find_module
from evaluator.sinks.sink import Behind
from evaluator.summary import Summary
from evaluator.tick import Parts, has_work, tick
from evaluator.wiring import (
    Caching,
    Scorers,
    Tables,
    build_lease,
    build_scorers,
    build_sinks,
    definitions_of,
    start_of,
    utc_now,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn did. `held_by` names the worker that was at work instead."""

    summary: Summary
    behind: list[Behind]
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
    ) -> None:
        self._config = config
        self._caching = caching
        self._tables = tables
        self._clock = clock
        self._scorers: Scorers | None = None
        self._edits: object = None
        self.broken_edit: str | None = None
        self.stopping = False

    async def turn(self, *, wait: bool) -> Turn:
        """One tick and its publishing. `wait`: for another worker that is at it; else it is left alone.

        Raises EvaluatorError: what is said is what to mend, and nothing that was not committed is lost.
        """
        started = monotonic()
        run_id = uuid4().hex
        summary, held_by = Summary(run_id=run_id), None
        scorers = await self._current_scorers()
        async with AsyncExitStack() as stack:
            lease = build_lease(self._config, self._tables, self._clock)
            parts = await asyncio.to_thread(self._parts, scorers, lambda: self.stopping or lease.lost)
            if await asyncio.to_thread(has_work, parts):
                try:
                    await stack.enter_async_context(lease.held(wait=wait))
                    await asyncio.to_thread(note_scorers, self._tables.ledger, scorers.scorers)
                    try:
                        summary = await tick(parts, run_id)
                    finally:
                        await scorers.budget.settle()
                except Held as held:
                    held_by = str(held)
        if summary.cursor is None:
            summary.cursor, summary.waiting = await asyncio.to_thread(self._standing)
        behind = await publish(
            self._tables.ledger, await asyncio.to_thread(build_sinks, self._config, self._tables)
        )
        summary.seconds = monotonic() - started
        return Turn(summary=summary, behind=behind, held_by=held_by)

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
            self._config, definitions, self._tables.ledger.open(), self._clock, caching=self._caching
        )

    def _parts(self, scorers: Scorers, stopping: Callable[[], bool]) -> Parts:
        book = self._tables.ledger.open()
        notes = book.notes()
        scorers.budget.begin()
        return Parts(
            spans=self._tables.spans,
            ledger=self._tables.ledger,
            active=scorers.active(paused(notes)),
            clock=self._clock,
            settle=self._config.settle,
            max_wait=self._config.max_wait,
            start=start_of(self._config),
            stopping=stopping,
        )

    def _standing(self) -> tuple[int | None, int]:
        """The cursor, and how many traces wait, where there was nothing to do."""
        book = self._tables.ledger.open()
        waiting = sum(row.state == "waiting" for row in book.open_rows())
        return book.cursor(self._tables.spans.open().table_id), waiting


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
