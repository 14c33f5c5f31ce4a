"""Whether somebody watches how a judgement comes about: around the calls that it takes, and told what they led to."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from evaluator.dataset.records import Record
from evaluator.feedback import Outcome

Tell = Callable[[str, Outcome], None]
"""Takes a judge's name and its result."""

Watch = Callable[[Record], AbstractContextManager[Tell]]
"""Goes around everything that is asked to judge one record. Neither waits nor raises."""


def unwatched(_: Record) -> AbstractContextManager[Tell]:
    return nullcontext(_ignore)


def _ignore(_: str, __: Outcome) -> None:
    pass
