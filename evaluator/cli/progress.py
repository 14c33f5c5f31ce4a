"""How far a command is: a bar on a terminal, elsewhere a line now and then; on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic

SAID_EVERY = timedelta(seconds=10)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Within it, tell how many are done, of how many at most."""
    if not sys.stderr.isatty():
        yield _Lines(what).tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


class _Lines:
    """The first line comes after a while: what is done by then needs none."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = monotonic()

    def tell(self, done: int, of: int) -> None:
        if monotonic() - self._said >= SAID_EVERY.total_seconds():
            self._said = monotonic()
            print(f"{done:,} of {of:,} {self._what}", file=sys.stderr)
