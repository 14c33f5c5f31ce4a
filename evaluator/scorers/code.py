"""A scorer that is the user's own Python: a plain function, or one that MLflow's @scorer decorates."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Reason, Scored, SourceType, Unscored
from evaluator.guidelines.definitions import PythonDefinition
from evaluator.scorers.process import ScorerFailure, ScorerProcess
from evaluator.scorers.scorer import about, fingerprint
from evaluator.scorers.source import find_module
from evaluator.scorers.verdict import not_applicable, storable, unscored, verdict
from evaluator.traces.trace import Step, Trace

LARGEST = 2**63
PATIENCE = 3
"""After so many records in a row that took too long, the rest of a chunk is left for a later attempt."""
_PASSED = {"yes": True, "pass": True, "true": True, "no": False, "fail": False, "false": False}


class CodeScorer:
    """Calls a function in the process of its module, with those of these arguments that it names:

    `inputs` and `outputs` (the request and the response as text, or None; a span's input and output where it is about
    one, a session's requests and responses), `expectations` (a mapping), `span` (one of the trace's `spans`, or None),
    `session` (a session's turns, each as `trace` is, or None), and `trace` (see `trace_mapping`; also for an MLflow
    @scorer, which must not expect MLflow's Trace here; of a session all turns seen as one).
    """

    source_type: SourceType = "CODE"
    waits = False

    def __init__(self, definition: PythonDefinition, process: ScorerProcess, home: Path) -> None:
        self.name = definition.name
        self._process = process
        module, _, self._function = definition.python.partition(":")
        source = find_module(module, home)
        content = source.read_bytes() if source is not None else b""
        self.definition = {
            "kind": "python",
            "python": definition.python,
            "source": hashlib.sha256(content).hexdigest()[:12],
            **about(definition.target),
        }
        self.version = fingerprint(self.definition)

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        """One result for each record; what the function does to one record is no other's loss."""
        if not records:
            return []
        try:
            parameters = await self._process.parameters(self._function)
        except ScorerFailure as failure:
            return [unscored(failure.reason, failure.detail)] * len(records)
        scored: list[Scored] = []
        timeouts = 0
        for record in records:
            if timeouts >= PATIENCE:
                scored.append(
                    unscored(Reason.SCORER_TIMEOUT, f"not tried: {PATIENCE} in a row took too long")
                )
                continue
            scored.append(await self._score(record, parameters))
            outcome = scored[-1].outcome
            late = isinstance(outcome, Unscored) and outcome.reason is Reason.SCORER_TIMEOUT
            timeouts = timeouts + 1 if late else 0
        return scored

    async def close(self) -> None:
        """End the process; scorers of the same module share it."""
        await self._process.close()

    async def _score(self, record: Record, parameters: Sequence[str]) -> Scored:
        try:
            reply = await self._process.call(self._function, _arguments(record, parameters))
        except ScorerFailure as failure:
            return unscored(failure.reason, failure.detail)
        value = reply["value"]
        rationale = storable(reply["rationale"] or f"{self._function} returned {value!r}")
        if value is None:
            return not_applicable(f"{self._function} returned None")
        passed = value if isinstance(value, bool) else _PASSED.get(str(value).strip().lower())
        if passed is not None:
            return verdict(passed, rationale)
        if isinstance(value, str):
            return Scored(outcome=Feedback(value=storable(value), passed=None, rationale=rationale))
        if isinstance(value, int) and abs(value) >= LARGEST:
            return unscored(
                Reason.SCORER_FAILED, f"{self._function} returned a number that no table can hold"
            )
        return Scored(outcome=Feedback(value=value, passed=None, rationale=rationale))


def _arguments(record: Record, parameters: Sequence[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for parameter in parameters:
        match parameter:
            case "inputs":
                arguments["inputs"] = record.inputs
            case "outputs":
                arguments["outputs"] = record.outputs
            case "expectations":
                arguments["expectations"] = dict(record.expectations)
            case "session":
                turns = record.session.turns if record.session else ()
                arguments["session"] = [trace_mapping(turn) for turn in turns] if turns else None
            case "span":
                arguments["span"] = None if record.step is None else _span_mapping(record.step)
            case "trace":
                arguments["trace"] = trace_mapping(record.trace)
    return arguments


def trace_mapping(trace: Trace) -> dict[str, Any]:
    """The trace's columns in JSON values (times as ISO texts, lists, objects), and its `spans` in order of time.

    A span has `span_id, parent_span_id, name, span_type, status, status_message, start_time_unix_nano,
    duration_ms, input, output, model, input_tokens, output_tokens, tool_name, attributes`.
    """
    columns = {
        field.name: _plain(getattr(trace, field.name))
        for field in fields(trace)
        if field.name not in ("root_span_id", "steps")
    }
    return {**columns, "spans": [_span_mapping(step) for step in trace.steps]}


def _span_mapping(step: Step) -> dict[str, Any]:
    span = step.span
    return {
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "span_type": step.span_type,
        "status": span.status,
        "status_message": span.status_message,
        "start_time_unix_nano": span.start_time_unix_nano,
        "duration_ms": step.duration_ms,
        "input": step.input,
        "output": step.output,
        "model": step.model,
        "input_tokens": step.input_tokens,
        "output_tokens": step.output_tokens,
        "tool_name": step.tool_name,
        "attributes": dict(span.attributes),
    }


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
        case _:
            return value
