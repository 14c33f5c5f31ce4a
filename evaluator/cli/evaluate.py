"""An evaluation of the past: `eval`, what it would take, and two ways of it side by side."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evaluator.cli.options import (
    AsJson,
    ConfigFile,
    Filter,
    NoCache,
    loaded,
    time_range,
)
from evaluator.cli.progress import progress
from evaluator.cli.show import (
    counted,
    percent,
    print_json,
    print_summary,
    print_table,
    say,
    say_notes,
    visible,
)
from evaluator.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    from evaluator.commands.evaluations import Offline, OfflineRequest
    from evaluator.config import Config

Engine = Literal["local", "ray"]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command("eval")(evaluate)


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
    compare_batch: Annotated[
        bool,
        typer.Option(
            "--compare-batch",
            help="Judge a sample both ways, batch: single and batch: joint, and show where they differ.",
        ),
    ] = False,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", min=0, max=1, help="A gate: exit 3 below this pass rate.")
    ] = None,
    rescore: Annotated[
        bool,
        typer.Option(
            "--rescore",
            help="Judge again what has a result, also past the cache; without a range, all that was ever judged.",
        ),
    ] = False,
    no_cache: NoCache = False,
    no_write: Annotated[bool, typer.Option("--no-write", help="Only report; write no result.")] = False,
    write: Annotated[bool, typer.Option("--write", help="With --guidelines: write the results too.")] = False,
    guidelines: Annotated[
        Path | None,
        typer.Option("--guidelines", help="Judges that are not deployed yet; implies --no-write."),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option("--engine", help="Where judging runs: in this process, or as Ray tasks (RAY_ADDRESS)."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="With --engine ray: worker processes (default: the CPUs)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A report: FILE.json, .html or .xml (JUnit).")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a range of time: every result in it, with what is missing scored now. Safe beside `run`.

    Example: `evaluator eval --from 2026-11-06 --to 2026-11-07 --fail-under 0.9 --output report.html`

    After an edit: `evaluator eval --judge tone --rescore --dry-run` tells what judging the past anew would cost
    """
    from evaluator.commands.evaluations import OfflineRequest, judged_range

    if engine == "local" and workers is not None:
        raise ConfigurationError("--workers goes with --engine ray: here is one process")
    if write and no_write:
        raise ConfigurationError("--write and --no-write exclude each other")
    if dry_run and (write or output is not None or fail_under is not None):
        raise ConfigurationError(
            "--dry-run goes without --write, --output and --fail-under: nothing is judged that could be written or held "
            "against a rate"
        )
    if compare_batch and (
        dry_run or write or output is not None or fail_under is not None or engine != "local"
    ):
        raise ConfigurationError(
            "--compare-batch goes without --dry-run, --write, --output, --fail-under and --engine: it only compares"
        )
    settings = loaded(config)
    if rescore and start is end is last is None:
        begin, stop = judged_range(settings, judge or ())
    else:
        begin, stop = time_range(start, end, last)
    request = OfflineRequest(
        start=begin,
        end=stop,
        limit=limit,
        judges=tuple(judge or ()),
        condition=condition,
        sample_rate=sample_rate,
        rescore=rescore,
        no_cache=no_cache,
        guidelines=None if guidelines is None else guidelines.absolute(),
        write=write or not (no_write or guidelines is not None),
        engine=engine,
        workers=workers,
    )
    if dry_run:
        if engine != "local":
            say(f"--dry-run reads the range in this process, and not on {engine}")
        _show_estimate(settings, request, as_json)
        return
    if compare_batch:
        _show_comparison(settings, request, as_json)
        return
    _show_evaluation(settings, request, output, fail_under, as_json)


def _show_comparison(settings: "Config", request: "OfflineRequest", as_json: bool) -> None:
    from evaluator.commands.comparison import compare_batch

    told = asyncio.run(compare_batch(settings, request))
    if as_json:
        print_json(told.to_json())
    else:
        columns = (
            "judge",
            "both",
            "same",
            "passed single",
            "passed joint",
            "unscored single",
            "unscored joint",
        )
        print_table(
            columns,
            (
                (
                    one.name, one.both, one.same, one.single_passed, one.joint_passed, one.single_unscored,
                    one.joint_unscored,
                )
                for one in told.judges.values()
            ),
        )  # fmt: skip
        for one in told.judges.values():
            for differs in one.differences:
                print(
                    visible(
                        f"{differs.trace_id} · {one.name}: {differs.single} single ({differs.single_rationale}), "
                        f"{differs.joint} joint ({differs.joint_rationale})"
                    )
                )
        for way, spent in (("single", told.single), ("joint", told.joint)):
            cost = "cost unknown" if spent.cost_usd is None else f"${spent.cost_usd:.4f}"
            print(f"{way}: {spent.calls} calls, {spent.input_tokens} + {spent.output_tokens} tokens, {cost}")
        if told.alone:
            print(f"nobody rides with {', '.join(told.alone)}")
        print(f"{told.traces} traces were judged both ways; nothing was written")
    if told.failure is not None:
        raise ModelError(told.failure)


def _show_estimate(settings: "Config", request: "OfflineRequest", as_json: bool) -> None:
    from evaluator.commands.estimates import estimate

    told = asyncio.run(estimate(settings, request))
    if as_json:
        print_json(told.to_json())
        return
    columns = (
        "scorer",
        "version",
        "to score",
        "model",
        "calls",
        "input tokens, about",
        "output tokens, about",
        "cost, about",
        "in the cache",
        "in one call with",
    )
    print_table(
        columns,
        (
            (
                one.name,
                one.version,
                one.records,
                one.model,
                one.calls if one.model else None,
                one.input_tokens,
                one.output_tokens,
                _cost(one.cost_usd, one.calls),
                one.cached or "",
                ", ".join(one.joint_with),
            )
            for one in told.scorers
        ),
    )
    for note in told.notes:
        print(note)
    there = [f"{counted(told.traces, 'trace')} in the range"]
    if told.reused:
        there.append(f"{counted(told.reused, 'result')} there already")
    if told.superseded:
        there.append(f"{counted(told.superseded, 'result')} would be superseded")
    print(f"{', '.join(there)}; nothing was called")


def _cost(usd: float | None, calls: int) -> str:
    if not calls:
        return ""
    return "unknown" if usd is None else f"${usd:.4f}"


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
    with progress("traces evaluated") as tell:
        done: Offline = asyncio.run(run_offline(settings, request, tell))
    summary = done.evaluation.summary
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary)
    say_notes(summary, done.behind)
    if output is not None:
        write_report(done.evaluation, output)
        say(f"{output} written")
    done.check_whole()
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
