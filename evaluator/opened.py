"""The tables as one works on them, while others do, too."""

from collections.abc import Sequence
from datetime import datetime

from evaluator.errors import TableError
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.tables.rows import Moved, Row, Unit


class Opened:
    """A ledger and a spans table, opened. What the ledger's rows speak of, the spans table has.

    Raises TableError, also from `commit` where another spans table has come in the place of this one.
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
        """Commit a plan to the book; what was written of it. The spans table is opened anew where others' rows came."""
        written = self.book.commit(units, moved=moved, floor=floor, decisions_yield=decisions_yield)
        if self.book.others_upto > self._known:
            newer = self._source.open()
            if newer.table_id != self.spans.table_id:
                raise TableError(
                    "the spans table was made anew meanwhile: this run ends, and the next one reads it"
                )
            self.spans, self._known = newer, self.book.others_upto
        return written
