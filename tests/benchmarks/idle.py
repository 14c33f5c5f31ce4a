"""The worker with nothing to do."""

import re
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measured import row, starters
from tests.project import Project

TICKS_EVERY = "15m"


def main(quick: bool = False) -> None:
    """CPU and memory of `evaluator run` over a minute after its first tick."""
    seconds = 15 if quick else 60
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder), starters(), every=TICKS_EVERY)
        worker = project.start("run", "--port", "0")
        try:
            assert worker.stderr is not None
            next(line for line in worker.stderr if "tick done" in line)
            time.sleep(2)
            before = _cpu(worker.pid)
            time.sleep(seconds)
            used = _cpu(worker.pid) - before
            status = Path(f"/proc/{worker.pid}/status").read_text()
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    memory = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert memory is not None
    row("idle worker: CPU a minute", f"{used * 60 / seconds:.2f} s", "aim: under 1 s")
    row("idle worker: memory", f"{int(memory[1]) / 1024:.0f} MB", "aim: under 300 MB")


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
