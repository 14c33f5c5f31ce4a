"""What grows and what must not: a tick beside an old table, the ledger's appends, a backlog, and a tick without news.

`python -m tests.benchmarks.scale PART FOLDER …` is one measurement in a process of its own.
"""

import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from evaluator.footprint import keep_small
from tests.benchmarks.measured import row
from tests.benchmarks.tables import (
    BEGAN,
    RESULTS_A_COMMIT,
    SPANS_A_COMMIT,
    SPANS_A_TRACE,
    kept,
    ledger_rows,
    spans_table,
)
from tests.project import Project

BIG, SMALL = 5_000_000, 500_000
NEW_RESULTS = 3_000
TURNS = 3
"""How often what is compared is measured, in turns: the machine is not as fast at one time as at another."""
BACKLOG_TRACES, BACKLOG_STEPS = 200_000, 2
SCORERS = """
scorers:
  - {name: quick, sql: "duration_ms < 10000"}
  - {name: has_figure, regex: '\\d'}
  - {name: no_pii, builtin: pii}
"""


def main(quick: bool = False) -> None:
    big, small = (BIG // 10, SMALL // 10) if quick else (BIG, SMALL)
    measure_find(big, small)
    measure_append(big)
    measure_no_news()
    measure_backlog(BACKLOG_TRACES // 20 if quick else BACKLOG_TRACES)


def measure_find(big: int, small: int) -> None:
    """Reading and putting together what the newest commit brought, in a big table and in a small one."""
    kinds = (("find", spans_table(small)), ("find", spans_table(big)), ("dataset", spans_table(big)))
    turns = [[part(name, str(folder)) for name, folder in kinds] for _ in range(TURNS)]
    few, many, by_time = (best(told) for told in zip(*turns, strict=True))
    traces = SPANS_A_COMMIT // SPANS_A_TRACE
    row(
        f"find and assemble {traces:,} new traces in {big:,} spans",
        f"{many['seconds'] * 1000:.0f} ms, {many['cpu']:.2f} s CPU",
        f"{many['seconds'] / few['seconds']:.2f} times those in {small:,} (aim: 1.15; under 1 s of CPU)",
    )
    row("  peak memory", f"{many['megabytes']:.0f} MB", "aim: under 400 MB")
    row(
        "  finding alone against a dataset with a time predicate",
        f"{by_time['seconds'] * 1000:.0f} ms",
        f"{by_time['seconds'] / many['found']:.1f} times ours (aim: 6)",
    )


def measure_append(rows: int) -> None:
    """Committing the results of a chunk to a ledger of so many rows."""
    told = part("append", str(ledger(rows)))
    row(
        f"ledger append of {NEW_RESULTS:,} results at {rows:,} rows",
        f"{told['seconds'] * 1000:.0f} ms",
        "aim: under 50 ms",
    )


def measure_no_news() -> None:
    """A turn of a worker that has all loaded, with no new commit and nothing due."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder), SCORERS)
        told = part("no_news", str(project.folder))
    row("a tick without news", f"{told['cpu'] * 1000:.1f} ms of CPU", "aim: under 20 ms")
    row("  requests to the store", f"{told['requests']:.0f}", "aim: at most 3")


def measure_backlog(traces: int) -> None:
    """One tick over a backlog, code scorers only, published to the annotations table."""
    source = spans_table(traces * BACKLOG_STEPS, steps=BACKLOG_STEPS, name="backlog")
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder), SCORERS)
        shutil.rmtree(project.spans.uri)
        shutil.copytree(source / "agent_otel_spans", project.spans.uri)
        told = part("backlog", str(project.folder))
    row(
        f"backlog of {told['traces']:,} traces, three code scorers",
        f"{told['traces'] / told['seconds']:,.0f} traces/s",
        "aim: over 2,000/s",
    )
    middle, late = told["megabytes"]
    row("  memory half way, and at the end", f"{middle:.0f} MB, {late:.0f} MB", "aim: flat")


def ledger(rows: int) -> Path:
    """A ledger of so many results."""
    from evaluator.tables.delta import DeltaStore
    from evaluator.tables.ledger import Ledger
    from evaluator.tables.schemas import LEDGER

    folder = kept(f"ledger-{rows}-{len(LEDGER)}-columns")
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        store = DeltaStore(str(folder / "agent_eval_ledger"))
        Ledger(store, lambda: BEGAN).provision()
        start = store.open().transaction("seq") or 0
        for number in range(rows // RESULTS_A_COMMIT):
            snapshot = store.open()
            seq = start + number + 1
            snapshot.append(ledger_rows(number), {"seq": seq, "open": seq})
            if number % 100 == 99:
                store.open().checkpoint()
        (folder / "made").touch()
    return folder


# --- the parts, each in a process of its own


def part(name: str, *arguments: str) -> dict[str, Any]:
    keep_small()  # as the command does, for those whom it is handed on to
    command = [sys.executable, "-m", "tests.benchmarks.scale", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def best(told: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The least of each figure."""
    return {name: min(one[name] for one in told) for name in told[0]}


def find(folder: str) -> dict[str, float]:
    """The best of some: opened, read from the cursor before the newest commit, decoded and assembled."""
    from evaluator.tables.delta import DeltaStore
    from evaluator.tables.spans import SpansTable
    from evaluator.traces.assembly import assemble, gather

    table = SpansTable(DeltaStore(f"{folder}/agent_otel_spans"), lambda: datetime.now(UTC))
    cursor = table.open().version - 1

    def once() -> tuple[float, float, float]:
        began, used = time.perf_counter(), time.process_time()
        arrivals = table.open().since(cursor, None).arrivals
        found = time.perf_counter() - began
        traces = [
            assemble(pending.trace_id, pending.spans, incomplete=False)
            for pending in gather(arrivals).values()
        ]
        assert len(traces) == SPANS_A_COMMIT // SPANS_A_TRACE
        return time.perf_counter() - began, time.process_time() - used, found

    seconds, cpu, found = (min(column) for column in zip(*(once() for _ in range(5)), strict=True))
    return {"seconds": seconds, "cpu": cpu, "found": found, "megabytes": peak()}


def dataset(folder: str) -> dict[str, float]:
    """The same spans by their time, as one reads a table without its log, decoded as ours are."""
    import pyarrow.compute as pc
    from deltalake import DeltaTable

    from evaluator.tables.decoding import spans_of
    from evaluator.tables.spans import COLUMNS

    uri = f"{folder}/agent_otel_spans"
    commits = DeltaTable(uri).version()
    start = BEGAN + timedelta(minutes=15) * (commits - 1)

    def once() -> float:
        began = time.perf_counter()
        found = (
            DeltaTable(uri)
            .to_pyarrow_dataset()
            .to_table(columns=list(COLUMNS), filter=pc.field("time") >= start)
        )
        assert len(list(spans_of(found))) == SPANS_A_COMMIT
        return time.perf_counter() - began

    return {"seconds": min(once() for _ in range(3))}


def append(folder: str) -> dict[str, float]:
    """Commits of results, in a copy of the ledger: the one that is kept stays as it is."""
    from evaluator.tables.delta import DeltaStore
    from evaluator.tables.ledger import Ledger
    from evaluator.tables.rows import from_arrow

    with tempfile.TemporaryDirectory(dir=folder) as copy:
        shutil.copytree(f"{folder}/agent_eval_ledger", f"{copy}/ledger", copy_function=_link)
        ledger = Ledger(DeltaStore(f"{copy}/ledger"), lambda: datetime.now(UTC))
        book = ledger.open()
        book.open_rows()
        times = []
        for number in range(9):
            rows = from_arrow(ledger_rows(10_000_000 + number).slice(0, NEW_RESULTS))
            began = time.perf_counter()
            assert len(book.commit([[one] for one in rows])) == NEW_RESULTS
            times.append(time.perf_counter() - began)
    return {"seconds": median(times)}


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def no_news(folder: str) -> dict[str, float]:
    """Turns of a worker at rest: CPU of one, and how often the store is asked."""
    from evaluator.config import load_config
    from evaluator.tables.delta import DeltaStore
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    config = load_config(Path(folder, "evaluator.yaml"))
    requests = 0

    async def turns() -> list[float]:
        nonlocal requests
        worker = Worker(config, build_tables(config))
        for _ in range(3):
            await worker.turn(wait=False)
        asked = DeltaStore.has_commit

        def counted(store: DeltaStore, version: int) -> bool:
            nonlocal requests
            requests += 1
            return asked(store, version)

        def opened(store: DeltaStore) -> Any:
            raise AssertionError("a table was opened")

        DeltaStore.has_commit, DeltaStore.open = counted, opened  # type: ignore[method-assign]
        times = []
        for _ in range(10):
            used = time.process_time()
            await worker.turn(wait=False)
            times.append(time.process_time() - used)
        await worker.close()
        return times

    times = asyncio.run(turns())
    return {"cpu": median(times), "requests": requests / len(times)}


def backlog(folder: str) -> dict[str, Any]:
    """One turn; memory when half of the traces were decided, and at its end."""
    from evaluator.config import load_config
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker
    from tests.benchmarks.judging import resident

    config = load_config(Path(folder, "evaluator.yaml"))
    megabytes: list[float] = []

    async def turn() -> Any:
        worker = Worker(config, build_tables(config))
        sampling = asyncio.create_task(_sample(megabytes, resident))
        try:
            return await worker.turn(wait=False)
        finally:
            sampling.cancel()
            await worker.close()

    summary = asyncio.run(turn()).summary
    half = megabytes[len(megabytes) // 2]
    return {"traces": summary.traces, "seconds": summary.seconds, "megabytes": [half, max(megabytes[-3:])]}


async def _sample(into: list[float], resident: Callable[[], float]) -> None:
    while True:
        into.append(resident())
        await asyncio.sleep(0.2)


def peak() -> float:
    """Megabytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "find": find,
    "dataset": dataset,
    "append": append,
    "no_news": no_news,
    "backlog": backlog,
}

if __name__ == "__main__":
    if sys.argv[1] != "dataset":
        keep_small()
    print(json.dumps(PARTS[sys.argv[1]](sys.argv[2])))
