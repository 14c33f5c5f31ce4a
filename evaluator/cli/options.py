"""Options that many commands share, and what they are read into."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from evaluator.errors import ConfigurationError
from evaluator.shards import Shard, parse_shard

if TYPE_CHECKING:
    from evaluator.config import Config

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The configuration file (EVALUATOR_CONFIG; default ./evaluator.yaml)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value, for machines.")]
TraceId = Annotated[str, typer.Argument(metavar="TRACE_ID", parser=str.strip)]
MaybeTraceId = Annotated[str | None, typer.Argument(metavar="[TRACE_ID]", parser=str.strip)]
JudgeName = Annotated[str | None, typer.Option("--judge", help="The judge's or scorer's name.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        envvar="EVALUATOR_SHARD",
        help="Decide only this part of the traces (0/4 to 3/4 for four workers); 0/1 takes all of it back.",
    ),
]
Since = Annotated[str | None, typer.Option("--since", help="From then on: a date, an ISO time, or 24h, 7d.")]
Filter = Annotated[str | None, typer.Option("--filter", help="A SQL condition over the trace's columns.")]

NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Take nothing from the cache, and keep nothing there.")
]

_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


def loaded(config: Path | None, **overrides: Any) -> "Config":
    """The configuration, with what the command line says over it; logging starts as it says."""
    from evaluator.config import load_config
    from evaluator.redaction import Redactor
    from evaluator.telemetry.logs import start_logging

    settings = load_config(
        config, overrides={key: value for key, value in overrides.items() if value is not None}
    )
    redactor = cache(
        lambda: Redactor(settings.redact)
    )  # compiling takes longer than most commands log at all
    start_logging(settings.log, redact=lambda text: redactor().redact(text))
    return settings


def zone_of(settings: "Config") -> tzinfo:
    """The time zone that times are shown in; data is UTC."""
    return ZoneInfo(settings.timezone)


def moment(text: str, option: str, now: datetime | None = None) -> datetime:
    """A point in time: a date (UTC midnight), an ISO time (UTC unless it says otherwise), or so long ago.

    Raises ConfigurationError that names the option.
    """
    from evaluator.config import parse_duration

    now = now or datetime.now(UTC)
    if text == "now":
        return now
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        if _DATE.match(text):
            return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{option}: {text!r} is not a time (write 2026-11-06, 2026-11-06T08:00:00Z or 24h)"
        ) from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def time_range(start: str | None, end: str | None, last: str | None) -> tuple[datetime, datetime]:
    """The range that `--from`, `--to` or `--last` name. Raises ConfigurationError."""
    from evaluator.config import parse_duration

    now = datetime.now(UTC)
    if last is not None:
        if start or end:
            raise ConfigurationError("--last goes without --from and --to")
        try:
            return now - parse_duration(last), now + timedelta(seconds=1)
        except ValueError as error:
            raise ConfigurationError(f"--last: {error}") from None
    if start is None or end is None:
        raise ConfigurationError("say which range: --from DATE --to DATE, or --last 24h")
    begin, stop = moment(start, "--from", now), moment(end, "--to", now)
    if begin >= stop:
        raise ConfigurationError(f"--from {start} is not before --to {end}")
    return begin, stop


def shard_of(text: str | None) -> Shard | None:
    """The shard that an option names. Raises ConfigurationError."""
    try:
        return None if text is None else parse_shard(text)
    except ValueError as error:
        raise ConfigurationError(f"--shard: {error}") from error
