"""A sink whose place cannot keep a cursor with the results: the ledger keeps it."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from evaluator.errors import SinkError, TableError
from evaluator.feedback import Assessment, Erased


class Publisher(Protocol):
    """Puts results somewhere, each once however often it is asked to."""

    @property
    def name(self) -> str: ...
    def due(self) -> bool:
        """Whether something asked for earlier wants another try."""
        ...

    def waiting(self) -> int:
        """How many results it keeps until their trace is there."""
        ...

    def lost_since(self) -> datetime | None:
        """From when on it is to be asked again, as it has lost what waited for another try, or never had any; None: it has all."""
        ...

    def remember(self) -> None:
        """It was asked all of that again, and has what waits."""
        ...

    async def publish(self, assessments: Sequence[Assessment]) -> object:
        """Raises SinkError when the place is down; then the same is asked again later."""
        ...

    async def forget(self, erased: Sequence[Erased]) -> None:
        """Erase what was put there of some traces and sessions, and what waits to be. Raises SinkError."""
        ...


class CursorBook(Protocol):
    """A ledger as far as sinks' cursors go."""

    @property
    def seq(self) -> int: ...
    def forgotten(self, cursor: int, upto: int) -> list[Erased]: ...
    def sink_cursor(self, sink: str) -> int: ...
    def seq_before(self, at: datetime) -> int: ...
    def mark(self, app_id: str, value: int) -> bool: ...


class LedgerCursorSink:
    """A Sink that does first and commits its cursor, alone, after (P3): doing it again adds nothing.

    A publisher that has lost what waited is asked again what is not too old to wait: its cursor stands that much
    lower until it has passed the ledger's.
    """

    def __init__(self, publisher: Publisher, open_book: Callable[[], CursorBook]) -> None:
        self._publisher = publisher
        self._open_book = open_book
        self.name = publisher.name

    async def cursor(self) -> int:
        book = await self._book()
        cursor, lost_since = book.sink_cursor(self.name), self._publisher.lost_since()
        if not cursor or lost_since is None:
            return cursor
        try:
            return min(cursor, await asyncio.to_thread(book.seq_before, lost_since))
        except TableError as error:
            raise SinkError(str(error)) from error

    def due(self) -> bool:
        return self._publisher.due() or self._publisher.lost_since() is not None

    def waiting(self) -> int:
        return self._publisher.waiting()

    async def publish(self, assessments: Sequence[Assessment], upto: int) -> None:
        if assessments or self._publisher.due():
            await self._publisher.publish(assessments)
        book = await self._book()
        try:
            await self._forget_what_was_erased_meanwhile(book, assessments, upto)
            while upto > book.sink_cursor(self.name):
                if await asyncio.to_thread(book.mark, f"sink/{self.name}", upto):
                    break
        except TableError as error:
            raise SinkError(str(error)) from error
        if upto >= book.sink_cursor(self.name):
            self._publisher.remember()

    async def forget(self, erased: Sequence[Erased]) -> None:
        await self._publisher.forget(erased)

    async def _forget_what_was_erased_meanwhile(
        self, book: CursorBook, assessments: Sequence[Assessment], upto: int
    ) -> None:
        """Another publisher may have passed the erasure of what this one had read before, and posted after."""
        if not assessments or book.seq <= upto:
            return
        posted = {one.target.trace_id for one in assessments}
        erased = await asyncio.to_thread(book.forgotten, upto, book.seq)
        late = [one for one in erased if one.target.trace_id in posted]
        if late:
            await self._publisher.forget(late)

    async def _book(self) -> CursorBook:
        try:
            return await asyncio.to_thread(self._open_book)
        except TableError as error:
            raise SinkError(str(error)) from error
