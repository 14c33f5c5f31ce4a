"""A command measured as a whole process, and traces to measure with."""

import os
import resource
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tests.project import COMMAND, Project
from tests.traffic import NOON, answer, span


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds (user and system), wall seconds, and peak memory in megabytes."""

    cpu: float
    wall: float
    memory: float


def cost_of(project: Project, *arguments: str) -> Cost:
    """What one run of a command takes, with bytecode kept as an installation keeps it."""
    environment = {key: value for key, value in project.env({}).items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), os.times().elapsed
    subprocess.run(
        [*COMMAND, *arguments], cwd=project.folder, env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu=cpu, wall=os.times().elapsed - began, memory=after.ru_maxrss / 1024)


def fill(project: Project, traces: int, steps: int) -> int:
    """Append traces of a root, model calls and tool calls each; the number of spans."""
    rows = []
    for number in range(traces):
        name = f"t{number}"
        start = NOON + timedelta(seconds=number)
        rows.append(
            answer(
                name, "Refunds rose by 12 % last week. " * 20, "How did refunds go?", at=start, seconds=8.0
            )
        )
        for step in range(steps):
            kind = "TOOL" if step % 2 else "LLM"
            values = {"openinference.span.kind": kind, "input.value": "x" * 400, "output.value": "y" * 600}
            counts = {} if step % 2 else {"llm.token_count.prompt": 120, "llm.token_count.completion": 40}
            rows.append(span(name, f"s{step}", parent="root", at=start, **values, **counts))
    project.append(*rows)
    return len(rows)


def starters() -> str:
    """The code scorers that the project ships."""
    return (Path(__file__).parents[2] / "guidelines" / "scorers.yaml").read_text()


def row(what: str, figure: str, aim: str) -> None:
    print(f"{what:<58} {figure:>24}   {aim}")
