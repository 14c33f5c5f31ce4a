"""What a scorer sees: inputs, outputs, expectations and the trace they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluator.feedback import Target
from evaluator.traces.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of an evaluation dataset. `inputs` and `outputs` are the trace's request and response as text."""

    target: Target
    trace: Trace
    inputs: str | None
    outputs: str | None
    expectations: Mapping[str, Any] = field(default_factory=dict)


def record_of_trace(trace: Trace, expectations: Mapping[str, Any] | None = None) -> Record:
    """The record of a whole trace."""
    target = Target(
        type="TRACE", target_id=trace.trace_id, trace_id=trace.trace_id, session_id=trace.session_id
    )
    return Record(
        target=target,
        trace=trace,
        inputs=trace.request,
        outputs=trace.response,
        expectations=expectations or {},
    )
