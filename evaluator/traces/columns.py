"""Traces and steps as Arrow: the columns that filters, `sql` scorers, dashboards and `evaluator sql` see."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from evaluator.traces.conventions.values import text_of
from evaluator.traces.trace import Session, Span, Step, Trace

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_NAMES = pa.list_(pa.string())

TRACES = pa.schema(
    [
        ("trace_id", pa.string()),
        ("service_name", pa.string()),
        ("name", pa.string()),
        ("session_id", pa.string()),
        ("user_id", pa.string()),
        ("status", pa.string()),
        ("status_message", pa.string()),
        ("start_time", _TIMESTAMP),
        ("end_time", _TIMESTAMP),
        ("duration_ms", pa.float64()),
        ("request", pa.string()),
        ("response", pa.string()),
        ("model", pa.string()),
        ("models", _NAMES),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("total_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("span_count", pa.int64()),
        ("llm_calls", pa.int64()),
        ("tool_calls", pa.int64()),
        ("tools", _NAMES),
        ("retrievals", pa.int64()),
        ("error_count", pa.int64()),
        ("tags", pa.string()),
        ("attributes", pa.string()),
        ("incomplete", pa.bool_()),
    ]
)

SESSIONS = TRACES.append(pa.field("turns", pa.int64()))
"""What `filter` and `sql` see of a session: the columns of its turns seen as one trace, and how many turns there are."""

STEPS = pa.schema(
    [
        ("duration_ms", pa.float64()),
        ("span_type", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("model", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("tool_name", pa.string()),
    ]
)
"""What the `spans` view has beyond the table's own columns."""

SPANS = pa.schema(
    [
        ("time", _TIMESTAMP),
        ("date", pa.date32()),
        ("service_name", pa.string()),
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("parent_span_id", pa.string()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("start_time_unix_nano", pa.int64()),
        ("end_time_unix_nano", pa.int64()),
        ("attributes", pa.string()),
        (
            "events",
            pa.list_(
                pa.struct(
                    [("time_unix_nano", pa.int64()), ("name", pa.string()), ("attributes", pa.string())]
                )
            ),
        ),
        ("status", pa.struct([("message", pa.string()), ("code", pa.string())])),
        ("resource", pa.struct([("attributes", pa.string())])),
        ("instrumentation_scope", pa.struct([("name", pa.string())])),
        *STEPS,
    ]
)
"""What `span_filter`, and `sql` scorers with `target: span`, see of a span: the columns of the `spans` view that a trace
is made of. `kind` and `status.code` are spelled as in OTLP, whatever the table holds."""

COLUMNS: Mapping[str, pa.Schema] = {"trace": TRACES, "span": SPANS, "session": SESSIONS}
"""What `sql` scorers see, by their target."""

_JSON = {"tags", "attributes"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST = 2**63


def traces_table(traces: Sequence[Trace]) -> pa.Table:
    """One row a trace, in the order given, with the columns of TRACES; `tags` and `attributes` as JSON text."""
    return pa.table(
        {
            name: [
                text_of(getattr(trace, name)) if name in _JSON else getattr(trace, name) for trace in traces
            ]
            for name in TRACES.names
        },
        schema=TRACES,
    )


def sessions_table(sessions: Sequence[Session]) -> pa.Table:
    """One row a session, in the order given, with the columns of SESSIONS."""
    turns = pa.array([len(session.turns) for session in sessions], pa.int64())
    return traces_table([session.whole for session in sessions]).append_column("turns", turns)


def step_columns(steps: Sequence[Step]) -> pa.Table:
    """One row a step, in the order given, with the columns of STEPS."""
    return pa.table({name: [getattr(step, name) for step in steps] for name in STEPS.names}, schema=STEPS)


def spans_table(steps: Sequence[Step], columns: Collection[str] = SPANS.names) -> pa.Table:
    """One row a step, in the order given, with those of the columns of SPANS."""
    names = [name for name in SPANS.names if name in columns]
    schema = pa.schema([SPANS.field(name) for name in names])
    return pa.table({name: [_cell(step, name) for step in steps] for name in names}, schema=schema)


def _cell(step: Step, name: str) -> Any:
    if name in STEPS.names:
        return getattr(step, name)
    read = _READ.get(name)
    return getattr(step.span, name) if read is None else read(step.span)


def _time(span: Span) -> datetime | None:
    try:
        nanos = span.start_time_unix_nano
        return None if nanos is None else _EPOCH + timedelta(microseconds=nanos // 1000)
    except OverflowError:
        return None


def _bounded(nanos: int | None) -> int | None:
    return None if nanos is None or nanos >= _LARGEST else nanos


_READ: Mapping[str, Callable[[Span], Any]] = {
    "time": _time,
    "date": lambda span: None if (time := _time(span)) is None else time.date(),
    "start_time_unix_nano": lambda span: _bounded(span.start_time_unix_nano),
    "end_time_unix_nano": lambda span: _bounded(span.end_time_unix_nano),
    "kind": lambda span: f"SPAN_KIND_{span.kind}",
    "attributes": lambda span: text_of(span.attributes),
    "events": lambda span: [
        {
            "time_unix_nano": _bounded(event.time_unix_nano),
            "name": event.name,
            "attributes": text_of(event.attributes),
        }
        for event in span.events
    ],
    "status": lambda span: {"message": span.status_message, "code": f"STATUS_CODE_{span.status}"},
    "resource": lambda span: {"attributes": text_of(span.resource)},
    "instrumentation_scope": lambda span: {"name": span.scope_name},
}
