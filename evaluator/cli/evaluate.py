"""What judges: `once`, `eval`, `try`, `attack-test`, `retry`, `pause`, `resume`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evaluator.cli.options import (
    AsJson,
    ConfigFile,
    Filter,
    JudgeName,
    MaybeTraceId,
    NoCache,
    ShardOption,
    Since,
    loaded,
    moment,
    shard_of,
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
    from evaluator.commands.attack import AttackReport
    from evaluator.commands.evaluations import Offline, OfflineRequest
    from evaluator.config import Config
    from evaluator.worker.turns import Turn

Engine = Literal["local", "ray"]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(once)
    app.command("eval")(evaluate)
    app.command("try")(try_judge)
    app.command("attack-test")(attack_test)
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


def try_judge(
    trace_id: MaybeTraceId = None,
    judge: Annotated[str, typer.Option("--judge", help="The judge's or scorer's name.")] = ...,  # type: ignore[assignment]
    last: Annotated[int, typer.Option("--last", min=1, help="Without a trace id: the last so many.")] = 1,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Take a result from the cache, or ask anew (the default)."),
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Run one judge on one trace, or the last few: the prompt, the raw reply, the result, the cost. Writes nothing.

    Example: `evaluator try --judge actionable_insights --last 3`
    """
    from evaluator.commands.trials import try_scorer

    trials = asyncio.run(try_scorer(loaded(config), judge, trace_id, last, cached=cache))
    if as_json:
        print_json([trial.to_json() for trial in trials])
        return
    for trial in trials:
        about = (
            f"trace {trial.trace_id}" if trial.span_id is None else f"span {trial.trace_id}:{trial.span_id}"
        )
        print(f"=== {about} · {judge} {trial.version}")
        for message in trial.messages:
            print(visible(f"--- {message['role']}\n{message['content']}"))
        for reply in trial.replies:
            print(visible(f"--- reply\n{reply}"))
        print(visible(f"--- result\n{trial.told()}"))


def attack_test(
    judge: Annotated[
        str | None, typer.Option("--judge", help="The judge's name; without it, a built-in guideline.")
    ] = None,
    fail_over: Annotated[
        int | None,
        typer.Option("--fail-over", min=0, help="A gate: exit 3 when more attacks turned the judge."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Attack a judge: texts in a trace that want another verdict, and how many of them got it. Writes nothing.

    Example: `evaluator attack-test --judge actionable_insights --fail-over 0`
    """
    from evaluator.commands.attack import State, attack_judge

    report = asyncio.run(attack_judge(loaded(config), judge))
    if as_json:
        print_json(report.to_json())
    else:
        _show_attacks(report)
    turned = report.count(State.TURNED)
    if fail_over is not None and (turned > fail_over or not report.decided):
        say(
            f"the gate is not met: {turned} of {report.decided} attacks turned the judge (allowed: {fail_over})"
        )
        raise typer.Exit(3)


def _show_attacks(report: "AttackReport") -> None:
    from evaluator.commands.attack import State

    rows = [
        (kind, states.total(), *(states[state] or "" for state in State))
        for kind, states in report.kinds().items()
    ]
    totals = ("all", len(report.attempts), *(report.count(state) for state in State))
    columns = ("kind of attack", "attacks", *(state.value for state in State))
    print_table(columns, [*rows, totals], title=f"{report.judge} {report.version}")
    turned = [attempt for attempt in report.attempts if attempt.state is State.TURNED]
    for one in turned:
        print(visible(f"{one.name} ({one.place}): {one.reference} became {one.got}: {one.told}"))
    cost = "cost unknown" if report.cost_usd is None else f"${report.cost_usd:.4f}"
    print(f"{len(turned)} of {report.decided} attacks turned the judge; {report.calls} model calls, {cost}")
    if report.count(State.MISJUDGED):
        say("misjudged: the judge was wrong about the record without any attack, so these were not tried")


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
