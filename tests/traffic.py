"""Spans as an ingest would write them into a spans table, for tests."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from evaluator.tables.delta import DeltaStore
from evaluator.tables.schemas import SPANS

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def nanos(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def span(
    trace: str,
    name: str = "root",
    *,
    parent: str | None = None,
    at: datetime = NOON,
    seconds: float | None = 1.0,
    **attributes: Any,
) -> dict[str, Any]:
    """One row; ids are made from the names. `seconds` None: it has not ended."""
    return {
        "time": at,
        "date": at.date(),
        "service_name": "support",
        "trace_id": trace_id(trace),
        "span_id": span_id(trace, name),
        "parent_span_id": None if parent is None else span_id(trace, parent),
        "name": name,
        "kind": "SPAN_KIND_INTERNAL",
        "start_time_unix_nano": nanos(at),
        "end_time_unix_nano": None if seconds is None else nanos(at + timedelta(seconds=seconds)),
        "attributes": orjson.dumps(attributes).decode(),
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "resource": {"attributes": '{"service.name": "support"}', "dropped_attributes_count": 0},
    }


def answer(
    trace: str, response: str = "Hello", request: str = "Hi?", name: str = "root", **values: Any
) -> dict[str, Any]:
    """A trace of one ended span with a request and a response."""
    return span(trace, name, **values, **{"input.value": request, "output.value": response})


def trace_id(name: str) -> str:
    return name.encode().hex().rjust(32, "0")


def span_id(trace: str, name: str) -> str:
    return f"{trace}{name}".encode().hex()[-16:].rjust(16, "0")


def spans_store(folder: Path) -> DeltaStore:
    """A spans table that `init` would have made."""
    store = DeltaStore(str(folder / "agent_otel_spans"))
    store.create(SPANS, description="Provisioned by evaluator")
    return store


def append(store: DeltaStore, rows: Sequence[dict[str, Any]]) -> int:
    """One commit; its version."""
    return store.open().append(pa.Table.from_pylist(list(rows), schema=SPANS))


def stamp(file: Path, at: datetime) -> None:
    """Have a commit happen at another time."""
    moment = int(at.timestamp() * 1000)
    actions = [orjson.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
    for action in actions:
        if "commitInfo" in action:
            action["commitInfo"]["timestamp"] = moment
        if "add" in action:
            action["add"]["modificationTime"] = moment
    file.write_bytes(b"\n".join(map(orjson.dumps, actions)))
