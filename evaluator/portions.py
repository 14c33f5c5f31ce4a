"""A sequence in portions."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def portions(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in their order, at most `size` at once."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
