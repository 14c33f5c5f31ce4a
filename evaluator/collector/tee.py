"""The tee: what the collector accepted is sent on to MLflow too, from a queue on disk and in its own time."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from evaluator.collector.signals import TRACES
from evaluator.errors import EvaluatorError

MAX_BYTES = 512 * 10**6
"""What the queue may come to; a request that does not fit is dropped with a warning, for it is safe in the table."""

MAX_BATCH_BYTES = 2**20
MAX_ATTEMPTS = 5
"""How often a single trace is tried that MLflow does not take, the distances growing."""

MAX_PAUSE = timedelta(minutes=1)
REST_AFTER = timedelta(seconds=30)
RETRY_AFTER = timedelta(seconds=5)
"""The first distance between two attempts at a trace that was not taken; each next one is four times as long."""

_log = logging.getLogger(__name__)


class UnreachableError(Exception):
    """The store does not answer; everything waits for it."""


class RejectedError(Exception):
    """The store answered, and did not take this batch."""


class Destination(Protocol):
    """Where a tee leads to."""

    async def send(self, body: bytes) -> None:
        """Hand over an ExportTraceServiceRequest in protobuf; idempotent, all of it or nothing.

        Raises UnreachableError and RejectedError, neither of which says anything of the content.
        """
        ...

    async def rest(self) -> None:
        """Let go of what is held while there is nothing to send."""
        ...


@dataclass(slots=True, kw_only=True)
class TeeCounters:
    """Requests sent on, traces or requests dropped, and bytes that wait."""

    sent: int = 0
    dropped: int = 0
    waiting_bytes: int = 0


@dataclass(slots=True)
class _Retry:
    attempts: int = 0
    due: float = 0.0


@dataclass(slots=True)
class _Pause:
    """A growing distance between attempts at a store that does not answer, in seconds."""

    seconds: float = field(default=1.0)

    def grow(self) -> float:
        now = self.seconds
        self.seconds = min(now * 2, MAX_PAUSE.total_seconds())
        return now


class Tee:
    """A bounded queue of files, and the task that sends the oldest first.

    A file that two collectors on one folder both send arrives twice, which MLflow merges.
    """

    def __init__(
        self,
        folder: Path,
        destination: Destination,
        *,
        max_bytes: int = MAX_BYTES,
        retry_after: timedelta = RETRY_AFTER,
    ) -> None:
        self.counters = TeeCounters()
        self._folder = folder
        self._destination = destination
        self._max_bytes = max_bytes
        self._retry_after = retry_after.total_seconds()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._retries: dict[str, _Retry] = {}
        self._sending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to send, what an earlier process left first. Raises EvaluatorError when there can be no queue."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluatorError(
                f"{self._folder}: the tee's queue cannot be made: {error.strerror}"
            ) from error
        self.counters.waiting_bytes = sum(path.stat().st_size for path in self._files())
        self._sending = asyncio.create_task(self._send_forever())

    async def put(self, body: bytes) -> None:
        """Queue a request. Never raises for the disk: the acknowledgement does not depend on the tee."""
        if self.counters.waiting_bytes + len(body) > self._max_bytes:
            self._drop("The tee's queue is full; a request is not sent on to MLflow.")
            return
        try:
            await asyncio.to_thread(self._write, f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}", body)
        except OSError as error:
            self._drop("The tee's queue cannot be written; a request is not sent on to MLflow.", error)
            return
        self.counters.waiting_bytes += len(body)
        self._wake.set()

    async def stop(self, grace: timedelta) -> None:
        """Send what can be sent within the grace; the rest stays on disk for the next start."""
        if self._sending is None:
            return
        self._stopping.set()
        self._wake.set()
        await asyncio.wait([self._sending], timeout=grace.total_seconds())
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        await self._destination.rest()

    async def _send_forever(self) -> None:
        pause = _Pause()
        while True:
            self._wake.clear()
            try:
                answered = await self._send_all()
            except OSError as error:
                _log.warning("The tee's queue cannot be read.", extra={"cause": str(error)})
                answered = False
            if self._stopping.is_set():
                return
            if not answered:
                await _happened(self._stopping, pause.grow())
                continue
            pause = _Pause()
            if self._retries:
                await _happened(self._wake, self._retry_after)
            elif not await _happened(self._wake, REST_AFTER.total_seconds()):
                await self._destination.rest()
                await self._wake.wait()

    async def _send_all(self) -> bool:
        """Send what is due, oldest first; False when the store does not answer."""
        while batch := await asyncio.to_thread(self._next_batch):
            body = await asyncio.to_thread(_read, batch)
            try:
                if body:
                    await self._destination.send(body)
            except UnreachableError as error:
                _log.warning("MLflow does not answer the tee.", extra={"cause": str(error)})
                return False
            except RejectedError as error:
                self._divide(batch, body, error)
            else:
                self._remove(batch)
                self.counters.sent += len(batch)
        return True

    def _next_batch(self) -> list[Path]:
        now = time.monotonic()
        batch: list[Path] = []
        size = 0
        for path in self._files():
            retry = self._retries.get(path.name)
            if retry is not None:
                if retry.due <= now and not batch:
                    return [path]
                continue
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
                if batch and size > MAX_BATCH_BYTES:
                    break
                batch.append(path)
        return batch

    def _divide(self, batch: list[Path], body: bytes, error: RejectedError) -> None:
        """What was not taken together is sent file by file, then trace by trace; then tried again, or dropped."""
        if len(batch) > 1:
            self._retries.update({path.name: _Retry() for path in batch})
            return
        if len(parts := _traces(body)) > 1:
            for index, part in enumerate(parts):
                path = self._write(f"{batch[0].stem}-{index:06d}", part)
                self._retries[path.name] = _Retry()
                self.counters.waiting_bytes += len(part)
            self._remove(batch)
            return
        retry = self._retries.setdefault(batch[0].name, _Retry())
        retry.attempts += 1
        retry.due = time.monotonic() + self._retry_after * 4 ** (retry.attempts - 1)
        if retry.attempts >= MAX_ATTEMPTS:
            self._remove(batch)
            self._drop("MLflow does not take a trace; it is not sent on.", error)

    def _write(self, stem: str, body: bytes) -> Path:
        part = self._folder / f"{stem}.part"
        part.write_bytes(body)
        return part.replace(self._folder / f"{stem}.otlp")

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._retries.pop(path.name, None)
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                self.counters.waiting_bytes -= size

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.otlp"))

    def _drop(self, sentence: str, error: Exception | None = None) -> None:
        self.counters.dropped += 1
        _log.warning(sentence, extra={"cause": str(error)} if error else {})


def _read(batch: Iterable[Path]) -> bytes:
    """One request of several: protobuf messages that stand one after the other are one message."""
    body = b""
    for path in batch:
        with contextlib.suppress(FileNotFoundError):  # another collector on this folder was first
            body += path.read_bytes()
    return body


def _traces(body: bytes) -> list[bytes]:
    """A request taken apart into one request for each trace, in the order of their first spans."""
    parts: dict[bytes, Any] = {}
    try:
        message = TRACES.request.FromString(body)
    except DecodeError:  # the file was cut when the machine went down
        return [body]
    for resource, scope, spans in TRACES.groups(message):
        by_trace: dict[bytes, list[Any]] = defaultdict(list)
        for span in spans:
            by_trace[span.trace_id].append(span)
        for trace_id, own in by_trace.items():
            group = parts.setdefault(trace_id, TRACES.request()).resource_spans.add(
                resource=resource.resource, schema_url=resource.schema_url
            )
            group.scope_spans.add(scope=scope.scope, schema_url=scope.schema_url, spans=own)
    return [part.SerializeToString() for part in parts.values()]


async def _happened(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer; whether it came."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
