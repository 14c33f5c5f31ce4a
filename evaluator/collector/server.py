"""The collector: OTLP over HTTP and gRPC in, an answer once the rows are durable."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from aiohttp import web

from evaluator.collector.commits import GroupCommits, OverloadedError, SignalCounters
from evaluator.collector.encoding import Export, encode_response, gunzip, read_export
from evaluator.collector.http import HttpServer
from evaluator.collector.rpc import RpcServer
from evaluator.collector.signals import SIGNALS, TRACES, Encoding, Signal
from evaluator.collector.tee import Tee, TeeCounters
from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore

MAX_REQUEST_BYTES = 64 * 2**20
"""Of one request, decompressed."""

MAX_UNREAD = 256 * 2**20
"""Bytes of requests that have arrived and wait for the thread that reads them."""

PATIENCE = timedelta(seconds=60)
"""How long a request waits for a table that does not answer; exporters give up after 10 s by default."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What became of what was received, by the signal's name (traces, logs, metrics), and of the tee."""

    signals: Mapping[str, SignalCounters]
    tee: TeeCounters | None


class Collector:
    """Receives OTLP and appends it to the tables of `stores`, by table: otel_spans, otel_logs, otel_metrics.

    An export is acknowledged when its rows are in the table, and in the queue of the tee if there is one. What
    cannot be written now is refused so that the client sends it again; the table is tried anew each time.
    Several collectors may write to the same tables.
    """

    def __init__(
        self,
        stores: Mapping[str, DeltaStore],
        tee: Tee | None = None,
        *,
        token: str | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        """`token`: what every request has to carry; None where only this machine can reach the collector."""
        self.counters = Counters(
            signals={signal.name: SignalCounters() for signal in SIGNALS},
            tee=tee.counters if tee else None,
        )
        self._tee = tee
        self._max_request_bytes = max_request_bytes
        self._commits = {
            signal.name: GroupCommits(signal, stores[signal.table], self.counters.signals[signal.name])
            for signal in SIGNALS
        }
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-otlp")
        self._unread = 0
        self._http = HttpServer(self._receive, max_request_bytes, token)
        self._rpc = RpcServer(self._receive, max_request_bytes, token)

    def routes(self) -> list[web.AbstractRouteDef]:
        """OTLP over HTTP, for the worker's own server."""
        return self._http.routes()

    @property
    def http_port(self) -> int:
        """The port that HTTP is listened for on: what was asked for, or the free one that was picked for 0."""
        return self._http.port

    @property
    def grpc_port(self) -> int:
        """The port that gRPC is listened for on, likewise."""
        return self._rpc.port

    async def start(self, host: str, http_port: int, grpc_port: int) -> None:
        """Open the tables, and listen.

        Raises TableError when a table is missing, out of reach or of another layout, EvaluatorError when an
        address cannot be had.
        """
        for commits in self._commits.values():
            await commits.check()
        if self._tee is not None:
            await self._tee.start()
        await self._http.start(host, http_port)
        await self._rpc.start(host, grpc_port)

    async def stop(self, grace: timedelta) -> None:
        """Stop listening, make durable what is there, send on what can be sent; within the grace."""
        deadline = time.monotonic() + grace.total_seconds()
        await asyncio.gather(self._http.stop(grace), self._rpc.stop(grace))
        for commits in self._commits.values():
            await commits.close(_until(deadline))
        if self._tee is not None:
            await self._tee.stop(_until(deadline))
        self._reader.shutdown(wait=False)

    async def _receive(self, signal: Signal, body: bytes, encoding: Encoding, gzipped: bool) -> bytes:
        loop = asyncio.get_running_loop()
        counters = self.counters.signals[signal.name]
        if self._unread and self._unread + len(body) > MAX_UNREAD:
            raise OverloadedError("more requests wait to be read than are taken")
        self._unread += len(body)
        try:
            export = await loop.run_in_executor(self._reader, self._read, signal, body, encoding, gzipped)
        finally:
            self._unread -= len(body)
        counters.refused += export.refused
        if export.own:
            self._note_own(counters, export.own)
        if export.records:
            try:
                await asyncio.wait_for(self._commits[signal.name].add(export), PATIENCE.total_seconds())
            except TimeoutError as error:
                raise TableError(f"the table of the {signal.name} does not answer") from error
            counters.accepted += export.records
            if self._tee is not None and signal is TRACES:
                await self._tee.put(export.message.SerializeToString())
        return encode_response(signal, export.refused, export.reason, encoding)

    def _note_own(self, counters: SignalCounters, spans: int) -> None:
        """The first time it is said, for somebody sends them here; then they are counted."""
        if not counters.own:
            log.warning("the evaluator's own spans arrive here and are refused: they are not to be judged")
        counters.own += spans

    def _read(self, signal: Signal, body: bytes, encoding: Encoding, gzipped: bool) -> Export:
        return read_export(signal, gunzip(body, self._max_request_bytes) if gzipped else body, encoding)


def _until(deadline: float) -> timedelta:
    return timedelta(seconds=max(deadline - time.monotonic(), 0.0))
