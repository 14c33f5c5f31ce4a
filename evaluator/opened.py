"""What others wrote while one was at work may speak of spans that came meanwhile."""

from evaluator.errors import TableError
from evaluator.ports import Book, Spans, SpanSource


def spans_for(book: Book, source: SpanSource, spans: Spans, known: int) -> tuple[Spans, int]:
    """The spans table with all that the book's rows speak of, and up to which `seq` of others' rows that is known.

    Opened anew only where the book has seen more of others than was `known`. Raises TableError, also where another table
    stands in its place.
    """
    if book.others_upto <= known:
        return spans, known
    newer = source.open()
    if newer.table_id != spans.table_id:
        raise TableError("the spans table was made anew meanwhile: this run ends, and the next one reads it")
    return newer, book.others_upto
