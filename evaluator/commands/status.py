"""How the evaluation stands: what it is behind by, what waits and why, what it costs, who is behind."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evaluator.errors import SinkError, TableError
from evaluator.ports import LedgerPort, SpanSource
from evaluator.sinks.sink import Sink
from evaluator.tables.views import Views


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything that `evaluator status` tells, in JSON values."""

    cursor: int | None
    spans_version: int
    commits_behind: int | None
    cursor_at: datetime | None
    floor: datetime | None
    backlog: Mapping[str, Mapping[str, Any]]
    paused: Sequence[str]
    scorers: Sequence[Mapping[str, Any]]
    spend: Mapping[str, Any]
    sinks: Sequence[Mapping[str, Any]]
    last_runs: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


_SCORERS = """
with result as (
    select scorer as name, version, state, passed, due, "at" from ledger where scorer is not null and state <> 'replaced'
)
select name, version,
    count(*) filter (where state = 'scored') as scored,
    count(*) filter (where passed) as passed,
    count(*) filter (where passed = false) as failed,
    count(*) filter (where state = 'unscored' and due is null) as unscored,
    count(*) filter (where due is not null) as open,
    count(*) filter (where state = 'scored') / nullif(count(*), 0) as coverage,
    max("at") as last_at
from result group by all order by name, last_at desc
"""
_UNKNOWN = """
select count(*) as cost_unknown from ledger where calls > 0 and cost_usd is null and "at" >= ?
"""
_RUNS = """
select run_id, scope, max("at") as "at", count(*) filter (where scorer is null) as traces,
    count(*) filter (where state = 'scored') as scored, count(*) filter (where state = 'unscored') as unscored,
    count(*) filter (where state = 'deferred') as deferred, sum(cost_usd) as cost_usd
from ledger where run_id is not null group by run_id, scope order by "at" desc limit 5
"""


async def status(
    spans: SpanSource,
    ledger: LedgerPort,
    views: Views,
    sinks: Callable[[], Sequence[Sink]],
    budget: Mapping[str, Any],
    paused: Sequence[str],
    now: datetime,
) -> Status:
    """How things stand now. Raises TableError when the spans or the ledger cannot be read."""
    snapshot, book = spans.open(), ledger.open()
    cursor = book.cursor(snapshot.table_id)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    usd, tokens = book.spent_since(today)
    [unknown] = views.query(_UNKNOWN, [today]).to_pylist()
    notes = []
    if cursor is None:
        notes.append("no tick has run yet")
    if book.floor is not None:
        notes.append(f"traces that ended before {book.floor:%Y-%m-%d %H:%M}Z are out of scope (`start`)")
    return Status(
        cursor=cursor,
        spans_version=snapshot.version,
        commits_behind=None if cursor is None else snapshot.version - cursor,
        cursor_at=book.cursor_at(snapshot.table_id),
        floor=book.floor,
        backlog=_backlog(book.open_rows(), now),
        paused=sorted(paused),
        scorers=views.query(_SCORERS).to_pylist(),
        spend={"usd": usd, "tokens": tokens, **unknown, **budget},
        sinks=[await _sink(sink, book.seq) for sink in sinks()],
        last_runs=views.query(_RUNS).to_pylist(),
        notes=notes,
    )


def _backlog(rows: Sequence[Any], now: datetime) -> dict[str, dict[str, Any]]:
    """What is open, by state: how many, why, and since when."""
    backlog: dict[str, dict[str, Any]] = {}
    for state in ("waiting", "deferred", "unscored"):
        of_state = [row for row in rows if row.state == state]
        oldest = min((row.first for row in of_state if row.first), default=None)
        backlog[state] = {
            "count": len(of_state),
            "due": sum(row.due is not None and row.due <= now for row in of_state),
            "reasons": dict(Counter(row.reason or "" for row in of_state)),
            "oldest_seconds": None if oldest is None else max((now - oldest) / timedelta(seconds=1), 0.0),
        }
    return backlog


async def _sink(sink: Sink, seq: int) -> dict[str, Any]:
    try:
        cursor = await sink.cursor()
    except (SinkError, TableError) as error:
        return {"name": sink.name, "cursor": None, "behind": None, "error": str(error)}
    return {"name": sink.name, "cursor": cursor, "behind": seq - cursor, "error": None}
