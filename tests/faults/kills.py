"""The real command, killed at random moments and at chosen ones, started again until all is done.

python -m tests.faults.kills --kills 1000
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluator.tables.delta import DeltaStore
from tests.project import ONE_JUDGE, Project
from tests.stub_provider import StubProvider
from tests.traffic import answer, trace_id

SCORERS = ("greets", "polite")
LONGEST = 60.0
"""Seconds after which a command that was not killed counts as hung."""


@dataclass(kw_only=True)
class Outcome:
    """What a series of kills came to; `moments` counts where the process was when it died."""

    traces: int = 0
    kills: int = 0
    calls: int = 0
    wasted: int = 0
    moments: Counter[str] = field(default_factory=Counter)


class Series:
    """A project whose worker is killed again and again while traces keep coming."""

    def __init__(self, folder: Path, stub: StubProvider, seed: int) -> None:
        judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "10s"}
        self.project = Project.create(folder, ONE_JUDGE, judge=judge)
        self.outcome = Outcome()
        self._stub = stub
        self._random = random.Random(seed)
        self._usual = 2.0
        tables = folder / "traces"
        self._ledger = DeltaStore(str(tables / "agent_eval_ledger"))
        self._annotations = DeltaStore(str(tables / "agent_otel_annotations"))

    def kill_once(self) -> None:
        """New traces, a worker, and its end at some moment; one that was done before does not count."""
        outcome = self.outcome
        count = self._random.randint(1, 6)
        self.project.append(*[self._trace(outcome.traces + index) for index in range(count)])
        outcome.traces += count
        name, over = self._moment()
        began = time.monotonic()
        process = self.project.start("once")
        try:
            while process.poll() is None and not over():
                if time.monotonic() - began > LONGEST:
                    raise AssertionError("the worker hangs")
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            _, told = process.communicate()
        if process.returncode == -signal.SIGKILL:
            outcome.kills += 1
            outcome.moments[name] += 1
        else:
            assert process.returncode == 0, told
            self._usual = time.monotonic() - began

    def finish(self) -> None:
        """Run the worker to its end, and once more, which must find nothing to do."""
        first = self.project.run("once", "--json")
        assert first.code == 0, first.err
        before = self._ledger.open().version
        second = self.project.run("once", "--json").json()
        assert (second["traces"], second["results"], second["calls"]) == (0, 0, 0)
        assert self._ledger.open().version == before
        self.outcome.calls = len(self._stub.requests)
        self.outcome.wasted = self.outcome.calls - self.outcome.traces

    def check(self) -> None:
        """Exactly one result and one annotation for every trace and scorer, and no call but for kills."""
        outcome = self.outcome
        wanted = {(trace_id(f"t{index}"), scorer) for index in range(outcome.traces) for scorer in SCORERS}
        ledger = self._ledger.open()
        scored = ledger.query("select trace_id, scorer from t where state = 'scored'").to_pylist()
        decided = ledger.query("select trace_id from t where state = 'done' and target_type = 'TRACE'")
        published = self._annotations.open().query("select target_id, name from t").to_pylist()
        assert len(decided) == outcome.traces
        assert Counter((row["trace_id"], row["scorer"]) for row in scored) == Counter(wanted)
        assert Counter((row["target_id"], row["name"]) for row in published) == Counter(wanted)
        most = max(Counter(str(request["messages"]) for request in self._stub.requests).values())
        assert most <= 1 + outcome.kills
        assert 0 <= outcome.wasted <= outcome.traces * outcome.kills

    def _trace(self, index: int) -> dict[str, Any]:
        """A trace whose prompt is no other one's, so that the stub's requests tell how often it was asked."""
        return answer(f"t{index}", request=f"Question {index}?")

    def _moment(self) -> tuple[str, Callable[[], bool]]:
        match self._random.randint(0, 5):
            case 0:
                calls = len(self._stub.requests) + self._random.randint(1, 3)
                return "a call came", lambda: len(self._stub.requests) >= calls
            case 1 | 2:
                number = self._random.randint(1, 3)
                return f"ledger commit {number}", self._commits(self._ledger, number)
            case 3:
                return "annotations commit", self._commits(self._annotations, 1)
            case _:
                at = time.monotonic() + self._random.uniform(0.2, 1.1) * self._usual
                return "some time", lambda: time.monotonic() >= at

    def _commits(self, store: DeltaStore, number: int) -> Callable[[], bool]:
        """Whether a table has that many commits more than now."""
        version = store.open().version + number
        file = Path(store.uri) / "_delta_log" / f"{version:020d}.json"
        after = time.monotonic, self._random.choice((0.0, 0.0, 0.01, 0.05))
        seen: list[float] = []

        def over() -> bool:
            clock, pause = after
            if not seen and file.exists():
                seen.append(clock())
            return bool(seen) and clock() >= seen[0] + pause

        return over


def run_kills(folder: Path, kills: int, seed: int) -> Outcome:
    """A series of that many kills, and what must hold after it."""
    with StubProvider(latency=0.05) as stub:
        series = Series(folder, stub, seed)
        while series.outcome.kills < kills:
            series.kill_once()
        series.finish()
        series.check()
        return series.outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        outcome = run_kills(Path(folder), arguments.kills, arguments.seed)
        sys.stdout.write(f"{outcome} in {time.monotonic() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
