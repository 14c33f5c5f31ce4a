"""The port of every place that results are published to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluator.feedback import Assessment, Erased


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A sink that could not catch up: how far it is, and why."""

    sink: str
    cursor: int
    detail: str


class Sink(Protocol):
    """Publishes assessments and remembers how far it came, as a `seq` of the ledger."""

    @property
    def name(self) -> str: ...

    async def cursor(self) -> int:
        """The highest `seq` whose assessments are published; 0 at first. Raises SinkError."""
        ...

    def due(self) -> bool:
        """Whether something wants another try although nothing is new; then publish nothing, up to the cursor."""
        ...

    def waiting(self) -> int:
        """How many results up to the cursor are not there yet, as the place does not know their trace."""
        ...

    async def publish(self, assessments: Sequence[Assessment], upto: int) -> None:
        """Publish the latest state of each key with cursor < seq <= upto, and move the cursor to `upto`.

        Idempotent: the same assessments again, also after a crash between the two, add nothing.
        Raises SinkError; then the cursor has not moved.
        """
        ...

    async def forget(self, erased: Sequence[Erased]) -> None:
        """Erase what was published of some traces and sessions; of a session, what came since stays.

        Idempotent. Raises SinkError; then the same is asked again before anything newer is published.
        """
        ...
