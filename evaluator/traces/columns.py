"""Traces and steps as Arrow: the columns that filters, `sql` scorers, dashboards and `evaluator sql` see."""

from collections.abc import Sequence

import pyarrow as pa

from evaluator.traces.conventions.values import text_of
from evaluator.traces.trace import Step, Trace

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

_JSON = {"tags", "attributes"}


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


def step_columns(steps: Sequence[Step]) -> pa.Table:
    """One row a step, in the order given, with the columns of STEPS."""
    return pa.table({name: [getattr(step, name) for step in steps] for name in STEPS.names}, schema=STEPS)
