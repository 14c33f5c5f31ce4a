"""What a client is told when its request is not taken, over HTTP and over gRPC.

Source: opentelemetry.io/docs/specs/otlp, "Failures" of both transports: which statuses are sent again.
"""

from dataclasses import dataclass
from datetime import timedelta

import orjson
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code  # type: ignore[import-untyped]
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from evaluator.collector.commits import OverloadedError
from evaluator.collector.signals import Encoding, MalformedRequestError, OversizedRequestError
from evaluator.errors import TableError

RETRY_AFTER = timedelta(seconds=2)


class UnsupportedMediaError(Exception):
    """The request is in a form that the collector does not read."""


class UnauthorizedError(Exception):
    """The request does not carry the token that is asked for where others can reach the collector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that was not taken; `again` when the same one may be taken later."""

    http_status: int
    code: int
    message: str
    again: bool = False

    @property
    def status(self) -> Status:
        """The google.rpc.Status, with a RetryInfo where a later attempt is welcome."""
        status = Status(code=self.code, message=self.message)
        if self.again:
            status.details.add().Pack(self.retry_info)
        return status

    @property
    def retry_info(self) -> RetryInfo:
        return RetryInfo(retry_delay=Duration(seconds=int(RETRY_AFTER.total_seconds())))

    def body(self, encoding: Encoding) -> bytes:
        """The body of the HTTP response, in the encoding of the request."""
        if encoding == "json":
            return orjson.dumps({"code": self.code, "message": self.message})
        return bytes(self.status.SerializeToString())


REFUSED = (
    MalformedRequestError,
    OversizedRequestError,
    UnsupportedMediaError,
    UnauthorizedError,
    OverloadedError,
    TableError,
)


def refusal(error: Exception) -> Refusal:
    """The answer to a request that ended in one of REFUSED. Of the table, a client learns nothing."""
    match error:
        case MalformedRequestError():
            return Refusal(http_status=400, code=Code.INVALID_ARGUMENT, message=str(error))
        case OversizedRequestError():
            return Refusal(http_status=413, code=Code.RESOURCE_EXHAUSTED, message=str(error))
        case UnsupportedMediaError():
            return Refusal(http_status=415, code=Code.INVALID_ARGUMENT, message=str(error))
        case UnauthorizedError():
            return Refusal(http_status=401, code=Code.UNAUTHENTICATED, message=str(error))
        case OverloadedError():
            return Refusal(http_status=503, code=Code.RESOURCE_EXHAUSTED, message=str(error), again=True)
        case _:
            message = "the table cannot be written now; send the request again"
            return Refusal(http_status=503, code=Code.UNAVAILABLE, message=message, again=True)
