"""One worker at a time: saves paying twice for the same calls. What is exact is the ledger's guard, never this."""

import asyncio
import fcntl
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Protocol

from evaluator.errors import TableError

log = logging.getLogger(__name__)

LIFETIME = timedelta(seconds=30)
RENEWED_EVERY = timedelta(seconds=10)
LOOKED_AT_EVERY = timedelta(seconds=0.5)
MOST_SKEW = timedelta(minutes=10)
"""So far a holder's clock may be ahead; a lease that ends later was taken by one that was wrong, and counts as ended."""
_HOLDER_BITS = 20


class LeaseBook(Protocol):
    """A ledger as far as leases go."""

    def lease(self, scope: str) -> int: ...
    def mark(self, app_id: str, value: int) -> bool: ...


class Held(Exception):  # noqa: N818 -- not a failure: somebody else is at it
    """Another worker holds the lease; the text says who, as far as this host knows."""


class Lease:
    """The lease of one scope, an integer in the ledger: when it ends, and a number that names its holder.

    The holder also locks a file in the state folder; the lock ends with its process, however that ends, so
    that on the same host a dead holder is noticed at once.
    """

    def __init__(
        self, open_book: Callable[[], LeaseBook], scope: str, state: Path, clock: Callable[[], datetime]
    ) -> None:
        self._open_book = open_book
        self._scope = scope
        self._folder = state / "leases"
        self._clock = clock
        self._holder = secrets.randbits(_HOLDER_BITS) or 1
        self.lost = False

    @asynccontextmanager
    async def held(self, *, wait: bool) -> AsyncIterator[None]:
        """Hold the lease, renewed meanwhile. Raises Held when another worker has it and `wait` is false.

        `lost` says from then on that another worker took it over: finish what is paid for, then stop.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._file(self._holder)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            try:
                await self._acquire(wait)
                renewal = asyncio.create_task(self._renew())
                try:
                    yield
                finally:
                    renewal.cancel()
                    with suppress(asyncio.CancelledError):
                        await renewal
                    await self._release()
            finally:
                path.unlink(missing_ok=True)

    async def _acquire(self, wait: bool) -> None:
        said = False
        while (holder := await asyncio.to_thread(self._try)) is not None:
            if not wait:
                raise Held(holder)
            if not said:
                log.info("another worker is at work: waiting for it", extra={"holder": holder})
                said = True
            await asyncio.sleep(LOOKED_AT_EVERY.total_seconds())

    def _try(self) -> str | None:
        """Take the lease if it is free; else who has it."""
        book = self._open_book()
        ends, holder = self._decoded(book.lease(self._scope))
        now = self._clock()
        lasts = now < ends <= now + LIFETIME + MOST_SKEW
        if holder not in (0, self._holder) and lasts and not self._dead(holder):
            return self._name(holder)
        taken = book.mark(f"lease/{self._scope}", self._encoded(self._clock() + LIFETIME))
        return None if taken else "a worker that has just begun"

    async def _renew(self) -> None:
        """Renew until it ends. A store that is out of reach is tried again while the lease lasts."""
        held_until = self._clock() + LIFETIME
        while True:
            await asyncio.sleep(RENEWED_EVERY.total_seconds())
            try:
                mine = await asyncio.to_thread(self._still_mine)
            except TableError as error:
                log.warning("the lease could not be renewed", extra={"cause": str(error)})
                mine = self._clock() < held_until
            else:
                held_until = self._clock() + LIFETIME
            if not mine:
                self.lost = True
                log.warning("the lease is lost: stopping after what is being judged")
                return

    def _still_mine(self) -> bool:
        book = self._open_book()
        _, holder = self._decoded(book.lease(self._scope))
        return holder == self._holder and book.mark(
            f"lease/{self._scope}", self._encoded(self._clock() + LIFETIME)
        )

    async def _release(self) -> None:
        """Give the lease back; what cannot be told to the ledger ends by itself."""
        try:
            await asyncio.to_thread(self._give_back)
        except TableError as error:
            log.warning("the lease could not be given back: it ends by itself", extra={"cause": str(error)})

    def _give_back(self) -> None:
        book = self._open_book()
        _, holder = self._decoded(book.lease(self._scope))
        if holder == self._holder:
            book.mark(f"lease/{self._scope}", 0)

    def _dead(self, holder: int) -> bool:
        """Whether the holder ran on this host and is gone: its file is there, and nobody locks it."""
        try:
            with self._file(holder).open("r+") as lock:
                return self._unlocked(lock)
        except OSError:
            return False

    @staticmethod
    def _unlocked(lock: IO[str]) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _name(self, holder: int) -> str:
        try:
            return self._file(holder).read_text() or "a worker on this host"
        except OSError:
            return "a worker elsewhere"

    def _file(self, holder: int) -> Path:
        return self._folder / f"{self._scope}-{holder}.lock"

    def _encoded(self, ends: datetime) -> int:
        return (int(ends.timestamp() * 1000) << _HOLDER_BITS) | self._holder

    @staticmethod
    def _decoded(value: int) -> tuple[datetime, int]:
        ends = datetime.fromtimestamp((value >> _HOLDER_BITS) / 1000, UTC)
        return ends, value & ((1 << _HOLDER_BITS) - 1)
