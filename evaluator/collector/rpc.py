"""OTLP over gRPC: the Export method of the trace, logs and metrics services, gzip accepted."""

from datetime import timedelta
from typing import Any, NoReturn

import grpc
import grpc.aio

from evaluator.access import allowed
from evaluator.collector.http import Receive
from evaluator.collector.refusals import REFUSED, Refusal, UnauthorizedError, refusal
from evaluator.collector.signals import SIGNALS, Signal
from evaluator.errors import EvaluatorError

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RpcServer:
    """The three services. Messages come as bytes, so that a bad one costs its record and not the request."""

    def __init__(self, receive: Receive, max_request_bytes: int, token: str | None = None) -> None:
        self._receive = receive
        self._token = token
        self._max_request_bytes = max_request_bytes
        self._server: Any = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises EvaluatorError when the address cannot be had."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._max_request_bytes),
                (
                    "grpc.so_reuseport",
                    0,
                ),  # a second collector on the port is told, and takes no half of its requests
            ],
        )
        server.add_generic_rpc_handlers([self._service(signal) for signal in SIGNALS])
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise EvaluatorError(
                f"collect: cannot listen on {address} for gRPC: the address is taken or not ours "
                "(--grpc-port picks another)"
            ) from error
        await server.start()
        self._server = server

    async def stop(self, grace: timedelta) -> None:
        """Stop listening, and wait for the calls under way."""
        if self._server is not None:
            await self._server.stop(grace.total_seconds())

    def _service(self, signal: Signal) -> Any:
        async def export(body: bytes, context: Any) -> bytes:
            try:
                given = dict(context.invocation_metadata()).get("authorization")
                if not allowed(self._token, given):
                    raise UnauthorizedError("a token is required: authorization: Bearer …")
                return await self._receive(signal, body, "protobuf", False)
            except REFUSED as error:
                await _abort(context, refusal(error))

        return grpc.method_handlers_generic_handler(
            signal.service, {"Export": grpc.unary_unary_rpc_method_handler(export)}
        )


async def _abort(context: Any, refused: Refusal) -> NoReturn:
    metadata = [("grpc-status-details-bin", refused.status.SerializeToString())]
    if refused.again:  # where OpenTelemetry's Python exporter looks for it
        metadata.append(("google.rpc.retryinfo-bin", refused.retry_info.SerializeToString()))
    await context.abort(_CODES[refused.code], refused.message, tuple(metadata))
    raise AssertionError("abort raises")
