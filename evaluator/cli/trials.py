"""A judge tried out, with nothing written: `try`, `attack-test`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from evaluator.cli.options import AsJson, ConfigFile, MaybeTraceId, loaded
from evaluator.cli.show import print_json, print_table, say, visible

if TYPE_CHECKING:
    from evaluator.commands.attack import AttackReport


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command("try")(try_judge)
    app.command("attack-test")(attack_test)


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
