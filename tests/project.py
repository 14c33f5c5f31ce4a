"""A project folder as a user has it, and the installed command run in it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evaluator.tables.delta import DeltaStore
from tests.traffic import append

COMMAND = [sys.executable, "-m", "evaluator.cli.main"]

CODE_ONLY = """
scorers:
  - name: greets
    regex: Hello
"""

ONE_JUDGE = """
judges:
  - name: polite
    guidelines: The response must be polite.
scorers:
  - name: greets
    regex: Hello
"""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(kw_only=True)
class Project:
    """A folder with a configuration. MLflow is left out unless the test wants it: its store takes seconds."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        folder: Path,
        guidelines: str = CODE_ONLY,
        environment: Mapping[str, str] | None = None,
        **config: Any,
    ) -> "Project":
        """A project after `evaluator init`, with these guidelines; traces are judged as soon as they are seen."""
        project = cls(folder=folder, environment=dict(environment or {}))
        project.configure(settle="0s", publish=["annotations"], **config)
        project.guide(guidelines)
        assert project.run("init").code == 0
        return project

    @property
    def spans(self) -> DeltaStore:
        return DeltaStore(str(self.folder / "traces" / "agent_otel_spans"))

    def configure(self, **config: Any) -> None:
        file = self.folder / "evaluator.yaml"
        known = yaml.safe_load(file.read_text()) if file.exists() else {}
        file.write_text(yaml.safe_dump({**known, **config}))

    def guide(self, text: str, name: str = "guidelines.yaml") -> None:
        (self.folder / "guidelines").mkdir(exist_ok=True)
        (self.folder / "guidelines" / name).write_text(text)

    def append(self, *rows: dict[str, Any]) -> int:
        return append(self.spans, rows)

    def run(self, *arguments: str, timeout: float = 60, **environment: str) -> Ran:
        """Run one command to its end."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.env(environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Ran(code=done.returncode, out=done.stdout, err=done.stderr)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command that goes on; whoever starts it ends it."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.env(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def sql(self, query: str) -> Sequence[dict[str, Any]]:
        ran = self.run("sql", query, "--format", "json")
        assert ran.code == 0, ran.err
        rows: Sequence[dict[str, Any]] = ran.json()
        return rows

    def env(self, environment: Mapping[str, str]) -> dict[str, str]:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("EVALUATOR_", "OPENAI_", "MLFLOW_"))
        }
        return {**clean, **self.environment, **environment}
