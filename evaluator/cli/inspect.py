"""What answers questions: `explain`, `status`, `traces`, `trace`, `sql`."""

import asyncio
import sys
from dataclasses import asdict
from datetime import tzinfo
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evaluator.cli.options import AsJson, ConfigFile, Filter, Since, TraceId, loaded, moment, zone_of
from evaluator.cli.show import cell, counted, percent, print_json, print_table, say, visible
from evaluator.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from evaluator.commands.status import Status
    from evaluator.traces.trace import Trace


class Format(StrEnum):
    """How `sql` prints."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(explain)
    app.command()(status)
    app.command()(traces)
    app.command()(trace)
    app.command()(sql)


def explain(
    trace_id: TraceId,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """For every scorer: what state it is in for a trace, and why.

    Example: `evaluator explain e4fbc7bf8026c0dd979fcdd6ccb4f862`
    """
    from evaluator.commands.explanation import explain as explained
    from evaluator.commands.inspection import entries_in_force, versions_in_force
    from evaluator.wiring import build_tables

    settings = loaded(config)
    tables = build_tables(settings)
    entries = entries_in_force(settings, tables)
    rules = [entry.rule for entry in entries]
    told = explained(trace_id, tables.spans, tables.ledger, versions_in_force(entries), rules)
    if as_json:
        print_json(asdict(told))
    else:
        print(f"trace {told.trace_id}: {told.state}, {told.why}")
        if told.session:
            print(f"its session {told.session_id}: {told.session}")
        of_spans = any(one.span_id for one in told.scorers)
        rows = [
            (
                one.scorer,
                *([one.span_id or ""] if of_spans else []),
                one.version,
                one.state,
                one.value,
                one.why,
                one.rationale,
            )
            for one in told.scorers
        ]
        columns = ("version", "state", "value", "why", "rationale")
        print_table(("scorer", *(["span"] if of_spans else []), *columns), rows)
    if not told.found and told.state == "unknown":
        raise typer.Exit(1)


def status(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """How things stand: lag, backlog, last ticks, results and coverage by scorer, spend, sinks.

    Example: `evaluator status --json`
    """
    from evaluator.commands.inspection import current_status

    settings = loaded(config)
    told = asyncio.run(current_status(settings))
    if as_json:
        print_json(asdict(told))
    else:
        _show_status(told, zone_of(settings))


def _show_status(told: "Status", zone: tzinfo) -> None:
    if told.cursor is None:
        by = (
            f" by shard {', '.join(told.unread_shards)}"
            if len(told.unread_shards) > 1 or told.last_runs
            else ""
        )
        read = f"nothing read yet{by}"
    elif told.cursor > told.spans_version:
        read = f"at version {told.spans_version}, read up to version {told.cursor} of another copy"
    else:
        read = f"read up to version {told.cursor} of {told.spans_version}"
    behind = f", {counted(told.commits_behind, 'commit')} behind" if told.commits_behind else ""
    until = told.log_keeps_unread_until
    kept = (
        f"keeps these until {cell(until, zone)}"
        if until
        else f"keeps commits for {told.log_kept_hours / 24:g} days"
    )
    print(f"spans: {read}{behind}; the log {kept}")
    for state, waiting in told.backlog.items():
        if waiting["count"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in waiting["reasons"].items())
            print(f"{state}: {waiting['count']} ({reasons}), {waiting['due']} due now")
    if told.paused:
        print(f"paused: {'every judge' if '*' in told.paused else ', '.join(told.paused)}")
    columns = ("scorer", "version", "in force", "pass", "fail", "unscored", "open", "coverage", "last result")
    print_table(
        columns,
        (
            (
                one["name"],
                one["version"],
                one["in_force"],
                one["passed"],
                one["failed"],
                one["unscored"],
                one["open"],
                percent(one["coverage"]),
                one["last_at"],
            )
            for one in told.scorers
        ),
        zone=zone,
    )
    for one in told.catch_ups:
        if not one["done"]:
            stands = "" if one["in_force"] else ", ended: this version is no longer in force"
            print(
                f"catching up: {one['scorer']} {one['version']} from {cell(one['start'], zone)} to "
                f"{cell(one['end'], zone)}, at {cell(one['upto'], zone)} ({percent(one['share'])}){stands}"
            )
    _show_spend(told.spend)
    for sink in told.sinks:
        behind = sink["error"] or (
            "up to date" if not sink["behind"] else f"{counted(sink['behind'], 'commit')} behind"
        )
        waits = f"; {sink['waiting']} results wait for their trace" if sink["waiting"] else ""
        print(f"{sink['name']}: {behind}{waits}")
    for run in told.last_runs:
        print(
            f"{cell(run['at'], zone)} {run['scope']}: {run['traces']} traces, {run['scored']} scored, "
            f"{run['unscored']} unscored, {run['deferred']} deferred"
        )
    say(*told.notes)


def _show_spend(spend: "Mapping[str, Any]") -> None:
    """Of all judges, then of those that have a budget of their own."""
    capped = {
        name: one
        for name, one in spend["judges"].items()
        if (one["usd_per_day"], one["tokens_per_day"]) != (None, None)
    }
    for name, one in {"": spend, **capped}.items():
        usd = "" if one["usd_per_day"] is None else f" of ${one['usd_per_day']:.2f}"
        tokens = "" if one["tokens_per_day"] is None else f" of {one['tokens_per_day']:,}"
        held = (
            f"; ${one['reserved_usd']:.4f} and {one['reserved_tokens']:,} tokens are reserved"
            if one["reserved_usd"] or one["reserved_tokens"]
            else ""
        )
        waits = f"; {one['waiting']} results wait for the budget" if one["waiting"] else ""
        whose = f" by {name}" if name else ""
        print(
            f"spend today (UTC){whose}: ${one['usd']:.4f}{usd or ' (no cap)'}, {one['tokens']:,} tokens{tokens}{held}{waits}"
        )
    if spend["cost_unknown"]:
        print(f"{spend['cost_unknown']} results of today are of unknown cost")


def traces(
    since: Since = None,
    failed: Annotated[str | None, typer.Option("--failed", help="Those that failed this judge.")] = None,
    condition: Filter = None,
    session: Annotated[str | None, typer.Option("--session", help="Those of this session.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest first.")] = 50,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Find traces.

    Example: `evaluator traces --since 24h --failed actionable_insights`
    """
    from evaluator.dataset.conditions import parse_condition
    from evaluator.dataset.expressions import ConditionError
    from evaluator.traces.columns import TRACES
    from evaluator.wiring import build_tables

    settings = loaded(config)
    where = ["true"]
    values: list[Any] = []
    if since is not None:
        where.append("start_time >= ?")
        values.append(moment(since, "--since"))
    if session is not None:
        where.append("session_id = ?")
        values.append(session)
    if failed is not None:
        where.append(
            "trace_id in (select trace_id from assessments where name = ? and passed = false and is_current)"
        )
        values.append(failed)
    if condition is not None:
        try:
            where.append(f"({parse_condition(condition, TRACES).text}\n)")
        except ConditionError as error:
            raise ConfigurationError(f"--filter: {error}") from error
    columns = "trace_id, start_time, service_name, name, session_id, status, duration_ms, request, response"
    query = f"select {columns} from traces where {' and '.join(where)} order by start_time desc nulls last limit {limit}"  # noqa: S608 -- a checked condition, and values beside it
    rows = build_tables(settings).views.query(query, values).to_pylist()
    if as_json:
        print_json(rows)
        return
    short = ("trace_id", "start_time", "service_name", "status", "request", "response")
    print_table(short, ([_short(row[name]) for name in short] for row in rows), zone=zone_of(settings))


def trace(
    trace_id: TraceId,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one trace as a tree, with its results.

    Example: `evaluator trace e4fbc7bf8026c0dd979fcdd6ccb4f862`
    """
    from evaluator.commands.trials import find_trace
    from evaluator.wiring import build_tables

    settings = loaded(config)
    tables = build_tables(settings)
    found = find_trace(tables, trace_id)
    query = "select * from assessments where trace_id = ? order by is_current desc, name, updated_at"
    results = tables.views.query(query, [found.trace_id]).to_pylist()
    if as_json:
        from evaluator.scorers.code import trace_mapping

        print_json({**trace_mapping(found), "assessments": results})
        return
    _show_tree(found)
    columns = ("scorer", "value", "passed", "rationale", "version", "current")
    print_table(
        columns,
        (
            (
                row["name"],
                row["value"],
                row["passed"],
                row["rationale"] or row["error"],
                row["version"],
                row["is_current"],
            )
            for row in results
        ),
    )


def _show_tree(found: "Trace") -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    marks = " incomplete" if found.incomplete else ""
    top = Tree(Text(visible(f"{found.trace_id} {found.service_name} {found.status}{marks}")))
    ids = {step.span.span_id for step in found.steps}
    nodes: dict[str, Tree] = {}
    left = list(found.steps)
    while left:
        placed = [
            step for step in left if step.span.parent_span_id in nodes or step.span.parent_span_id not in ids
        ] or left[:1]  # a cycle: begin anywhere
        for step in placed:
            parent = nodes.get(step.span.parent_span_id or "", top)
            milliseconds = "" if step.duration_ms is None else f" {step.duration_ms:.0f} ms"
            label = Text(visible(f"{step.span_type} {step.span.name}{milliseconds} {step.span.status}"))
            for title, text in (("in", step.input), ("out", step.output)):
                if text:
                    label.append(f"\n  {title}: {visible(_short(text))}", style="dim")
            nodes[step.span.span_id] = parent.add(label)
        left = [step for step in left if step not in placed]
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(top)


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY")],
    form: Annotated[Format, typer.Option("--format", "-f", help="How the rows are printed.")] = Format.TABLE,
    config: ConfigFile = None,
) -> None:
    """Read-only SQL (DuckDB) over the views traces, spans, assessments, ledger, scorers.

    Example: `evaluator sql "select name, avg(passed::int) from assessments where is_current group by name"`
    """
    from evaluator.wiring import build_tables

    settings = loaded(config)
    _print_rows(build_tables(settings).views.query(query), form, zone_of(settings))


def _print_rows(rows: "pa.Table", form: Format, zone: tzinfo) -> None:
    match form:
        case Format.TABLE:
            print_table(rows.column_names, _cells(rows), zone=zone)
        case Format.JSON:
            print_json(rows.to_pylist())
        case Format.CSV:
            import csv

            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(rows.column_names)
            writer.writerows([_csv(value) for value in row] for row in _cells(rows))
        case Format.PARQUET:
            import pyarrow.parquet as pq

            if sys.stdout.isatty():
                raise ConfigurationError(
                    "--format parquet is bytes: send it to a file (evaluator sql … > rows.parquet)"
                )
            pq.write_table(rows, sys.stdout.buffer)


def _cells(rows: "pa.Table") -> "Iterable[tuple[Any, ...]]":
    """Rows as tuples: two columns may have the same name."""
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _csv(value: Any) -> Any:
    if isinstance(value, dict | list):
        return cell(value)
    return value.isoformat() if hasattr(value, "isoformat") else value


def _short(value: Any, length: int = 160) -> Any:
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line if len(line) <= length else f"{line[:length]}…"
