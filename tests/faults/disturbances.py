"""What happens around a worker beside its being killed: before it starts, and while it runs."""

import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from subprocess import Popen
from typing import Any

from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.snapshot import CommitConflict, Snapshot
from tests.faults.law import Law
from tests.faults.steps import STEPS
from tests.project import Project
from tests.s3 import S3
from tests.stub_provider import StubProvider

HOUR = 3600.0
EVAL = ("eval", "--from", "2026-11-19", "--to", "2026-11-22", "--limit", "5")
FAULTS = ("500", "429", "half", "reset", "hang")
KEPT_NOTHING = {
    "delta.logRetentionDuration": "interval 0 days",
    "delta.deletedFileRetentionDuration": "interval 0 days",
    "delta.checkpointInterval": "1000000",
}
"""With which a log is cleaned up when it gets a checkpoint: workers make none, for the law reads every commit first."""
Worker = Popen[str]


def nothing(*_: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """`workers` are the commands that run at once, each with the seconds that its clock is ahead; one is killed.

    `meanwhile` happens to them at the step `at`; then they `may_fail`, with a sentence. `faults`: so many calls come
    to nothing.
    """

    name: str
    workers: Sequence[tuple[float, Sequence[str]]] = ((0.0, ("once",)),)
    before: Callable[[], object] = nothing
    meanwhile: Callable[[Sequence[Worker]], object] = nothing
    at: str = STEPS[0]
    may_fail: bool = False
    faults: int = 0


class Disturbances:
    """Draws them for one project."""

    def __init__(
        self,
        *,
        project: Project,
        guidelines: Sequence[str],
        stub: StubProvider,
        stores: Sequence[DeltaStore],
        law: Law,
        s3: S3 | None,
        come: Callable[[], object],
        share: float,
        chance: random.Random,
    ) -> None:
        """`come` has new spans arrive. `share`: of how many workers something else is disturbed than that one is killed."""
        self._project = project
        self._guidelines = list(guidelines)
        self._stub = stub
        self._stores = stores
        self._law = law
        self._s3 = s3
        self._come = come
        self._share = share
        self._random = chance
        for store in stores:
            store.open().set_properties(KEPT_NOTHING)
        if s3 is None:
            self._kinds = [
                self._two_workers, self._two_clocks, self._two_read_on, self._eval_beside, self._moved_clock,
                self._upkeep_between, self._upkeep_beside, self._failing_provider, self._other_guidelines, self._full_disk,
            ]  # fmt: skip
        else:
            self._kinds = [
                self._refusing_store, self._hanging_store, self._lost_reply, self._two_clocks, self._upkeep_beside,
            ]  # fmt: skip
        self._turn: list[Callable[[], Disturbance]] = []

    def draw(self) -> Disturbance:
        """Each kind in turn, in an order of chance, or none."""
        if self._random.random() >= self._share:
            return Disturbance(name="nothing else")
        if not self._turn:
            self._turn = self._random.sample(self._kinds, len(self._kinds))
        return self._turn.pop()()

    # --- the kinds

    def _two_workers(self) -> Disturbance:
        return Disturbance(name="two workers", workers=[(0.0, ("once",))] * 2)

    def _two_clocks(self) -> Disturbance:
        """The one that is ahead sees every lease as ended: both are at it."""
        workers = [(0.0, ("once",)), (120.0, ("once",))]
        return Disturbance(name="two workers, one's clock ahead", workers=workers)

    def _two_read_on(self) -> Disturbance:
        """What one of them has read is less than what the other reads."""
        return Disturbance(
            name="two workers, spans come beside",
            workers=[(0.0, ("once",)), (120.0, ("once",))],
            meanwhile=lambda _: self._come(),
            at=self._random.choice(STEPS[:-1]),
        )

    def _eval_beside(self) -> Disturbance:
        return Disturbance(name="eval beside", workers=[(0.0, ("once",)), (0.0, EVAL)])

    def _moved_clock(self) -> Disturbance:
        shift = self._random.choice((-2 * HOUR, -60.0, 60.0, 2 * HOUR, 30 * HOUR))
        return Disturbance(name="clock moved", workers=[(shift, ("once",))])

    def _upkeep_between(self) -> Disturbance:
        return Disturbance(name="OPTIMIZE, VACUUM, log clean-up between", before=lambda: self._maintain(True))

    def _upkeep_beside(self) -> Disturbance:
        return Disturbance(
            name="OPTIMIZE, VACUUM, log clean-up beside",
            meanwhile=lambda _: self._maintain(False),
            at=self._random.choice(STEPS[:-1]),
            may_fail=True,  # a vacuum that keeps nothing takes away what is being read
        )

    def _failing_provider(self) -> Disturbance:
        """At most three faults: a call is tried four times."""
        faults = self._random.choices(FAULTS, k=self._random.randint(1, 3))
        return Disturbance(
            name="provider fails", before=lambda: self._stub.script.extend(faults), faults=len(faults)
        )

    def _other_guidelines(self) -> Disturbance:
        self._guidelines.reverse()
        text = self._guidelines[0]
        return Disturbance(name="other checkout of the guidelines", before=lambda: self._project.guide(text))

    def _full_disk(self) -> Disturbance:
        """From some step on, no file may grow beyond a few bytes: a quota that the running process gets."""
        size = self._random.choice((0, 512, 4096))

        def fill(workers: Sequence[Worker]) -> None:
            for worker in workers:
                if worker.poll() is None:
                    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size, size))

        at = self._random.choice(STEPS[:-1])
        return Disturbance(name="disk full", meanwhile=fill, at=at, may_fail=True)

    def _refusing_store(self) -> Disturbance:
        return self._broken_store("store refuses", status=503, seconds=self._random.uniform(0.2, 2.0))

    def _hanging_store(self) -> Disturbance:
        times = self._random.randint(1, 4)
        return self._broken_store("store hangs", hang=self._random.choice((0.5, 3.0)), times=times)

    def _broken_store(self, name: str, **fault: Any) -> Disturbance:
        s3, at = self._s3, self._random.choice(STEPS[:-1])
        assert s3 is not None
        return Disturbance(name=name, meanwhile=lambda _: s3.break_down(**fault), at=at, may_fail=True)

    def _lost_reply(self) -> Disturbance:
        s3, table = self._s3, self._random.choice(self._stores[1:])
        assert s3 is not None
        ending = f"{table.open().version + self._random.randint(1, 5):020d}.json"
        return Disturbance(name="reply lost", before=lambda: s3.lose_reply("PUT", ending), may_fail=True)

    # --- inside

    def _maintain(self, alone: bool) -> None:
        """Put files together, and leave nothing of the past: neither files nor commits.

        `alone`: also the files that no commit names; beside a worker these may be what it is writing.
        """
        for store in self._stores:
            _until_done(lambda store=store: store.open().compact())
            snapshot = store.open()
            self._law.follow()
            snapshot.checkpoint()
            snapshot.clean_log()
            _until_done(lambda store=store: _vacuum(store.open(), alone))

    def mend(self) -> None:
        """All is well again."""
        self._stub.script.clear()
        if self._s3 is not None:
            self._s3.mend()


def _vacuum(snapshot: Snapshot, alone: bool) -> None:
    snapshot.vacuum(keep=timedelta(0), unknown=alone, dry_run=False)


def _until_done(work: Callable[[], object], seconds: float = 20.0) -> None:
    """Do what gives way to others' commits."""
    end = time.monotonic() + seconds
    while True:
        try:
            work()
        except CommitConflict:
            continue
        except TableError:
            if time.monotonic() > end:
                raise
            continue
        return
