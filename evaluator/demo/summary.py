"""What the demo prints at its end: rates with coverage, three failures with their reasons, where to look next."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from evaluator.demo.judges import DemoJudge

EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the run left: the object of `once --json`, rows of `evaluator sql`, counts in MLflow, seconds."""

    judge: DemoJudge
    once: Mapping[str, Any]
    failures: Sequence[Mapping[str, Any]]
    reasons: Sequence[Mapping[str, Any]]
    judges: frozenset[str]
    mlflow_traces: int
    mlflow_feedback: int
    seconds: float


def print_outcome(outcome: Outcome, folder: Path, console: Console) -> None:
    """Print it. What comes from traces is shown as text, never as markup."""
    once = outcome.once
    console.print()
    console.print(
        Text(f"{once['traces']} traces of the support-manager agent, {once['results']} results", "bold")
    )
    console.print(_rates(outcome))
    for line in _notes(outcome):
        console.print(Text(line))
    for failure in outcome.failures:
        console.print(_example(failure))
    console.print(_next_steps(outcome, folder))


def _rates(outcome: Outcome) -> Table:
    table = Table()
    for column in ("scorer", "kind", "passed", "failed", "pass rate", "95 %", "coverage", "unscored"):
        table.add_column(column, justify="left" if column in ("scorer", "kind") else "right", no_wrap=True)
    for name, counted in sorted(outcome.once["scorers"].items()):
        total = counted["scored"] + counted["unscored"]
        kind = "judge" if name in outcome.judges else "code"
        bounds = f"{_percent(counted['pass_rate_low'])}–{_percent(counted['pass_rate_high'])}"
        row = (
            name,
            f"{kind} (wiring check)" if kind == "judge" and outcome.judge.kind == "embedded" else kind,
            str(counted["passed"]),
            str(counted["failed"]),
            _percent(counted["pass_rate"]),
            "" if counted["pass_rate"] is None else bounds,
            _percent(counted["scored"] / total if total else None),
            str(counted["unscored"]),
        )
        table.add_row(*map(Text, row))
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _notes(outcome: Outcome) -> Iterator[str]:
    once = outcome.once
    yield f"Judge model: {outcome.judge.note}."
    for row in outcome.reasons:
        yield f"Unscored, never counted as a fail: {row['scorer']}, {row['count']} x {row['reason']}."
    yield (
        f"Judging took {once['seconds']:.1f} s, {once['calls']} model calls, {once['input_tokens']:,} + "
        f"{once['output_tokens']:,} tokens, ${once['cost_usd']:.4f}; the whole demo {outcome.seconds:.0f} s."
    )
    yield f"MLflow has {outcome.mlflow_traces} traces with {outcome.mlflow_feedback} feedbacks."


def _example(failure: Mapping[str, Any]) -> RenderableType:
    body = Text()
    for label, key in (("asked", "request"), ("answered", "response"), ("because", "rationale")):
        text = " ".join(str(failure[key] or "(nothing)").split())
        body.append(f"{label:9}", "bold").append(f"{text[:EXAMPLE_CHARACTERS]}\n")
    body.append(f"{'trace':9}", "bold").append(str(failure["trace_id"]))
    return Panel(body, title=Text(f"failed {failure['name']}"), title_align="left")


def _next_steps(outcome: Outcome, folder: Path) -> Text:
    traces = [str(failure["trace_id"]) for failure in outcome.failures] or ["TRACE_ID"]
    commands = (
        f"cd {folder}",
        *([] if shutil.which("evaluator") else [f"source {Path(sys.executable).parent}/activate"]),
        'evaluator sql "select name, avg(passed::int) as pass_rate from assessments group by name"',
        f"evaluator explain {traces[0]}",
        f"evaluator trace {traces[0]}",
        "evaluator once          # again: nothing is judged twice",
        "evaluator eval --last 1h --output report.html",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
    )
    return Text("Look further:\n" + "\n".join(f"  {command}" for command in commands))
