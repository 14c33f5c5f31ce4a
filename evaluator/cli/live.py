"""The live work by hand: `once`, `retry`, `pause`, `resume`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluator.cli.options import (
    AsJson,
    ConfigFile,
    JudgeName,
    NoCache,
    ShardOption,
    Since,
    loaded,
    moment,
    shard_of,
)
from evaluator.cli.show import counted, print_json, print_summary, say_notes

if TYPE_CHECKING:
    from evaluator.worker.turns import Turn


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(once)
    app.command()(retry)
    app.command()(pause)
    app.command()(resume)


def once(
    config: ConfigFile = None,
    as_json: AsJson = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Another worker is at it: say who, and exit.")
    ] = False,
    no_cache: NoCache = False,
    shard: ShardOption = None,
) -> None:
    """Do one tick and exit: read what is new, judge it, publish the results. For cron and CronJobs.

    Example: `evaluator once --json`
    """
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    settings, part = loaded(config), shard_of(shard)

    async def run() -> "Turn":
        worker = Worker(settings, build_tables(settings), caching="off" if no_cache else "on", shard=part)
        try:
            return await worker.turn(wait=not no_wait)
        finally:
            await worker.close()

    turn = asyncio.run(run())
    if turn.held_by is not None:
        turn.summary.notes.append(f"another worker is at work: {turn.held_by}")
    if as_json:
        print_json(turn.summary.to_json())
    else:
        print_summary(turn.summary)
    say_notes(turn.summary, turn.behind)
    turn.check_models()


def retry(since: Since = None, judge: JudgeName = None, config: ConfigFile = None) -> None:
    """Put unscored results up for another attempt, at the next tick.

    Example: `evaluator retry --since 24h`
    """
    from evaluator.commands.interventions import retry_unscored

    begin = None if since is None else moment(since, "--since")
    told = retry_unscored(loaded(config), begin, judge)
    anyway = f" ({told.due} due anyway)" if told.due else ""
    print(f"{_results_are(told.put_up + told.due)} up for another attempt at the next tick{anyway}")
    if told.later:
        print(f"{_results_are(told.later)} due later than that (`evaluator explain` tells when)")


def _results_are(count: int) -> str:
    return f"{counted(count, 'result')} {'is' if count == 1 else 'are'}"


def pause(judge: JudgeName = None, config: ConfigFile = None) -> None:
    """Make no paid call until `resume`: of one judge, or of all. Nothing is lost, the backlog waits.

    Example: `evaluator pause --judge actionable_insights`
    """
    _set_pause(judge, config, on=True)


def resume(judge: JudgeName = None, config: ConfigFile = None) -> None:
    """Let a paused judge go on, or all of them; what waited is judged at the next tick.

    Example: `evaluator resume`
    """
    _set_pause(judge, config, on=False)


def _set_pause(judge: str | None, config: Path | None, *, on: bool) -> None:
    from evaluator.commands.interventions import set_pause

    names: Sequence[str] = set_pause(loaded(config), judge, on=on)
    what = "every judge" if judge is None else f'judge "{judge}"'
    print(f"{what} is paused" if on else f"{what} goes on" + ("" if names else " (it was not paused)"))
