"""Looking after what is kept: `maintain`, `forget`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from evaluator.cli.options import AsJson, ConfigFile, MaybeTraceId, loaded
from evaluator.cli.show import counted, print_json, print_table, say

if TYPE_CHECKING:
    from evaluator.commands.forgetting import Forgotten
    from evaluator.worker.upkeep import Upkeep


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(maintain)
    app.command()(forget)


def maintain(
    include_traces: Annotated[
        bool,
        typer.Option("--include-traces", help="Also the spans, logs and metrics tables that `init` made."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done; change nothing.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep our tables fast and small: compaction, checkpoint, log clean-up, vacuum, retention of the ledger.

    `run` does it once a day. Safe beside workers, publishers and readers; tables that are not ours are left alone.

    Example: `evaluator maintain --dry-run`
    """
    from evaluator.wiring import build_tables
    from evaluator.worker.upkeep import keep_up

    settings = loaded(config)
    done = asyncio.run(
        keep_up(settings, build_tables(settings), include_traces=include_traces, dry_run=dry_run)
    )
    if as_json:
        print_json(done.to_json())
    else:
        _show_upkeep(done, dry_run)
    say(*done.notes)


def _show_upkeep(done: "Upkeep", dry_run: bool) -> None:
    columns = ("table", "small files", "became", "files deleted", "leftovers of killed writers")
    print_table(
        columns,
        (
            (one.table, one.small_files, "" if dry_run else one.became, one.deleted, one.leftovers)
            for one in done.tables
        ),
    )
    would = "would be " if dry_run else ""
    if done.restated:
        print(f"{done.restated} open rows older than a day {would}told again")
    if done.expired.days:
        first, last = done.expired.days[0], done.expired.days[-1]
        print(
            f"{len(done.expired.days)} days of the ledger ({first} to {last}, {done.expired.rows} rows) {would}removed: "
            f"its memory begins at {done.expired.floor:%Y-%m-%d}"
        )
    print(f"{'nothing was changed' if dry_run else 'done'}; {done.seconds:.1f} s")


def forget(
    trace_id: MaybeTraceId = None,
    user: Annotated[str | None, typer.Option("--user", help="Every trace of this user.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Every trace of this session.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be erased; erase nothing.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Erase what is known of a trace, a user or a session: results, cache, dataset records, in MLflow too. For good.

    It is never judged again. The spans stay in their table, which is the team's: delete them there, after this.

    Example: `evaluator forget --user user-17 --dry-run`
    """
    from evaluator.commands.forgetting import forget_targets

    settings = loaded(config)
    told = asyncio.run(
        forget_targets(settings, trace_id=trace_id, user=user, session=session, dry_run=dry_run)
    )
    if as_json:
        print_json(told.to_json())
    else:
        _show_forgotten(told, dry_run)
    _say_what_is_left(told, dry_run)
    if told.behind:
        raise typer.Exit(1)


def _show_forgotten(told: "Forgotten", dry_run: bool) -> None:
    what = f"{counted(len(told.traces), 'trace')} and {counted(len(told.sessions), 'session')}"
    print(
        f"{what} {'would be' if dry_run else 'are'} forgotten: {counted(told.ledger_rows, 'row')} of the ledger, "
        f"{told.annotation_rows} of the annotations"
    )


def _say_what_is_left(told: "Forgotten", dry_run: bool) -> None:
    say(*(f"{one.sink} is behind: erased there when it is back ({one.detail})" for one in told.behind))
    if told.held_by is not None:
        say(
            f"older files still hold it while a worker is at it ({told.held_by}): the next upkeep deletes them, "
            "within 8 days; `evaluator forget` again when no worker runs deletes them at once"
        )
    if told.traces and not dry_run:
        say(
            f"the spans stay in {told.spans}, which is yours: delete the rows of these trace ids there and VACUUM it; "
            "MLflow's own copies of the traces are deleted in MLflow"
        )
