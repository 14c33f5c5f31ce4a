"""A sink whose place cannot keep a cursor with the results: the ledger keeps it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from evaluator.errors import SinkError, TableError
from evaluator.feedback import Assessment


class Publisher(Protocol):
    """Puts results somewhere, each once however often it is asked to."""

    @property
    def name(self) -> str: ...
    def due(self) -> bool:
        """Whether something asked for earlier wants another try."""
        ...

    async def publish(self, assessments: Sequence[Assessment]) -> object:
        """Raises SinkError when the place is down; then the same is asked again later."""
        ...


class CursorBook(Protocol):
    """A ledger as far as sinks' cursors go."""

    def sink_cursor(self, sink: str) -> int: ...
    def mark(self, app_id: str, value: int) -> bool: ...


class LedgerCursorSink:
    """A Sink that does first and commits its cursor, alone, after (P3): doing it again adds nothing."""

    def __init__(self, publisher: Publisher, open_book: Callable[[], CursorBook]) -> None:
        self._publisher = publisher
        self._open_book = open_book
        self.name = publisher.name

    async def cursor(self) -> int:
        return (await self._book()).sink_cursor(self.name)

    def due(self) -> bool:
        return self._publisher.due()

    async def publish(self, assessments: Sequence[Assessment], upto: int) -> None:
        if assessments or self._publisher.due():
            await self._publisher.publish(assessments)
        book = await self._book()
        try:
            while upto > book.sink_cursor(self.name):
                if await asyncio.to_thread(book.mark, f"sink/{self.name}", upto):
                    return
        except TableError as error:
            raise SinkError(str(error)) from error

    async def _book(self) -> CursorBook:
        try:
            return await asyncio.to_thread(self._open_book)
        except TableError as error:
            raise SinkError(str(error)) from error
