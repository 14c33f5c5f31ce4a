"""Publishing beside a tick: what it waits for, and what it does not."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evaluator.feedback import Assessment, Target
from evaluator.ports import LedgerPort
from evaluator.publish import Publishing


class Stuck:
    """A sink that takes something and never ends."""

    name = "stuck"

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def cursor(self) -> int:
        return 0

    def due(self) -> bool:
        return True

    def waiting(self) -> int:
        return 0

    async def publish(self, assessments: Sequence[Assessment], upto: int) -> None:
        self.begun.set()
        await asyncio.Event().wait()

    async def forget(self, targets: Sequence[Target]) -> None: ...


async def test_a_tick_that_is_given_up_does_not_wait_for_a_sink() -> None:
    book: Any = SimpleNamespace(seq=0)
    sink = Stuck()
    publishing = Publishing(cast(LedgerPort, SimpleNamespace(open=lambda: book)), [sink])

    async def tick() -> None:
        async with publishing.beside():
            publishing.tell()
            await asyncio.Event().wait()

    task = asyncio.create_task(tick())
    await sink.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, timeout=5)
