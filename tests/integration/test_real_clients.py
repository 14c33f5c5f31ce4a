"""What real instrumented clients export becomes one whole trace, whichever convention they write.

The model is a stub on loopback that asks for a tool once and then answers.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from openai import OpenAI
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from evaluator.collector.encoding import read_export
from evaluator.collector.otlp import rows
from evaluator.collector.signals import TRACES
from evaluator.tables.decoding import spans_of
from evaluator.traces.assembly import assemble, has_ended_root
from evaluator.traces.trace import Trace
from tests.mlflow_agent import QUESTION, TOOL

ANSWER = "Because of one ticket."
TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "find_tickets", "arguments": '{"about": "exports"}'},
}


class Loopback(ThreadingHTTPServer):
    """A stub of a model provider, and a place that OTLP can be sent to: `exports` keeps the bodies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.exports: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Loopback

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            self.server.exports.append(body)
            self._reply("application/x-protobuf", b"")
        else:
            self._reply("application/json", json.dumps(_completion(json.loads(body))).encode())

    def _reply(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _completion(request: dict[str, Any]) -> dict[str, Any]:
    asked = request["messages"][-1]["role"] == "user"
    message = {"role": "assistant", "content": None if asked else ANSWER}
    if asked:
        message["tool_calls"] = [TOOL_CALL]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub-2026",
        "choices": [{"index": 0, "finish_reason": "tool_calls" if asked else "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with Loopback() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def collected(exports: Sequence[bytes]) -> Trace:
    """The one trace in the bodies of some OTLP requests, by way of the table's columns."""
    messages = [read_export(TRACES, body, "protobuf").message for body in exports]
    spans = spans_of(rows(TRACES, messages, now=1))
    [trace_id] = {span.trace_id for span in spans}
    return assemble(trace_id, spans, incomplete=not has_ended_root(spans))


def says_what_happened(trace: Trace) -> None:
    """What every client's trace has to come to, since they all do the same."""
    assert (trace.request, trace.response) == (QUESTION, ANSWER)
    assert (trace.llm_calls, trace.input_tokens, trace.output_tokens, trace.total_tokens) == (2, 20, 10, 30)
    assert (trace.tools, trace.tool_calls) == (("find_tickets",), 1)
    assert (trace.error_count, trace.incomplete) == (0, False)
    assert trace.model is not None
    assert trace.model.startswith("stub")


def test_openinference_around_the_openai_client(loopback: Loopback) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "support"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    client = OpenAI(base_url=f"{loopback.url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    try:
        # The application's own root says neither input nor output, and leaves the tool without a span.
        with provider.get_tracer("app").start_as_current_span("ask", attributes={"session.id": "session-1"}):
            while True:
                reply = client.chat.completions.create(model="stub", messages=messages, tools=[TOOL])
                message = reply.choices[0].message
                if not message.tool_calls:
                    break
                messages.append(message.model_dump(exclude_none=True))
                messages.append({"role": "tool", "tool_call_id": "call_1", "content": "[]"})
    finally:
        instrumentor.uninstrument()
        client.close()

    trace = collected([encode_spans(exporter.get_finished_spans()).SerializeToString()])

    says_what_happened(trace)
    assert (trace.name, trace.service_name, trace.session_id) == ("ask", "support", "session-1")
    assert trace.steps[1].messages[0].content == "Be brief."


@pytest.mark.parametrize("genai", [False, True])
def test_mlflow_with_autolog_exporting_otlp(loopback: Loopback, tmp_path: Path, genai: bool) -> None:
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{loopback.url}/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "support",
        "MLFLOW_ENABLE_OTEL_GENAI_SEMCONV": str(genai).lower(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    subprocess.run(
        [sys.executable, "-m", "tests.mlflow_agent", f"{loopback.url}/v1"],
        env=environment,
        check=True,
        timeout=100,
        capture_output=True,
    )

    trace = collected(loopback.exports)

    if not genai:  # then the root says what its function took; else the question is the first one below it
        assert json.loads(trace.request or "")["question"] == QUESTION
        trace = replace(trace, request=QUESTION)
    says_what_happened(trace)
    assert ("gen_ai.operation.name" in trace.attributes) == genai
    assert (trace.service_name, trace.session_id, trace.user_id) == ("support", "session-1", "user-1")
