"""An evaluation on a Ray of its own: how far eight workers are from what the provider's latency alone would take.

`python -m tests.benchmarks.ray FOLDER` is one evaluation, in a process of its own.
"""

import asyncio
import json
import logging
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.judging import JUDGES, LATENCY, project, provider
from tests.benchmarks.measured import row

WORKERS, IN_FLIGHT = 8, 4
"""So few calls in flight for each worker that two cores are enough for all of them and the stub."""
TRACES = 1_600


def main(quick: bool = False) -> None:
    traces = TRACES // 4 if quick else TRACES
    options = ("--latency", str(LATENCY), "--forget")
    with (
        provider(*options) as address,
        project(address, traces, max_concurrency=WORKERS * IN_FLIGHT) as judged,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.ray", str(judged.folder), address],
            env=judged.env({}),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    told = json.loads(done.stdout.splitlines()[-1])
    ideal = told["left"] * LATENCY / (WORKERS * IN_FLIGHT)
    row(f"ray, {WORKERS} workers of {IN_FLIGHT} calls: until all are up", f"{told['start']:.1f} s", "")
    row(
        f"  {told['left']} judgements from then on, {LATENCY * 1000:.0f} ms each",
        f"{told['seconds']:.1f} s",
        f"{told['seconds'] / ideal:.2f} times {ideal:.1f} s (aim: at most 1.10)",
    )
    row("  results", f"{told['results']} of {traces * JUDGES}", "aim: all")


class _Up(logging.Handler):
    """Notes when all workers were up, and how many calls the provider had got by then."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.at, self.calls = 0.0, 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "all workers are up":
            with urllib.request.urlopen(f"{self.address.removesuffix('/v1')}/stub/requests") as response:
                self.calls = json.load(response)["count"]
            self.at = time.perf_counter()


def measure(folder: str, address: str) -> None:
    """One evaluation; from the last worker's start to the last result's commit."""
    from evaluator.commands.evaluations import OfflineRequest, run_offline
    from evaluator.config import load_config

    up = _Up(address)
    logging.getLogger("evaluator").setLevel(logging.INFO)
    logging.getLogger("evaluator.engines.ray").addHandler(up)
    last = began = time.perf_counter()

    def tell(_: int, __: int) -> None:
        nonlocal last
        last = time.perf_counter()

    request = OfflineRequest(
        start=datetime(2026, 11, 20, tzinfo=UTC),
        end=datetime(2026, 11, 21, tzinfo=UTC),
        engine="ray",
        workers=WORKERS,
    )
    config = load_config(Path(folder, "evaluator.yaml"))
    summary = asyncio.run(run_offline(config, request, tell)).evaluation.summary
    told = {
        "start": up.at - began,
        "left": summary.calls - up.calls,
        "seconds": last - up.at,
        "results": summary.results,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    measure(*sys.argv[1:])
