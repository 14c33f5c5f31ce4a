"""OTLP requests and responses as bytes: what a request says, what of it is refused, what is answered.

What one record says wrongly costs that record alone: it is left out and counted, its neighbours are kept.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import DecodeError, Message

from evaluator.collector.jsonform import read_json
from evaluator.collector.salvage import salvaged
from evaluator.collector.signals import (
    TRACES,
    Encoding,
    MalformedRequestError,
    OversizedRequestError,
    Signal,
)
from evaluator.telemetry import OWN

MAX_WEIGHT = 256 * 2**20
"""Bytes of rows from one request: a few large resources and many small spans would make terabytes."""


def gunzip(body: bytes, limit: int) -> bytes:
    """The content of gzip bytes; never makes more than `limit` + 1 bytes of it.

    Raises MalformedRequestError and OversizedRequestError.
    """
    member = zlib.decompressobj(wbits=31)
    try:
        content = member.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequestError(f"the body is not gzip: {error}") from error
    if len(content) > limit:
        raise OversizedRequestError(f"the request is larger than {limit:,} bytes when decompressed")
    if not member.eof or member.unused_data:
        raise MalformedRequestError("the body is not gzip: it is cut short, or goes on after its end")
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A request's message without what was refused, how much that was, and why; `own` of it are the evaluator's own spans.

    `records` is what it holds (spans, log records, metrics); `weight` is about what its rows come to in bytes,
    resources and scopes counted for each record.
    """

    message: Message
    records: int
    refused: int
    reason: str
    weight: int
    own: int = 0


def read_export(signal: Signal, body: bytes, encoding: Encoding) -> Export:
    """Read a request's bytes. Text that is not UTF-8 is mended with U+FFFD.

    Raises MalformedRequestError for bytes that are no such request, OversizedRequestError for one whose
    resources would fill more than MAX_WEIGHT bytes of rows.
    """
    message, refused = read_json(signal, body) if encoding == "json" else _from_protobuf(signal, body)
    own = 0
    if signal is TRACES:
        own = _drop_own(message)
        refused += _drop_bad_ids(message) + own
    weight = len(body) + sum(
        (resource.resource.ByteSize() + scope.scope.ByteSize()) * len(records)
        for resource, scope, records in signal.groups(message)
    )
    if weight > MAX_WEIGHT:
        raise OversizedRequestError("the resource attributes, which every row repeats, are too large")
    return Export(
        message=message,
        records=sum(len(records) for _, _, records in signal.groups(message)),
        refused=refused,
        reason=_REASONS[signal.name] if refused else "",
        weight=weight,
        own=own,
    )


_REASONS = {
    "traces": "refused are spans that cannot be read, or whose trace id is not 16 bytes, whose span id is not "
    "8 bytes, whose parent id is neither 8 bytes nor empty, or whose ids are all zero; and the evaluator's own spans",
    "logs": "refused are log records that cannot be read",
    "metrics": "refused are metrics that cannot be read, each counted as one data point",
}


def _drop_own(message: Any) -> int:
    """Take out the spans that an evaluator made of its own calls; how many there were."""
    own = [
        group
        for group in message.resource_spans
        if any(attribute.key == OWN for attribute in group.resource.attributes)
    ]
    for group in own:
        message.resource_spans.remove(group)
    return sum(len(scope.spans) for group in own for scope in group.scope_spans)


def _drop_bad_ids(message: Message) -> int:
    """Take the spans without proper ids out of the message; how many there were."""
    refused = 0
    for _, scope, spans in TRACES.groups(message):
        good = [
            span
            for span in spans
            if len(span.trace_id) == 16
            and len(span.span_id) == 8
            and len(span.parent_span_id) in (0, 8)
            and any(span.trace_id)
            and any(span.span_id)
        ]
        if len(good) < len(spans):
            refused += len(spans) - len(good)
            kept = type(scope)(spans=good)
            del scope.spans[:]
            scope.spans.extend(kept.spans)
    return refused


def _from_protobuf(signal: Signal, body: bytes) -> tuple[Message, int]:
    """The request, and how many of its records were left out because they cannot be read."""
    try:
        return signal.request.FromString(body), 0
    except DecodeError:
        return salvaged(signal, body)


def encode_response(signal: Signal, refused: int, reason: str, encoding: Encoding) -> bytes:
    """The response of an export: empty, or a partial success that counts the refused records."""
    if encoding == "json":
        if not refused:
            return b"{}"
        head, *rest = signal.rejected.split("_")
        name = head + "".join(word.capitalize() for word in rest)
        return orjson.dumps({"partialSuccess": {name: str(refused), "errorMessage": reason}})
    response = signal.response()
    if refused:
        partial: Any = response.partial_success  # type: ignore[attr-defined]
        setattr(partial, signal.rejected, refused)
        partial.error_message = reason
    return response.SerializeToString()
