"""How the evaluation stands: what it is behind by, what waits and why, what it costs, who is behind."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from evaluator.errors import SinkError, TableError
from evaluator.models.account import ALL, Account
from evaluator.notes import CatchUp, catch_ups, scoring_begun
from evaluator.shards import shards_of
from evaluator.sinks.sink import Sink
from evaluator.tables.accounts import account_of
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.reading import CONTROL
from evaluator.tables.rows import FORGOTTEN, Row
from evaluator.tables.spans import SHORTER, SpansSnapshot, SpansTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything that `evaluator status` tells, in JSON values.

    `log_keeps_unread_until`: from when on the oldest commit that was not read may be cleaned up from the log of the spans
    table; None where all are read, or where it is gone. `unread_shards`: those that have read nothing yet.
    """

    cursor: int | None
    spans_version: int
    commits_behind: int | None
    cursor_at: datetime | None
    log_kept_hours: float
    log_keeps_unread_until: datetime | None
    floor: datetime | None
    backlog: Mapping[str, Mapping[str, Any]]
    paused: Sequence[str]
    scorers: Sequence[Mapping[str, Any]]
    spend: Mapping[str, Any]
    sinks: Sequence[Mapping[str, Any]]
    last_runs: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    catch_ups: Sequence[Mapping[str, Any]] = ()
    unread_shards: Sequence[str] = ()


_COLUMNS = [
    "seq", "scope", "target_type", "target_id", "scorer", "version", "revision", "state", "passed", "due", "run_id",
    "at", "calls", "cost_usd",
]  # fmt: skip
_WHERE = f"target_type <> '{CONTROL}' and (scorer is not null or run_id is not null)"
_SCORERS = """
with latest as (
    select target_type, target_id, scorer, version, revision,
        arg_max(state, seq) as state, arg_max(passed, seq) as passed, max("at") as "at",
        arg_max(coalesce(due, 'infinity'::timestamptz), seq) <> 'infinity'::timestamptz as open
    from ledger where scorer is not null group by target_type, target_id, scorer, version, revision
), current as (
    select scorer, version, max("at") as "at", bool_or(open) as open,
        arg_max(state, revision) filter (where not open) as state,
        arg_max_null(passed, revision) filter (where not open) as passed
    from latest where state <> 'replaced' group by target_type, target_id, scorer, version
)
select scorer as name, version,
    count(*) filter (where state = 'scored') as scored,
    count(*) filter (where state = 'scored' and passed) as passed,
    count(*) filter (where state = 'scored' and not passed) as failed,
    count(*) filter (where state = 'unscored') as unscored,
    count(*) filter (where open) as open,
    count(*) filter (where state = 'scored') / nullif(count(*), 0) as coverage,
    max("at") as last_at
from current group by all order by name, last_at desc
"""
"""Of each target its newest revision, as in `assessments`: one that is still open leaves the older one in its place."""
_TOLD = f"(scorer is not null and due is null and state <> 'replaced' or reason = '{FORGOTTEN}')"
"""What sinks are told of."""
_UNKNOWN = (
    """select count(*) as cost_unknown from ledger where calls > 0 and cost_usd is null and "at" >= ?"""
)
_RUNS = """
with recent as (
    select run_id, min("at") as began from ledger where run_id is not null group by run_id order by began desc limit 5
), told as (
    select run_id, scope, target_type, target_id, scorer, arg_min(state, seq) as state, min("at") as "at",
        sum(cost_usd) as cost_usd
    from ledger where run_id in (select run_id from recent)
    group by run_id, scope, target_type, target_id, scorer, version, revision
)
select run_id, scope, max("at") as "at",
    case when scope = 'eval' then count(distinct target_id) filter (where target_type = 'TRACE')
        else count(*) filter (where scorer is null and state = 'done') end as traces,
    count(*) filter (where state = 'scored') as scored, count(*) filter (where state = 'unscored') as unscored,
    count(*) filter (where state = 'deferred') as deferred, sum(cost_usd) as cost_usd
from told group by run_id, scope order by "at" desc limit 5
"""
"""What a run said first of each target and scorer: put up again, or told again by `maintain`, it is no other's work. An
evaluation decides no traces: those count of which it has a result."""


async def status(
    spans: SpansTable,
    ledger: Ledger,
    sinks: Callable[[], Sequence[Sink]],
    caps: Mapping[str, Mapping[str, Any]],
    paused: Sequence[str],
    now: datetime,
) -> Status:
    """How things stand now. `caps` are the daily budgets, by judge and of all ("").

    Raises TableError when the spans or the ledger cannot be read.
    """
    snapshot, book = spans.open(), ledger.open()
    cursor = book.cursor(snapshot.table_id)
    now = now.astimezone(UTC)
    scorers, [unknown], runs = _counted(book, now.replace(hour=0, minute=0, second=0, microsecond=0))
    opened = book.open_rows()
    notes, keeps_until = _of_scope(book, snapshot.table_id), None
    shards = shards_of(book.shards)
    unread = [shard for shard in shards if book.cursor(snapshot.table_id, shard) is None]
    if len(unread) == len(shards):
        notes.append("no tick has come to its end yet")
    elif cursor is None:
        names = ", ".join(f"{shard.index}/{shard.count}" for shard in unread)
        notes.append(f"of the shards, {names} has read nothing yet (`evaluator run --shard`)")
    elif cursor < snapshot.version:
        keeps_until, said = _log_keeps(snapshot, cursor + 1, now)
        notes += said
    elif cursor > snapshot.version:
        notes.append(f"the spans table: {SHORTER}: the next tick catches up by its files' age")
    published = [await _sink(sink, book) for sink in sinks()]
    notes += [_waits(one["name"], one["waiting"]) for one in published if one["waiting"]]
    return Status(
        cursor=cursor,
        spans_version=snapshot.version,
        commits_behind=None if cursor is None else max(snapshot.version - cursor, 0),
        cursor_at=book.cursor_at(snapshot.table_id),
        log_kept_hours=snapshot.log_kept_for.total_seconds() / 3600,
        log_keeps_unread_until=keeps_until,
        floor=book.floor,
        backlog=_backlog(opened, now),
        paused=sorted(paused),
        scorers=scorers,
        spend={**_spend(account_of(book, now.date()), caps, opened), **unknown},
        sinks=published,
        last_runs=runs,
        notes=notes,
        catch_ups=[_caught_up(one) for one in catch_ups(book.notes(), shards)],
        unread_shards=[f"{shard.index}/{shard.count}" for shard in unread],
    )


def _of_scope(book: Book, table_id: str) -> list[str]:
    """What of the spans table is not evaluated."""
    begun, floor = scoring_begun(book.notes(), table_id), book.floor
    told = []
    if begun is not None:
        told.append(f"scoring began {begun:%Y-%m-%d %H:%M}Z with what arrives from then on (`start`)")
    if floor is not None:
        told.append(
            f"traces that ended before {floor:%Y-%m-%d %H:%M}Z are out of scope (`start`, `retention`)"
        )
    return told


def _log_keeps(spans: SpansSnapshot, unread: int, now: datetime) -> tuple[datetime | None, list[str]]:
    """Until when the log keeps the oldest commit that was not read, and what there is to say of that."""
    until = spans.log_keeps_until(unread)
    if until is None:
        return None, [
            f"the log of the spans table no longer has version {unread}, which is not read: the next tick "
            "catches up by the age of the table's files"
        ]
    if until > now + spans.log_kept_for / 4:
        return until, []
    return until, [
        f"the log of the spans table may lose version {unread}, which is not read, from {until:%Y-%m-%d %H:%M}Z "
        "on: run the worker before"
    ]


def _caught_up(one: CatchUp) -> dict[str, Any]:
    """A past that a version of a scorer catches up on (`since`), and the share of it that is done."""
    share = (one.upto - one.start) / (one.end - one.start) if one.end > one.start else 1.0
    return {**asdict(one), "done": one.done, "share": min(share, 1.0)}


def _counted(book: Book, today: datetime) -> list[list[dict[str, Any]]]:
    """The results by scorer, those of today that nobody knows the cost of, and the last runs: from one reading."""
    import duckdb

    rows = book.table(_WHERE, _COLUMNS)
    for name in ("scope", "target_type", "scorer", "version", "state", "run_id"):  # a few words, many times
        index = rows.column_names.index(name)
        rows = rows.set_column(index, name, rows.column(name).dictionary_encode())
    with duckdb.connect(":memory:") as database:
        database.execute("set TimeZone = 'UTC'")
        database.register("ledger", rows)
        asked: Sequence[tuple[str, list[datetime]]] = ((_SCORERS, []), (_UNKNOWN, [today]), (_RUNS, []))
        return [_rows(database.sql(query, params=values).to_arrow_table()) for query, values in asked]


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _spend(account: Account, caps: Mapping[str, Mapping[str, Any]], opened: Sequence[Row]) -> dict[str, Any]:
    """What today took, and what workers hold of the budget (or never settled), of all and of each judge."""

    def told(purse: str) -> dict[str, Any]:
        taken, reserved = account.taken(purse), account.reserved(purse)
        spent = taken - reserved
        return {
            "usd": spent.usd,
            "tokens": round(spent.tokens),
            "reserved_usd": reserved.usd,
            "reserved_tokens": round(reserved.tokens),
            "usd_per_day": None,
            "tokens_per_day": None,
            **caps.get(purse, {}),
            "waiting": sum(row.reason == "budget" and purse in (ALL, row.scorer) for row in opened),
        }

    judges = sorted({*account.spent, *caps} - {ALL})
    return {**told(ALL), "judges": {judge: told(judge) for judge in judges}}


def _backlog(rows: Sequence[Row], now: datetime) -> dict[str, dict[str, Any]]:
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


async def _sink(sink: Sink, book: Book) -> dict[str, Any]:
    """How far a sink is behind, in commits that hold something to publish or to erase."""
    told = {"name": sink.name, "waiting": sink.waiting()}
    try:
        cursor = await sink.cursor()
    except (SinkError, TableError) as error:
        return {**told, "cursor": None, "behind": None, "error": str(error)}
    unpublished = book.table(f"seq > {cursor} and {_TOLD}", ["seq"]) if cursor < book.seq else None
    behind = 0 if unpublished is None else len(unpublished.column("seq").unique())
    return {**told, "cursor": cursor, "behind": behind, "error": None}


def _waits(sink: str, results: int) -> str:
    """That results wait for their traces, and the way out."""
    return (
        f"{results} results are not in {sink} yet: it does not have their traces, and without these it cannot show them. "
        "After an hour they are left out there, and only there. Send the traces there too: `collect: {tee: mlflow}` "
        "in evaluator.yaml, or log them to MLflow from the application"
    )
