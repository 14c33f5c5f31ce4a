"""A ledger after a year of ticks: how long it takes to open, never maintained and maintained."""

import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import PROPERTIES, Ledger
from evaluator.tables.maintenance import maintain
from evaluator.tables.schemas import LEDGER
from tests.benchmarks.measured import row

COMMITS, EVERY = 35_000, timedelta(minutes=15)
ROWS = 20
CHECKPOINT_AFTER = 100
OPENED = 7


def main(quick: bool = False) -> None:
    """The ledger is written file by file, as a year of appends leaves it: appending takes a quarter of an hour."""
    commits = COMMITS // 10 if quick else COMMITS
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(DeltaStore(str(Path(folder) / "ledger")), lambda: datetime.now(UTC))
        _a_year(ledger, commits)
        row(f"open a ledger of {commits:,} commits, never maintained", _opening(ledger), "aim: under 0.5 s")
        began = time.monotonic()
        done = maintain("ledger", ledger.store, PROPERTIES, now=datetime.now(UTC))
        row(
            f"maintain it: {done.small_files:,} files become {done.became}",
            f"{time.monotonic() - began:.1f} s",
            "once",
        )
        row("open it after that", _opening(ledger), "aim: under 0.5 s")


def _opening(ledger: Ledger) -> str:
    """Wall and CPU time of opening the ledger and reading what is open in it."""
    wall, cpu = [], []
    for _ in range(OPENED):
        began, used = time.perf_counter(), time.process_time()
        ledger.open().open_rows()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return f"{1000 * median(wall):.0f} ms, {1000 * median(cpu):.0f} ms of CPU"


def _a_year(ledger: Ledger, commits: int) -> None:
    ledger.provision()
    folder = Path(ledger.store.uri)
    book = ledger.open()
    start = datetime.now(UTC) - commits * EVERY
    last = commits - CHECKPOINT_AFTER // 2
    for number in range(commits):
        if number == last:
            ledger.store.open().checkpoint()
        at = start + number * EVERY
        version, seq = book.version + 1 + number, book.seq + 1 + number
        path = _data_file(folder, at, seq)
        log = folder / "_delta_log" / f"{version:020d}.json"
        log.write_bytes(b"\n".join(map(orjson.dumps, _actions(path, folder, at, seq))))
        os.utime(log, (at.timestamp(), at.timestamp()))


def _data_file(folder: Path, at: datetime, seq: int) -> Path:
    """The rows of one tick: decided traces with a result each."""
    told = {"seq": seq, "scope": "live", "target_type": "TRACE", "at": at, "run_id": f"{seq:032x}"}
    rows = []
    for number in range(ROWS // 2):
        trace_id = f"{seq * ROWS + number:032x}"
        of_trace = {**told, "target_id": trace_id, "trace_id": trace_id, "revision": 0}
        rows.append({**of_trace, "state": "done", "set": '{"judge": "0123456789ab"}'})
        scored = {"scorer": "judge", "version": "0123456789ab", "value": '"yes"', "passed": True}
        rows.append({**of_trace, **scored, "state": "scored", "rationale": f"It names {number} tickets."})
    path = folder / f"day={at:%Y-%m-%d}" / f"part-00000-{seq:08d}.parquet"
    path.parent.mkdir(exist_ok=True)
    schema = pa.schema([field for field in LEDGER if field.name != "day"])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def _actions(path: Path, folder: Path, at: datetime, seq: int) -> list[dict[str, Any]]:
    moment = int(at.timestamp() * 1000)
    bounds = {"numRecords": ROWS, "minValues": {"seq": seq}, "maxValues": {"seq": seq}}
    add = {
        "path": str(path.relative_to(folder)),
        "partitionValues": {"day": f"{at:%Y-%m-%d}"},
        "size": path.stat().st_size,
        "modificationTime": moment,
        "dataChange": True,
        "stats": orjson.dumps({**bounds, "nullCount": {"seq": 0, "due": ROWS}}).decode(),
    }
    marks = {"seq": seq, "at": moment * 1000, "open": seq, "layout": 1, "live/spans/0of1": seq}
    return [
        {"commitInfo": {"timestamp": moment, "operation": "WRITE"}},
        {"add": add},
        *({"txn": {"appId": app_id, "version": value}} for app_id, value in marks.items()),
    ]


if __name__ == "__main__":
    main()
