"""The real command, killed at random moments and at every step that can be seen, disturbed in between, and started
again until all is done; then the law is checked on the real tables.

python -m tests.faults.kills --kills 1000
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evaluator.tables.delta import DeltaStore
from tests.faults.disturbances import Disturbance, Disturbances, Worker
from tests.faults.law import Law
from tests.faults.steps import ANNOTATIONS, LEDGER, STEPS, Bucket, Folder, Steps
from tests.faults.traffic import LATE, SETTINGS, Traffic
from tests.project import Project
from tests.s3 import S3
from tests.stub_provider import StubProvider, prompt_of

ROOT = Path(__file__).parents[2]
LONGEST = {"folder": 60.0, "s3": 240.0}
"""Seconds after which a command that was not killed counts as hung: two at a hundred small files over a slow wire take a
minute."""
SERIES, REST = 50, 25
"""Kills in one folder, and after how many of them all is brought to rest."""
WHILE_IT_STARTS = 0.005
"""Seconds between two looks at a worker that imports: a look takes a millisecond, which it needs itself."""
ON_S3 = 20
"""Of so many series one has its tables on an object store."""
IMPATIENT = {"timeout": "2s", "connect_timeout": "1s", "retry_timeout": "6s"}

Store = Literal["folder", "s3"]
Asked = tuple[str, bool, bool]
"""A call: the number of the question, by which guideline, and whether with the span that came late."""


@dataclass(kw_only=True)
class Outcome:
    """What series of kills came to: `moments` counts where the workers were when they died, `repeats` the calls that
    were made once more for the same spans of a trace and the same guideline."""

    kills: int = 0
    runs: int = 0
    rests: int = 0
    traces: int = 0
    sessions: int = 0
    late: int = 0
    results: int = 0
    calls: int = 0
    repeats: int = 0
    commits: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.runs} runs of the command, at: {_told(self.moments)}. "
            f"Beside them: {_told(self.disturbances)}. "
            f"{self.traces} traces, {self.late} of them with late spans, {self.sessions} sessions, "
            f"{self.results} results, {self.commits} commits of the ledger; "
            f"{self.calls} calls, {self.repeats} of them once more after a disturbance. "
            f"The law held after every commit and at {self.rests} rests."
        )


class Series:
    """A project whose workers are killed and disturbed again and again while traces keep coming."""

    def __init__(
        self, folder: Path, stub: StubProvider, seed: int, s3: S3 | None = None, *, disturbed: float = 0.5
    ) -> None:
        """Every other seed has traffic of all kinds, where the store is fast enough for it."""
        manifold = seed % 2 == 1 and s3 is None
        self.outcome = Outcome()
        self._stub = stub
        self._random = random.Random(seed)
        judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "2s"}
        tables, options = str(folder / "traces"), {}
        if s3 is not None:
            tables, options = (
                f"s3://{s3.make_bucket('traces').removeprefix('s3://')}/{folder.name}",
                s3.options(),
            )
        config: dict[str, Any] = {
            "tables": tables,
            "storage_options": {**options, **IMPATIENT} if options else {},
            **(SETTINGS if manifold else {}),
        }
        self.project = Project.create(folder, judge=judge, **config)
        spans = DeltaStore(f"{tables}/agent_otel_spans", options)
        self._ledger = DeltaStore(f"{tables}/{LEDGER}", options)
        annotations = DeltaStore(f"{tables}/{ANNOTATIONS}", options)
        self.law = Law(spans, self._ledger, annotations)
        self._traffic = Traffic(spans, self.law, self._random, manifold=manifold)
        self.project.guide(self._traffic.guidelines[0])
        self._disturbances = Disturbances(
            project=self.project,
            guidelines=self._traffic.guidelines,
            stub=stub,
            stores=(spans, self._ledger, annotations),
            law=self.law,
            s3=s3,
            come=lambda: self._traffic.come(self._random.randint(1, 3)),
            share=disturbed,
            chance=self._random,
        )
        place = Folder(folder / "traces") if s3 is None else Bucket(s3, tables)
        self._steps = Steps(place, folder / ".evaluator", stub)
        self._calls = Calls()
        self._longest = LONGEST["folder" if s3 is None else "s3"]
        self._usual = 1.0

    def kill_once(self) -> None:
        """New traces, a worker or two, and the end of one at some moment; one that was done before does not count."""
        disturbance, moment, pause = self._disturbances.draw(), *self._moment()
        try:
            self._traffic.come(self._random.randint(1, 6))
            disturbance.before()
            self._steps.look()
            workers = [self._start(*how) for how in disturbance.workers]
            try:
                victim = self._watch(workers, disturbance, moment, pause)
                ended = [_ended(worker, self._longest) for worker in workers]
            finally:
                for worker in workers:
                    worker.kill()
            self._count(disturbance, moment, victim, ended)
        except Exception as error:
            raise AssertionError(
                f"kill {self.outcome.kills} ({moment}; {disturbance.name}): {error}"
            ) from error
        finally:
            self._disturbances.mend()

    def rest(self) -> None:
        """Run the worker until it finds nothing and commits nothing, also of what is due later; then the law holds."""
        ahead, told = 0.0, None
        for _ in range(10):
            before = self._ledger.open().version
            told = self._undisturbed(ahead)
            self.law.follow()
            due = [row.due for row in self.law.mirror.latest.values() if row.due]
            ahead = (max(due) - datetime.now(UTC)).total_seconds() + 60 if due else 0.0
            if not due and self._ledger.open().version == before:
                break
        assert told is not None
        assert (told["traces"], told["results"], told["calls"]) == (0, 0, 0), (
            f"it does not come to rest: {told}"
        )
        self.law.at_rest(self._traffic.wanted)
        outcome = self.outcome
        outcome.rests += 1
        outcome.traces, outcome.sessions, outcome.late = self._traffic.counts
        outcome.calls, outcome.repeats = self._calls.count, self._calls.repeats
        outcome.commits = self.law.mirror.commits
        outcome.results = sum(row.state == "scored" for row in self.law.mirror.rows)

    def check_currency(self) -> None:
        """Of what stands in the annotations, one result of each trace and scorer is current."""
        counted = self.project.sql("select count(*) filter (is_current) as n from assessments")
        assert counted == [{"n": len(self._traffic.wanted)}], counted

    # --- inside

    def _moment(self) -> tuple[str, float]:
        """A step and how long after it; or some time after the worker has begun, or a moment before."""
        chance = self._random.random()
        if chance < 0.04:
            return "start", self._random.uniform(0.2, 1.0)
        if chance < 0.3:
            return "some time", self._random.uniform(0.0, 1.1) * self._usual
        return self._random.choice(STEPS[:-1]), self._random.choice((0.0, 0.0, 0.0, 0.005, 0.02, 0.06))

    def _start(self, ahead: float, arguments: Sequence[str]) -> Worker:
        """The installed command, or the same with its clock moved."""
        if not ahead:
            return self.project.start(*arguments)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.shifted", str(ahead), *arguments],
            cwd=self.project.folder,
            env=self.project.env({"PYTHONPATH": str(ROOT)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def _watch(
        self, workers: Sequence[Worker], disturbance: Disturbance, moment: str, pause: float
    ) -> Worker | None:
        """See to what happens, until one is killed or all have ended; the one that was killed."""
        began = time.monotonic()
        at = began + pause if moment == "start" else None
        first, due = STEPS[0] if moment == "some time" else moment, disturbance.at
        working = None
        while any(worker.poll() is None for worker in workers):
            now = time.monotonic()
            assert now - began < self._longest, "the worker hangs"
            steps = self._steps.look()
            working = working or (now if steps else None)
            if at is None and first in steps:
                at = now + pause
            if due in steps:
                due = ""
                disturbance.meanwhile(workers)
            if at is not None and now >= at:
                victim = self._random.choice(
                    [worker for worker in workers if worker.poll() is None] or [None]
                )
                if victim is not None:
                    victim.send_signal(signal.SIGKILL)
                return victim
            time.sleep(self._steps.every if working else max(self._steps.every, WHILE_IT_STARTS))
        if working is not None:
            self._usual = time.monotonic() - working
        return None

    def _count(
        self,
        disturbance: Disturbance,
        moment: str,
        victim: Worker | None,
        ended: Iterable[tuple[Worker, str]],
    ) -> None:
        """Whether all ended as they may, and what they asked."""
        outcome, well = self.outcome, True
        for worker, said in ended:
            outcome.runs += 1
            assert "Traceback" not in said, said
            killed = worker is victim and worker.returncode == -signal.SIGKILL
            assert killed or worker.returncode in ((0, 1) if disturbance.may_fail else (0,)), said
            well = well and worker.returncode == 0
            if killed:
                outcome.kills += 1
                outcome.moments[moment] += 1
        outcome.disturbances[disturbance.name] += 1
        most = len(disturbance.workers) + disturbance.faults
        self._calls.settle(self._stub.requests, most, sure=well and not disturbance.faults)

    def _undisturbed(self, ahead: float) -> Any:
        worker = self._start(ahead, ("once", "--json"))
        out, said = worker.communicate(timeout=self._longest)
        assert worker.returncode == 0, said
        self.outcome.runs += 1
        self._calls.settle(self._stub.requests, 1, sure=True)
        return json.loads(out)


class Calls:
    """The provider's count (11): a worker asks once, and what one asked that ended well is never asked again."""

    def __init__(self) -> None:
        self.count = 0
        self._asked: Counter[Asked] = Counter()
        self._sure: set[Asked] = set()

    @property
    def repeats(self) -> int:
        return self._asked.total() - len(self._asked)

    def settle(self, requests: Sequence[Any], most: int, *, sure: bool) -> None:
        """The requests that came until the end of some workers: each at most so often, and none that was `sure`ly kept."""
        asked: Counter[Asked] = Counter()
        for request in requests[self.count :]:
            prompt = prompt_of(request)
            if found := re.search(r"Question (\d+)\?", prompt):  # others only ask whether somebody is there
                asked[found[1], "very polite" in str(request["messages"]), LATE in prompt] += 1
        self.count = len(requests)
        often = [key for key, times in asked.items() if times > most]
        assert not often, f"11: asked more than {most} times: {often[:3]}"
        again = sorted(self._sure & asked.keys())
        assert not again, f"11: asked again though the answer was kept: {again[:3]}"
        self._sure |= asked.keys() if sure else set()
        self._asked += asked


def _ended(worker: Worker, longest: float) -> tuple[Worker, str]:
    """A worker at its end, and what it said."""
    try:
        return worker, worker.communicate(timeout=longest)[1]
    except subprocess.TimeoutExpired:
        worker.kill()
        raise AssertionError(f"the worker hangs: {worker.communicate()[1]}") from None


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def run_kills(
    folder: Path, kills: int, seed: int, store: Store = "folder", *, disturbed: float = 0.5
) -> Outcome:
    """A series of that many kills, and what must hold after it. `disturbed`: how many are not only killed."""
    with ExitStack() as stack:
        stub = stack.enter_context(StubProvider(latency=0.05))
        s3 = stack.enter_context(S3()) if store == "s3" else None
        series = Series(folder, stub, seed, s3, disturbed=disturbed)
        outcome = series.outcome
        while outcome.kills < kills:
            series.kill_once()
            if outcome.kills < kills and outcome.kills // REST > outcome.rests:
                series.rest()
        series.rest()
        series.check_currency()
        return outcome


def run_kept(kills: int, seed: int, store: Store) -> Outcome:
    """A series in a folder of its own, which stays when something was found."""
    folder = Path(tempfile.mkdtemp(prefix=f"kills-{seed}-"))
    try:
        outcome = run_kills(folder, kills, seed, store)
    except Exception as error:
        sys.stderr.write(f"seed {seed} on {store}, left in {folder}: {error}\n")
        raise
    shutil.rmtree(folder)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first series; the next ones count on")
    parser.add_argument("--store", choices=("folder", "s3"), help=f"default: of {ON_S3} series one on s3")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="series at once")
    parser.add_argument("--seconds", type=float, help="begin no further series after so long")
    arguments = parser.parse_args()
    began = time.monotonic()
    portions = [min(SERIES, arguments.kills - done) for done in range(0, arguments.kills, SERIES)]
    seeds = range(arguments.seed, arguments.seed + len(portions))
    stores = [arguments.store or ("s3" if seed % ON_S3 == ON_S3 - 1 else "folder") for seed in seeds]
    spawned = multiprocessing.get_context("spawn")
    outcome, series = Outcome(), 0
    try:
        with ProcessPoolExecutor(arguments.workers, mp_context=spawned) as pool:
            for one in pool.map(run_kept, portions, seeds, stores):
                outcome, series = outcome + one, series + 1
                sys.stderr.write(f"{outcome.kills} kills, {time.monotonic() - began:.0f} s\n")
                if arguments.seconds and time.monotonic() - began > arguments.seconds:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    except AssertionError:
        return 1
    sys.stdout.write(f"{outcome} {series} series, {time.monotonic() - began:.0f} s.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
