"""`eval --engine ray`: the rows of a local evaluation, from workers that may be killed, here or in a cluster."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from evaluator import __version__
from evaluator.chunk import EvaluationParts
from evaluator.engines.ray import OWN_RAY, _Worker
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Ledger
from tests.bench import Bench
from tests.project import Project
from tests.stub_provider import StubProvider
from tests.traffic import NOON, answer, span

RANGE = ("--from", "2026-11-20", "--to", "2026-11-22")
GUIDELINES = """
judges:
  - {name: polite, guidelines: The response must be polite., batch: joint}
  - {name: complete, guidelines: The response must answer the question., batch: joint}
  - {name: brief, guidelines: The response must be brief., sample_rate: 0.5}
scorers:
  - {name: greets, regex: Hello}
  - {name: quick, sql: duration_ms < 1500, filter: "request like '%refund%'"}
  - {name: counts, python: "scorers_of_ours:counts"}
"""
SCORERS = "def counts(outputs):\n    return len(outputs)\n"
DIFFERS = ("seq", "at", "run_id", "latency_ms")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray of somebody else's on loopback, as an environment that names it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**OWN_RAY, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = tmp_path_factory.mktemp("r")
    command = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    # Nothing of the providers is in its environment: what workers know of them came with the work.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "EVALUATOR_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command, f"--temp-dir={folder}"],
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        while "Ray runtime started" not in process.stdout.readline():
            assert process.poll() is None
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider(verdict=lambda prompt: "yes" if "number 1" in prompt else "no") as provider:
        yield provider


def a_project(folder: Path, stub: StubProvider) -> Project:
    """29 traces of which some have results already, and one that is not whole."""
    folder.mkdir()
    (folder / "scorers_of_ours.py").write_text(SCORERS)
    judge = {"model": "openai/stub", "base_url": stub.base_url, "max_concurrency": 8}
    project = Project.create(
        folder,
        GUIDELINES,
        judge={**judge, "budget": {"usd_per_day": None}},
        python_modules=["scorers_of_ours"],
    )
    project.append(*(one for number in range(29) for one in a_trace(number)), span("growing", seconds=None))
    assert project.run("eval", *RANGE, "--limit", "4", OPENAI_API_KEY="key").code == 0
    return project


def a_trace(number: int, days: int = 0) -> list[dict[str, Any]]:
    name, at = f"t{number}", NOON + timedelta(days=days, seconds=number)
    asked = "Where is my refund?" if number % 3 else "Hi?"
    # A step that began before the root, as clocks have it: the order of traces is not that of their first spans.
    early = span(name, "step", parent="root", at=at - timedelta(seconds=number % 7))
    return [answer(name, f"Hello, number {number}.", asked, at=at), early]


def a_copy(project: Project, folder: Path) -> Project:
    shutil.copytree(project.folder, folder)
    return Project(folder=folder)


def results(project: Project) -> list[dict[str, Any]]:
    """The report's results in its order, but for what tells when and by whom."""
    told = json.loads((project.folder / "out.json").read_text())["results"]
    return [{key: value for key, value in result.items() if key not in DIFFERS} for result in told]


def rows(project: Project) -> list[dict[str, Any]]:
    """What the ledger holds of results, but for what tells when and by whom."""
    book = Ledger(DeltaStore(str(project.folder / "traces" / "agent_eval_ledger")), lambda: NOON).open()
    told = book.table("scorer is not null").to_pylist()
    return sorted(
        ({key: value for key, value in row.items() if key not in DIFFERS} for row in told), key=repr
    )


def workers_of(pid: int) -> list[int]:
    """The processes below one that are Ray's workers with work of ours."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            told = Path(f"/proc/{child}/cmdline").read_bytes()
            found += [int(child)] if told.startswith(b"ray::_Worker") else workers_of(int(child))
        except OSError:  # It has just ended.
            continue
    return found


def counts(summary: dict[str, Any]) -> dict[str, Any]:
    """What two evaluations of the same traces have in common; what a killed worker was told is in the cache."""
    return {
        key: value for key, value in summary.items() if key not in ("run_id", "seconds", "calls", "cached")
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_ray_of_its_own_gives_the_rows_of_a_local_evaluation_though_its_workers_are_killed(
    tmp_path: Path, stub: StubProvider
) -> None:
    here = a_project(tmp_path / "here", stub)
    there = a_copy(here, tmp_path / "there")
    asked = ("eval", *RANGE, "--json", "--output", "out.json")
    local = here.run(*asked, OPENAI_API_KEY="key")
    judged, stub.latency = stub.count, 0.4

    process = there.start(*asked, "--engine", "ray", "--workers", "2", OPENAI_API_KEY="key")
    while stub.count == judged and process.poll() is None:
        time.sleep(0.05)
    killed = workers_of(process.pid)
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=240)

    assert (local.code, process.returncode) == (0, 0), local.err + err
    assert "Traceback" not in err
    assert killed
    assert counts(json.loads(out)) == counts(local.json())
    assert results(there) == results(here)
    assert rows(there) == rows(here)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_in_a_cluster_what_no_worker_can_evaluate_is_told_and_the_rest_is_done(
    tmp_path: Path, stub: StubProvider, cluster: dict[str, str]
) -> None:
    project = a_project(tmp_path / "there", stub)
    table = project.spans.open
    before = {file.path for file in table().files("time")}
    project.append(*(one for number in range(100, 110) for one in a_trace(number, days=30)))
    [late] = {file.path for file in table().files("time")} - before
    stub.latency, judged = 1.0, stub.count

    process = project.start(
        "eval", "--from", "2026-11-20", "--to", "2026-12-31", "--json", "--engine", "ray", "--workers", "1",
        **cluster, OPENAI_API_KEY="key",
    )  # fmt: skip
    while stub.count == judged and process.poll() is None:
        time.sleep(0.02)
    (project.folder / "traces" / "agent_otel_spans" / late).unlink()
    stub.latency = 0.0
    out, err = process.communicate(timeout=240)

    assert process.returncode == 1, err
    lost = int(err.rpartition(" traces could not be evaluated: ")[0].split()[-1])
    assert "VACUUM" in err
    assert "Traceback" not in err
    done = json.loads(out)
    assert done["traces"] >= 10
    assert done["traces"] + done["waiting"] + lost == 40
    assert len({row["trace_id"] for row in rows(project)}) == done["traces"]
    assert {headers["Authorization"] for headers in stub.headers} == {"Bearer key"}


@dataclass
class Prepared:
    """A worker's bench that tells whether it was prepared."""

    parts: EvaluationParts
    prepared: bool = False

    async def prepare(self) -> None:
        self.prepared = True

    async def close(self) -> None: ...


async def test_a_worker_that_is_up_has_loaded_what_it_needs_and_seen_the_tables(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    prepared = Prepared(bench.wanted())
    worker = _Worker(lambda number, count: prepared, 0, 1, {})

    there = await worker.ready(__version__)
    older = await worker.ready("0.0.1")
    shutil.rmtree(bench.spans_store.uri)
    gone = await worker.ready(__version__)

    assert there is None
    assert prepared.prepared
    assert "install the same" in (older or "")
    assert "no Delta table" in (gone or "")


def test_without_ray_it_is_said_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    project = Project.create(tmp_path)

    ran = project.run("eval", *RANGE, "--engine", "ray", PYTHONPATH=str(tmp_path))

    assert ran.code == 2
    assert "install the evaluator with its extra `ray`" in ran.err


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(*a_trace(1))

    ran = project.run("eval", *RANGE, "--engine", "ray", RAY_ADDRESS="127.0.0.1:9")

    assert ran.code == 1
    assert "no Ray answers at 127.0.0.1:9" in ran.err
    assert "Traceback" not in ran.err
