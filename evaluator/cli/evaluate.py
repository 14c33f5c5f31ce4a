"""What judges: `once`, `eval`, `try`, `retry`, `pause`, `resume`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluator.cli.options import AsJson, ConfigFile, Filter, JudgeName, Since, loaded, moment, time_range
from evaluator.cli.show import percent, print_json, print_summary, print_table, say, say_notes
from evaluator.errors import ConfigurationError

if TYPE_CHECKING:
    from evaluator.commands.evaluations import Offline, OfflineRequest
    from evaluator.config import Config
    from evaluator.worker.turns import Turn


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(once)
    app.command("eval")(evaluate)
    app.command("try")(try_judge)
    app.command()(retry)
    app.command()(pause)
    app.command()(resume)


def once(
    config: ConfigFile = None,
    as_json: AsJson = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Another worker is at it: say who, and exit.")
    ] = False,
) -> None:
    """Do one tick and exit: read what is new, judge it, publish the results. For cron and CronJobs.

    Example: `evaluator once --json`
    """
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    settings = loaded(config)

    async def run() -> "Turn":
        worker = Worker(settings, build_tables(settings))
        try:
            return await worker.turn(wait=not no_wait)
        finally:
            await worker.close()

    turn = asyncio.run(run())
    if turn.held_by is not None:
        say(f"another worker is at work: {turn.held_by}")
    if as_json:
        print_json(turn.summary.to_json())
    else:
        print_summary(turn.summary)
    say_notes(turn.summary, turn.behind)
    turn.check_models()


def evaluate(
    start: Annotated[
        str | None, typer.Option("--from", help="Traces that began at or after this time.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Traces that began before this time.")] = None,
    last: Annotated[str | None, typer.Option("--last", help="Instead of --from and --to: 24h, 7d.")] = None,
    judge: Annotated[list[str] | None, typer.Option("--judge", help="Only this one (repeatable).")] = None,
    condition: Filter = None,
    sample_rate: Annotated[
        float | None, typer.Option("--sample-rate", min=0, max=1, help="Instead of the judges' own rates.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many traces.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be scored and cost; call nothing.")
    ] = False,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", min=0, max=1, help="A gate: exit 3 below this pass rate.")
    ] = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Judge again what has a result.")] = False,
    no_write: Annotated[bool, typer.Option("--no-write", help="Only report; write no result.")] = False,
    write: Annotated[bool, typer.Option("--write", help="With --guidelines: write the results too.")] = False,
    guidelines: Annotated[
        Path | None,
        typer.Option("--guidelines", help="Judges that are not deployed yet; implies --no-write."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Where the work runs: local.")] = "local",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A report: FILE.json, .html or .xml (JUnit).")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a range of time: every result in it, with what is missing scored now. Safe beside `run`.

    Example: `evaluator eval --from 2026-11-06 --to 2026-11-07 --fail-under 0.9 --output report.html`
    """
    from evaluator.commands.evaluations import OfflineRequest

    if engine != "local":
        raise ConfigurationError(f'--engine: "{engine}" is not an engine of this version (there is: local)')
    if write and no_write:
        raise ConfigurationError("--write and --no-write exclude each other")
    begin, stop = time_range(start, end, last)
    settings = loaded(config)
    request = OfflineRequest(
        start=begin,
        end=stop,
        limit=limit,
        judges=tuple(judge or ()),
        condition=condition,
        sample_rate=sample_rate,
        rescore=rescore,
        guidelines=None if guidelines is None else guidelines.absolute(),
        write=write or not (no_write or guidelines is not None),
    )
    if dry_run:
        _show_estimate(settings, request, as_json)
        return
    _show_evaluation(settings, request, output, fail_under, as_json)


def _show_estimate(settings: "Config", request: "OfflineRequest", as_json: bool) -> None:
    from evaluator.commands.evaluations import estimate

    told = asyncio.run(estimate(settings, request))
    if as_json:
        print_json(told.to_json())
        return
    columns = (
        "scorer",
        "version",
        "to score",
        "model",
        "input tokens",
        "output tokens at most",
        "cost at most",
    )
    print_table(
        columns,
        (
            (
                one.name,
                one.version,
                one.records,
                one.model,
                one.input_tokens,
                one.output_tokens,
                "unknown" if one.cost_usd is None else f"${one.cost_usd:.4f}",
            )
            for one in told.scorers
        ),
    )
    print(f"{told.traces} traces in the range, {told.reused} results are there already; nothing was called")


def _show_evaluation(
    settings: "Config",
    request: "OfflineRequest",
    output: Path | None,
    fail_under: float | None,
    as_json: bool,
) -> None:
    from evaluator.commands.evaluations import run_offline
    from evaluator.commands.reports import check_output, write_report

    if output is not None:
        check_output(output)
    done: Offline = asyncio.run(run_offline(settings, request))
    summary = done.evaluation.summary
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary)
    say_notes(summary, done.behind)
    if output is not None:
        write_report(done.evaluation, output)
        say(f"{output} written")
    done.check_models()
    if fail_under is not None:
        _gate(done, fail_under)


def _gate(done: "Offline", fail_under: float) -> None:
    """Exit 3 unless every scorer that tells pass from fail reaches the rate; nothing judged is not met."""
    judged = {
        name: counted.passed / (counted.passed + counted.failed)
        for name, counted in done.evaluation.summary.scorers.items()
        if counted.passed + counted.failed
    }
    below = {name: share for name, share in judged.items() if share < fail_under}
    if not judged:
        say("the gate is not met: nothing in the range has a verdict")
        raise typer.Exit(3)
    if below:
        told = ", ".join(f"{name} {percent(share)}" for name, share in below.items())
        say(f"the gate is not met: {told} (asked for {percent(fail_under)})")
        raise typer.Exit(3)


def try_judge(
    trace_id: Annotated[str | None, typer.Argument(metavar="[TRACE_ID]")] = None,
    judge: Annotated[str, typer.Option("--judge", help="The judge's or scorer's name.")] = ...,  # type: ignore[assignment]
    last: Annotated[int, typer.Option("--last", min=1, help="Without a trace id: the last so many.")] = 1,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Run one judge on one trace, or the last few: the prompt, the raw reply, the result, the cost. Writes nothing.

    Example: `evaluator try --judge actionable_insights --last 3`
    """
    from evaluator.commands.trials import try_scorer

    trials = asyncio.run(try_scorer(loaded(config), judge, trace_id, last))
    if as_json:
        print_json([trial.to_json() for trial in trials])
        return
    for trial in trials:
        print(f"=== trace {trial.trace_id} · {judge} {trial.version}")
        for message in trial.messages:
            print(f"--- {message['role']}\n{message['content']}")
        for reply in trial.replies:
            print(f"--- reply\n{reply}")
        print(f"--- result\n{trial.told()}")


def retry(since: Since = None, judge: JudgeName = None, config: ConfigFile = None) -> None:
    """Put unscored results up for another attempt, at the next tick.

    Example: `evaluator retry --since 24h`
    """
    from evaluator.commands.interventions import retry_unscored

    begin = None if since is None else moment(since, "--since")
    count = retry_unscored(loaded(config), begin, judge)
    print(f"{count} results are up for another attempt at the next tick")


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
