"""A tick over new traces with code scorers only, beside the same command with nothing new."""

import tempfile
from pathlib import Path

from tests.benchmarks.measured import cost_of, fill, row, starters
from tests.project import Project

TRACES, STEPS = 784, 5
"""As many traces, and about as many spans, as the real collection that the aim was set with."""


def main(quick: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder), starters())
        spans = fill(project, TRACES // 8 if quick else TRACES, STEPS)
        first, second = cost_of(project, "once"), cost_of(project, "once")
        work = first.cpu - second.cpu
        row(
            f"tick over {spans} new spans, code scorers", f"{work:.2f} s of CPU", "aim: under 5 s after start"
        )
        row("peak memory of that tick", f"{first.memory:.0f} MB", "")
        row("once with nothing new, start included", f"{second.cpu:.2f} s of CPU", "")
