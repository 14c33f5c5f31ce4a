"""How results look on a terminal: tables on stdout, what is to be said beside them on stderr."""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any

from evaluator.sinks.sink import Behind
from evaluator.summary import Summary

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def say(*sentences: str) -> None:
    """Tell the story, on stderr."""
    for sentence in sentences:
        print(visible(sentence), file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON value on stdout; times as ISO texts."""
    print(json.dumps(_jsonable(value), indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None, zone: tzinfo = UTC
) -> None:
    """A table that fits a terminal, and is whole where stdout is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value, zone)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)


def visible(text: str) -> str:
    """Text of a trace as a terminal may show it: what would steer the terminal, or turn the line, is spelled out."""
    return _STEERING.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\u0100" else f"\\u{ord(found[0]):04x}", text
    )


def cell(value: Any, zone: tzinfo = UTC) -> str:
    """A value as a person reads it; a time in a time zone."""
    return visible(_told(value, zone))


def _told(value: Any, zone: tzinfo) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case datetime():
            local = value.astimezone(zone) if value.tzinfo else value
            return f"{local:%Y-%m-%d %H:%M:%S}"
        case dict() | list() | tuple():
            return json.dumps(_jsonable(value), ensure_ascii=False)
        case _:
            return str(value)


def counted(count: int, what: str) -> str:
    """A number of things: 1 trace, 2 traces."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def print_summary(summary: Summary) -> None:
    """What a tick or an evaluation did, by scorer, with coverage beside every rate."""
    rows = []
    for name in sorted(summary.scorers):
        counted = summary.scorers[name]
        told = counted.to_json()
        total = counted.scored + counted.unscored.total()
        bounds = f"{percent(told['pass_rate_low'])} to {percent(told['pass_rate_high'])}"
        rows.append(
            (
                name,
                counted.version,
                counted.passed,
                counted.failed,
                counted.scored - counted.passed - counted.failed or "",
                percent(told["pass_rate"]),
                bounds if told["pass_rate"] is not None else "",
                percent(counted.scored / total if total else None),
                ", ".join(f"{count} {reason}" for reason, count in counted.unscored.most_common()),
            )
        )
    if rows:
        columns = ("scorer", "version", "pass", "fail", "other", "pass rate", "95 %", "coverage", "unscored")
        print_table(columns, rows)
    parts = [f"{summary.traces} traces", f"{summary.results} new results"]
    for count, what in (
        (summary.reused, "reused"),
        (summary.waiting, "traces waiting"),
        (summary.deferred, "deferred"),
        (summary.late, "late"),
    ):
        if count:
            parts.append(f"{count} {what}")
    parts += [f"{count} {reason}" for reason, count in summary.skipped.most_common()]
    if summary.calls:
        unknown = f" and {summary.cost_unknown} of unknown cost" if summary.cost_unknown else ""
        parts.append(f"{summary.calls} model calls for ${summary.cost_usd:.4f}{unknown}")
    print(f"{', '.join(parts)}; {summary.seconds:.1f} s")


def say_notes(summary: Summary, behind: Sequence[Behind]) -> None:
    """What an operator should know of a tick."""
    say(*summary.notes)
    say(*(f"{one.sink} is behind at {one.cursor}: {one.detail}" for one in behind))


def _jsonable(value: Any) -> Any:
    """The same in JSON's own types: times as ISO texts, whole decimals as integers, what is no number as null."""
    match value:
        case Mapping():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case None | bool() | int() | str():
            return value
        case bytes():
            return value.hex()
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case _:
            return str(value)
