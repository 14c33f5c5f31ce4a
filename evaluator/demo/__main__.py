"""`make demo`: the whole main job over the example agent's traces, by the installed commands."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from rich.console import Console

from evaluator.demo.agent import answer_all
from evaluator.demo.judges import DemoJudge, choose_judge
from evaluator.demo.questions import QUESTIONS
from evaluator.demo.summary import Outcome, print_outcome
from evaluator.errors import ConfigurationError, EvaluatorError
from evaluator.yamlfile import load_yaml

COMMAND = (str(Path(sys.executable).with_name("evaluator")),)
FOLDER = Path("demo-output")
MARK = ".evaluator-demo"
PATIENCE_SECONDS = 170
LATENCY_SCORER = "fast_enough"
LATENCY = "10s"
"""Less than the slowest tool takes, so that the demo has a latency failure to show."""
EMBEDDED_JUDGE = "actionable_insights"
EMBEDDED_FILTER = "session_id = 'product-sync'"
"""Three traces: the embedded model takes many seconds for each."""

FAILURES = """
    SELECT a.name, a.trace_id, a.rationale, t.request, t.response
    FROM assessments a JOIN traces t USING (trace_id)
    WHERE a.is_current AND a.passed = false AND a.source_type IN ({sources})
    QUALIFY row_number() OVER (PARTITION BY a.name ORDER BY t.start_time) = 1
    ORDER BY a.source_type DESC, list_position(['no_pii', 'fast_enough', 'no_tool_errors'], a.name), a.name
    LIMIT 3
"""
REASONS = """
    SELECT scorer, reason, count(*) AS count FROM ledger
    WHERE state IN ('unscored', 'deferred') GROUP BY ALL ORDER BY ALL
"""


class Demo:
    """One run in a fresh folder; every step is a command that a user would type."""

    def __init__(self, folder: Path, judge: DemoJudge, console: Console) -> None:
        self.folder = folder
        self.judge = judge
        self.console = console
        self.environment = own_environment(os.environ)

    def run(self) -> Outcome:
        """Init, collect, ask, judge. Raises EvaluatorError with what the failing command said."""
        started = time.monotonic()
        self.say("init", "tables, ledger, starter guidelines and an MLflow experiment")
        self.evaluator("init")
        judges = tune_guidelines(self.folder / "guidelines", self.judge)
        with self.collector() as address:
            self.say("collect", f"the agent answers {len(QUESTIONS)} questions and sends OTLP to {address}")
            exporter = OTLPSpanExporter(endpoint=f"{address}/v1/traces")
            model = self.judge.model if self.judge.kind == "provider" else None
            asyncio.run(answer_all(QUESTIONS, exporter, model=model, base_url=self.judge.base_url))
        self.say(
            "once",
            f"code scorers and judges ({self.judge.model or 'no model'}), results to tables and MLflow",
        )
        once = json.loads(self.evaluator("once", "--json"))
        traces, feedback = mlflow_counts(self.folder / "mlflow.db")
        return Outcome(
            judge=self.judge,
            once=once,
            failures=self.rows(FAILURES.format(sources=self.trusted())),
            reasons=self.rows(REASONS),
            judges=judges,
            mlflow_traces=traces,
            mlflow_feedback=feedback,
            seconds=time.monotonic() - started,
        )

    def trusted(self) -> str:
        """Whose failures are worth showing: the embedded model's are not."""
        return "'LLM_JUDGE', 'CODE'" if self.judge.kind == "provider" else "'CODE'"

    def say(self, command: str, what: str) -> None:
        self.console.print(f"[bold]evaluator {command}[/]: {what}", highlight=False)

    def rows(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.evaluator("sql", query, "--format", "json"))
        return found

    def evaluator(self, *arguments: str) -> str:
        """The stdout of one command."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode:
            raise EvaluatorError(f"evaluator {arguments[0]} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    @contextmanager
    def collector(self) -> Iterator[str]:
        """`evaluator collect` on free ports; its address. It is ended by SIGTERM and sends on what it has."""
        command = [*COMMAND, "collect", "--port", "0", "--grpc-port", "0"]
        log = self.folder / "collect.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
        if process.returncode:
            raise EvaluatorError(f"evaluator collect ended with {process.returncode}:\n{log.read_text()}")


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(10 * PATIENCE_SECONDS):
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise EvaluatorError(f"evaluator collect did not start:\n{log.read_text()}")


def fresh_folder(folder: Path) -> Path:
    """An empty folder; what an earlier demo left there is removed, and nothing else is."""
    if folder.exists():
        if not (folder / MARK).is_file():
            raise ConfigurationError(
                f"{folder} is there and not the demo's: move it away, or start the demo in another folder"
            )
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / MARK).touch()
    return folder.absolute()


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would point the demo at somebody's real tables; the judge may stay."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("EVALUATOR_", "OTEL_", "MLFLOW_")) or name.startswith("EVALUATOR_JUDGE__")
    }


def write_configuration(folder: Path, judge: DemoJudge) -> None:
    """An evaluator.yaml for a short run: traces are judged at once, and MLflow gets what the collector gets."""
    settings: dict[str, Any] = {
        "tables": "./traces",
        "settle": "0s",
        "session_idle": "0s",
        "mlflow": {"tracking_uri": "sqlite:///mlflow.db", "experiment": "support-manager"},
        "collect": {"tee": "mlflow"},
    }
    if judge.model:
        settings["judge"] = {"model": judge.model, "base_url": judge.base_url, "budget": {"usd_per_day": 1}}
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def tune_guidelines(guidelines: Path, judge: DemoJudge) -> frozenset[str]:
    """Fit the starters to a short run, and return the names of the judges in force.

    With a provider all judges stay; else one on a few traces, or none. Latency has a tighter bound.
    """
    kept: set[str] = set()
    for file in sorted(guidelines.glob("*.yaml")):
        document = load_yaml(file).data
        judges, scorers = document.get("judges", []), document.get("scorers", [])
        if judge.kind != "provider":
            few = [one for one in judges if judge.kind == "embedded" and one["name"] == EMBEDDED_JUDGE]
            judges = [{**one, "filter": EMBEDDED_FILTER} for one in few]
        for scorer in scorers:
            if scorer["name"] == LATENCY_SCORER:
                scorer["options"] = {"at_most": LATENCY}
        kept.update(one["name"] for one in judges)
        tuned = {"judges": judges, "scorers": scorers}
        file.write_text("# The starters, fitted to the demo.\n" + yaml.safe_dump(tuned, sort_keys=False))
    return frozenset(kept)


def mlflow_counts(database: Path) -> tuple[int, int]:
    """How many traces and assessments MLflow's store has."""
    with closing(sqlite3.connect(database)) as connection:
        [traces] = connection.execute("SELECT count(*) FROM trace_info").fetchone()
        [assessments] = connection.execute("SELECT count(*) FROM assessments").fetchone()
    return traces, assessments


def main() -> None:
    """Run the demo in ./demo-output and print its summary."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]  # an exporter of somebody else's would send the demo's spans away
    try:
        folder = fresh_folder(FOLDER)
        judge = choose_judge(os.environ)
        write_configuration(folder, judge)
        print_outcome(Demo(folder, judge, console).run(), FOLDER, console)
    except EvaluatorError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
