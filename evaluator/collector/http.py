"""OTLP over HTTP: protobuf and JSON, plain or gzip."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from aiohttp import web

from evaluator.access import allowed
from evaluator.collector.commits import OverloadedError
from evaluator.collector.refusals import (
    REFUSED,
    RETRY_AFTER,
    UnauthorizedError,
    UnsupportedMediaError,
    refusal,
)
from evaluator.collector.signals import SIGNALS, Encoding, OversizedRequestError, Signal
from evaluator.errors import EvaluatorError

MAX_READING = 512 * 2**20
"""Bytes of requests that are read at the same time; what has no Content-Length counts as the largest."""

MEDIA_TYPES: dict[str, Encoding] = {"application/x-protobuf": "protobuf", "application/json": "json"}
CONTENT_TYPES: dict[Encoding, str] = {encoding: media for media, encoding in MEDIA_TYPES.items()}

Receive = Callable[[Signal, bytes, Encoding, bool], Awaitable[bytes]]
"""Takes a signal's request, whether it is gzip, and gives the response's bytes once the rows are durable.

Raises one of REFUSED."""


class HttpServer:
    """The endpoints `/v1/traces`, `/v1/logs` and `/v1/metrics`."""

    def __init__(self, receive: Receive, max_request_bytes: int, token: str | None = None) -> None:
        self._receive = receive
        self._max_request_bytes = max_request_bytes
        self._token = token
        self._reading = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises EvaluatorError when the address cannot be had."""
        app = web.Application(client_max_size=self._max_request_bytes)
        app.router.add_routes(self.routes())
        # Bodies are unpacked by us: with a bound, off the event loop, and with the statuses of OTLP.
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise EvaluatorError(
                f"collect: cannot listen on {host}:{port} for HTTP: {error.strerror or error} (--port picks another)"
            ) from error
        self._runner = runner
        self.port = runner.addresses[0][1]

    def routes(self) -> list[web.AbstractRouteDef]:
        """What is served, for another server that serves it too; it must leave bodies compressed."""
        return [web.post(signal.path, self._handler(signal)) for signal in SIGNALS]

    async def stop(self, grace: timedelta) -> None:
        """Stop listening, and wait for the requests under way."""
        if self._runner is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace.total_seconds()):
                    await self._runner.cleanup()

    def _handler(self, signal: Signal) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            encoding = MEDIA_TYPES.get(request.content_type, "json")
            try:
                if not allowed(self._token, request.headers.get("Authorization")):
                    raise UnauthorizedError("a token is required: Authorization: Bearer …")
                gzipped = self._is_gzip(request)
                body = await self._body(request)
                answer = await self._receive(signal, body, encoding, gzipped)
            except REFUSED as error:
                refused = refusal(error)
                seconds = str(int(RETRY_AFTER.total_seconds()))
                return web.Response(
                    status=refused.http_status,
                    body=refused.body(encoding),
                    content_type=CONTENT_TYPES[encoding],
                    headers={"Retry-After": seconds} if refused.again else None,
                )
            return web.Response(body=answer, content_type=CONTENT_TYPES[encoding])

        return handle

    def _is_gzip(self, request: web.Request) -> bool:
        if request.content_type not in MEDIA_TYPES:
            raise UnsupportedMediaError(f"the Content-Type is none of {', '.join(MEDIA_TYPES)}")
        coding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", ""):
            raise UnsupportedMediaError("the Content-Encoding is neither gzip nor identity")
        return coding == "gzip"

    async def _body(self, request: web.Request) -> bytes:
        declared = request.content_length
        if declared is not None and declared > self._max_request_bytes:
            raise OversizedRequestError(f"the request is larger than {self._max_request_bytes:,} bytes")
        with self._room(self._max_request_bytes if declared is None else declared):
            try:
                return await request.read()
            except web.HTTPRequestEntityTooLarge as error:
                raise OversizedRequestError(
                    f"the request is larger than {self._max_request_bytes:,} bytes"
                ) from error

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        if self._reading and self._reading + size > MAX_READING:
            raise OverloadedError("too many large requests arrive at once")
        self._reading += size
        try:
            yield
        finally:
            self._reading -= size
