"""The tables as one works on them, while others do, too."""

from collections.abc import Sequence
from datetime import datetime

from evaluator.errors import TableError
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.tables.rows import Moved, Row, Unit


class Opened:
    """A ledger and a spans table, opened: the spans are not older than what the book tells of them.

    Every method raises TableError, also where another spans table has come in the place of this one.
    """

    def __init__(self, ledger: LedgerPort, source: SpanSource) -> None:
        self.book: Book = ledger.open()  # first, so that the spans are not older
        self.spans: Spans = source.open()
        self._source = source
        self._known = 0

    def commit(
        self,
        units: Sequence[Unit],
        *,
        moved: Moved | None = None,
        floor: datetime | None = None,
        decisions_yield: bool = False,
    ) -> list[Row]:
        """Commit a plan to the book; what was written of it."""
        written = self.book.commit(units, moved=moved, floor=floor, decisions_yield=decisions_yield)
        self._follow()
        return written

    def read_on(self) -> None:
        """See what others committed until now."""
        self.book.read_on()
        self._follow()

    def _follow(self) -> None:
        """Open the spans table anew where others' rows came."""
        if self.book.others_upto > self._known:
            newer = self._source.open()
            if newer.table_id != self.spans.table_id:
                raise TableError(
                    "the spans table was made anew meanwhile: this run ends, and the next one reads it"
                )
            self.spans, self._known = newer, self.book.others_upto
