"""The tee's child process: it alone of the collector imports MLflow, and logs spans to a store without a server.

Stdin holds frames, each its length in 8 bytes and its content: first an order in JSON (`tracking_uri`,
`experiment`), then ExportTraceServiceRequests. Stdout gets one line of JSON for each request: `state` (taken,
rejected, down) and `cause`, which never tells content. It ends with its input.
"""

import os
import sys
from typing import Any, BinaryIO

import orjson
from mlflow import MlflowClient
from mlflow.entities.span import Span
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def serve(source: BinaryIO, answers: BinaryIO) -> None:
    """Log every batch of the input, and answer each."""
    store: tuple[TracingClient, str] | None = None
    order: dict[str, str] = orjson.loads(_frame(source) or b"{}")
    while (body := _frame(source)) is not None:
        try:
            store = store or _open(order["tracking_uri"], order["experiment"])
        except Exception as error:  # noqa: BLE001 -- MLflow's own and every database driver's errors
            answer = _answer("down", error)
        else:
            answer = _log(body, *store)
        answers.write(orjson.dumps(answer) + b"\n")
        answers.flush()


def _frame(source: BinaryIO) -> bytes | None:
    head = source.read(8)
    return source.read(int.from_bytes(head, "big")) if head else None


def _open(tracking_uri: str, experiment: str) -> tuple[TracingClient, str]:
    client = MlflowClient(tracking_uri=tracking_uri)
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    return TracingClient(tracking_uri), experiment_id


def _log(body: bytes, client: TracingClient, experiment_id: str) -> dict[str, str]:
    """As MLflow's server does with a request to its OTLP endpoint (mlflow.server.otel_api of MLflow 3.17)."""
    try:
        request: Any = ExportTraceServiceRequest.FromString(body)
        spans = [
            Span.from_otel_proto(span, resource=group.resource)
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        client.store.log_spans(experiment_id, spans)
    except Exception as error:  # noqa: BLE001 -- MLflow's own and every database driver's errors
        passing = isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE"
        return _answer("down" if passing else "rejected", error)
    return {"state": "taken", "cause": ""}


def _answer(state: str, error: Exception) -> dict[str, str]:
    code = f" {error.error_code}" if isinstance(error, MlflowException) else ""
    return {"state": state, "cause": f"{type(error).__name__}{code}"}


def main() -> None:
    """Run as a child; what MLflow prints goes to stderr, so that stdout holds answers alone."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
