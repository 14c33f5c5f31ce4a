"""Big tables to measure with, made once and kept between runs in the user's cache folder."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from evaluator.tables.delta import DeltaStore
from evaluator.tables.schemas import LEDGER, SPANS

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SPANS_A_TRACE = 8
SPANS_A_COMMIT = 10_000
"""1,250 traces of 8 spans, as a busy quarter of an hour brings them."""
RESULTS_A_COMMIT = 10_000
MADE_BY = "3"
"""Raised when what the tables hold is changed."""


def kept(name: str) -> Path:
    """A folder that outlives the run; what an interrupted run left half made there is made anew."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "evaluator-benchmarks" / MADE_BY / name


def spans_table(rows: int, *, texts: bool = True, steps: int = SPANS_A_TRACE, name: str = "spans") -> Path:
    """A spans table of so many rows, a commit for each quarter of an hour."""
    folder = kept(f"{name}-{rows}-{steps}")
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        store = DeltaStore(str(folder / "agent_otel_spans"))
        store.create(SPANS, description="Provisioned by evaluator: made to measure with")
        for number, table in enumerate(commits(rows, texts, steps)):
            store.open().append(table)
            if number % 100 == 99:
                store.open().checkpoint()
        (folder / "made").touch()
    return folder


def commits(rows: int, texts: bool, steps: int, first: int = 0) -> Iterator[pa.Table]:
    for number in range(first, first + rows // SPANS_A_COMMIT):
        yield commit(number, texts, steps)


def commit(number: int, texts: bool = True, steps: int = SPANS_A_TRACE) -> pa.Table:
    """What one ingest writes: whole traces, each a root with its steps, LLM calls and tool calls in turn."""
    index = np.arange(SPANS_A_COMMIT) + number * SPANS_A_COMMIT
    trace, step = index // steps, index % steps
    starts = _nanos(BEGAN + timedelta(minutes=15) * number) + (trace % 1_250) * 10**8 + step * 10**6
    seconds = np.where(step == 0, 8, 1)
    roots = step == 0
    # An id of zeros is none: OpenTelemetry has it that such a span is invalid.
    ids = [f"{value:032x}" for value in trace + 1]
    spans = [f"{value:016x}" for value in index + 1]
    parents = [None if root else f"{value:016x}" for root, value in zip(roots, index - step + 1, strict=True)]
    times = pa.array(starts // 1_000, pa.timestamp("us", tz="UTC"))
    kinds = _attributes("Refunds rose by 12 % last week. " * (20 if texts else 1))
    columns = {
        "record_id": pa.array(spans),
        "time": times,
        "date": times.cast(pa.date32()),
        "service_name": pa.array(["support"] * SPANS_A_COMMIT),
        "trace_id": pa.array(ids),
        "span_id": pa.array(spans),
        "parent_span_id": pa.array(parents, pa.string()),
        "name": pa.array(["root" if root else "step" for root in roots]),
        "kind": pa.array(["SPAN_KIND_INTERNAL"] * SPANS_A_COMMIT),
        "start_time_unix_nano": pa.array(starts),
        "end_time_unix_nano": pa.array(starts + seconds * 10**9),
        "attributes": pa.array([kinds[min(value, 1) + (value % 2)] for value in step.tolist()]),
        "status": pa.array([{"code": "STATUS_CODE_OK", "message": ""}] * SPANS_A_COMMIT),
    }
    filled = [
        columns[field.name].cast(field.type)
        if field.name in columns and not pa.types.is_nested(field.type)
        else columns.get(field.name, pa.nulls(SPANS_A_COMMIT, field.type))
        for field in SPANS
    ]
    return pa.table(dict(zip(SPANS.names, filled, strict=True)), schema=SPANS)


def ledger_rows(number: int) -> pa.Table:
    """One commit of results as a tick writes them."""
    index = np.arange(RESULTS_A_COMMIT) + number * RESULTS_A_COMMIT
    ids = pa.array([f"{value // 3 + 1:032x}" for value in index])
    at = BEGAN + timedelta(minutes=15) * number
    same = {
        "seq": number + 1,
        "day": at.date(),
        "scope": "live",
        "target_type": "TRACE",
        "version": "0123456789abcdef",
        "revision": 0,
        "state": "scored",
        "attempts": 1,
        "first": at,
        "last": at,
        "at": at,
        "run_id": f"{number:032x}",
        "value": '"yes"',
        "passed": True,
        "rationale": "The response names a figure with its unit.",
        "source_type": "LLM_JUDGE",
        "model": "openai/stub",
        "calls": 1,
        "input_tokens": 400,
        "output_tokens": 40,
        "cost_usd": 0.0001,
        "latency_ms": 200.0,
        "trace_start": at,
    }
    columns = {
        "target_id": ids,
        "trace_id": ids,
        "scorer": pa.array([f"g{value % 3}" for value in index]),
    }
    filled = [
        columns[field.name]
        if field.name in columns
        else pa.repeat(pa.scalar(same.get(field.name), field.type), RESULTS_A_COMMIT)
        for field in LEDGER
    ]
    return pa.table(dict(zip(LEDGER.names, filled, strict=True)), schema=LEDGER)


def _attributes(text: str) -> list[str]:
    root = {"input.value": "How did refunds go?", "output.value": text}
    model = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-5-mini",
        "llm.token_count.prompt": 120,
        "llm.token_count.completion": 40,
        "input.value": text,
        "output.value": text,
    }
    tool = {"openinference.span.kind": "TOOL", "tool.name": "search", "input.value": text}
    return [orjson.dumps(attributes).decode() for attributes in (root, model, tool)]


def _nanos(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000
