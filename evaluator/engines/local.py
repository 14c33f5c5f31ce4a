"""In this process, one chunk after the other."""

from collections.abc import AsyncGenerator, Sequence

from evaluator.chunk import Chunk, Lost, Piece, Work, evaluate_chunks


class LocalEngine:
    """Evaluates chunks in their order, with the work's own parts and tables."""

    async def pieces(self, work: Work, chunks: Sequence[Chunk]) -> AsyncGenerator[Piece | Lost, None]:
        async for piece in evaluate_chunks(work, chunks):
            yield piece
