"""How long a command takes before it does anything."""

import tempfile
from pathlib import Path

from tests.benchmarks.measured import cost_of, row, starters
from tests.project import Project

ROUNDS = 5


def main(quick: bool = False) -> None:
    """The least CPU of several runs: what other processes do to this machine is not ours."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder), starters())
        for arguments, aim in ((("--help",), 0.3), (("check",), 1.0)):
            costs = [cost_of(project, *arguments) for _ in range(2 if quick else ROUNDS)]
            cpu = min(cost.cpu for cost in costs)
            row(f"evaluator {' '.join(arguments)}", f"{cpu:.2f} s of CPU", f"aim: under {aim} s")
