"""Reading ahead: while one thing is being worked on, the next ones are on their way from the store."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")

AT_ONCE = 8
HELD_BYTES = 64 * 1024 * 1024
"""How much may be on its way or wait to be taken; a single thing that is larger is read alone."""


def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], size: Callable[[Item], int]
) -> Iterator[Read]:
    """What `read` gives for each item, in their order; some are read at once, in threads, of `size` bytes each.

    An error of `read` is raised where its result would have stood. What was begun when the caller stops is waited for.
    """
    held = 0
    waiting: deque[tuple[int, Future[Read]]] = deque()
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="read-ahead")
    try:
        for item in items:
            weight = size(item)
            while waiting and (len(waiting) == AT_ONCE or held + weight > HELD_BYTES):
                done, result = waiting.popleft()
                yield result.result()
                held -= done
            waiting.append((weight, pool.submit(read, item)))
            held += weight
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)
