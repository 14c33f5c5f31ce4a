"""A receiver of OTLP traces on loopback, as an operator has one; it keeps what it is sent."""

import gzip
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, kw_only=True)
class Event:
    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A span as it came over the wire; ids are hex."""

    name: str
    kind: int
    seconds: float
    error: str | None
    attributes: Mapping[str, Any]
    events: tuple[Event, ...]
    links: tuple[tuple[str, str], ...]
    resource: Mapping[str, Any]


@dataclass
class Receiver:
    """`spans` in the order of their start. `status` is what it answers; it answers after so many seconds."""

    status: int = 200
    seconds: float = 0.0
    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    @property
    def spans(self) -> list[Seen]:
        found = [
            (span.start_time_unix_nano, seen_of(span, group.resource))
            for request in self.requests
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        return [seen for _, seen in sorted(found, key=lambda pair: pair[0])]


@contextmanager
def receiving(**options: Any) -> Iterator[Receiver]:
    """A receiver that listens until the end."""
    receiver = Receiver(**options)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            time.sleep(receiver.seconds)
            if receiver.status == 200:
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(receiver.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="otlp receiver", daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def seen_of(span: Any, resource: Any) -> Seen:
    return Seen(
        name=span.name,
        kind=span.kind,
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        error=span.status.message if span.status.code == 2 else None,
        attributes=_plain(span.attributes),
        events=tuple(Event(name=event.name, attributes=_plain(event.attributes)) for event in span.events),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        resource=_plain(resource.attributes),
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
