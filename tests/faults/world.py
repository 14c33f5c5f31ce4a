"""Real tables in a folder, what happens to them, and everything that a history's workers work with."""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import orjson
import pyarrow as pa
from deltalake import DeltaTable

from evaluator.commands.interventions import retry_unscored
from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import ModelError
from evaluator.feedback import Assessment, Feedback, Reason, Scored, SourceType, Unscored, Usage
from evaluator.offline import EvaluationParts, Range, evaluate
from evaluator.publish import publish
from evaluator.score import Active
from evaluator.sinks import mlflow
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.sinks.cursor import LedgerCursorSink
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Ledger
from evaluator.tables.rows import Key
from evaluator.tables.schemas import ANNOTATIONS
from evaluator.tables.spans import SpansTable
from evaluator.tick import Parts, has_work, tick
from tests.faults.baton import GatedStore, Work, Worker, in_place
from tests.faults.mirror import Mirror, Violation, check
from tests.traffic import NOON, append, span, spans_store, trace_id

SETTLE, MAX_WAIT = timedelta(seconds=30), timedelta(minutes=10)
PAID = Usage(model="stub", calls=1)
TRANSIENT, LASTING = Reason.UNAVAILABLE, Reason.REFUSED


@dataclass
class Place:
    """Where results are put as MLflow takes them: by an id, of which it keeps the first. `posts` counts."""

    held: dict[str, Assessment] = field(default_factory=dict)
    posts: int = 0


class MemoryPublisher:
    """Puts results into a place one by one; it may die or be refused between any two."""

    name = "memory"

    def __init__(self, place: Place, worker: Worker) -> None:
        self._place = place
        self._worker = worker

    def due(self) -> bool:
        return False

    async def publish(self, assessments: Sequence[Assessment]) -> None:
        for assessment in assessments:
            self._worker.at("post")
            if mlflow.assessment_id(assessment) not in self._place.held:
                self._place.held[mlflow.assessment_id(assessment)] = assessment
                self._place.posts += 1


@dataclass
class Judge:
    """A scorer whose answers the history decides. It remembers what it was shown, for its worker."""

    world: "World"
    worker: Worker
    name: str
    version: str
    waits: bool
    source_type: SourceType = "CODE"

    @property
    def definition(self) -> Mapping[str, Any]:
        return {"kind": "fault"}

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        for _ in range(self.world.random.choice((0, 1, 4))):
            await asyncio.sleep(0)
        self.worker.at("call")
        if self.name in self.world.broken and not self.world.calm:
            raise ModelError("the key is wrong")
        return [self._scored(record) for record in records]

    def _scored(self, record: Record) -> Scored:
        trace = record.trace
        key = Key("TRACE", trace.trace_id, self.name, self.version)
        seen = frozenset(step.span.span_id for step in trace.steps)
        if self.name in self.world.capped and not self.world.calm:
            self.worker.notes.setdefault("free", {})[key] = seen
            return Scored(outcome=Unscored(reason=Reason.BUDGET, detail="spent"))
        calls = self.worker.notes.setdefault("calls", {})
        check(key not in calls, f"11: {self.worker.name} paid twice for {key}")
        calls[key] = seen
        self.world.calls += 1
        chance = 1.0 if self.world.calm else self.world.random.random()
        if chance < self.world.failing:
            reason = LASTING if chance < 0.08 else TRANSIENT
            return Scored(outcome=Unscored(reason=reason, detail="as the history has it"), usage=PAID)
        return Scored(outcome=Feedback(value=len(seen), passed=True, rationale=""), usage=PAID)


class World:
    """Everything outside the code under test, and the mirror that judges what the code commits."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.random = chance
        self.now = NOON
        self.calm = False
        self.calls = 0
        self.failing = 0.25
        """The share of calls that fail."""
        self.disturbances = 0
        """How often files were taken away under whoever was reading."""
        self.capped: set[str] = set()
        self.paused: set[str] = set()
        self.broken: set[str] = set()
        self.removed: set[str] = set()
        self.in_force = {"J": "v1", "K": "v1"}
        self.place = Place()
        self.start = "earliest" if chance.random() < 0.85 else "latest"
        self.spans = spans_store(folder)
        self.ledger = DeltaStore(str(folder / "ledger"))
        self.annotations = DeltaStore(str(folder / "annotations"))
        self.annotations.create(ANNOTATIONS)
        self._read_spans = -1
        self._births: dict[str, datetime] = {}
        self._spans_of: dict[str, int] = {}
        self.mirror = Mirror(self.spans.open().table_id)
        self._note_spans()
        Ledger(self.ledger, self.clock).provision()
        seed = self.ledger.open()
        self.ledger_id = seed.table_id
        known = {app: seed.transaction(app) for app in ("seq", "at", "open", "layout")}
        self.mirror.commit(seed.query("select * from t"), {k: v for k, v in known.items() if v is not None})
        self.annotation_seqs = 0

    def clock(self) -> datetime:
        return self.now

    # --- what happens to the spans table

    def arrive(self) -> None:
        """One commit of an ingest: new traces, further spans of known ones, the same again, a second root."""
        rows = []
        for _ in range(self.random.randint(1, 3)):
            name = f"t{self.random.randint(0, 4 + len(self._births))}"
            born = self._births.setdefault(
                name, self.now - timedelta(hours=self.random.choice((0, 0, 9, 20, 40)))
            )
            number = self._spans_of.get(name, 0)
            fate = self.random.random()
            if fate < 0.15 and number:
                number -= 1  # the same span once more
            else:
                self._spans_of[name] = number + 1
            kind = "root" if fate > 0.5 or (number == 0 and fate > 0.4) else "child"
            at = born + timedelta(seconds=self.random.randint(0, 5000))
            if self.start == "latest":  # what ends after the start may be seen or not, and need not be either
                at = min(at, self.now - timedelta(seconds=2))
            parent = None if kind == "root" else "root0"
            rows.append(span(name, f"{kind}{number}", parent=parent, at=at, **{"output.value": "Hello"}))
            ended = at + timedelta(seconds=1)
            earlier = self.mirror.ended.setdefault(rows[-1]["span_id"], ended)
            self.mirror.ended[rows[-1]["span_id"]] = min(ended, earlier)
        append(self.spans, rows)
        skew = self.random.choice((0, 0, 0, -5, -40, 5))
        self._note_spans(self.now + timedelta(seconds=skew))

    def compact_spans(self) -> None:
        DeltaTable(self.spans.uri).optimize.compact()
        if self.random.random() < 0.6:
            self.vacuum(self.spans)
        self._note_spans()

    def delete_spans(self) -> None:
        """A DELETE: of one trace, which rewrites its files with all the others in them, or of nothing."""
        name = (
            self.random.choice(sorted(self._births)) if self._births and self.random.random() < 0.6 else "x"
        )
        gone = trace_id(name)
        deleted = DeltaTable(self.spans.uri).delete(f"trace_id = '{gone}'")
        if deleted["num_deleted_rows"]:
            for spans in self.mirror.content.values():
                self.mirror.deleted |= spans.get(gone, frozenset())
            self.mirror.forgotten.add(gone)
        self._note_spans()

    def clean_spans_log(self) -> None:
        """The log without what a checkpoint has."""
        table = DeltaTable(self.spans.uri)
        table.create_checkpoint()
        for file in (Path(self.spans.uri) / "_delta_log").glob("*.json"):
            if file.stem.isdigit() and int(file.stem) < table.version():
                file.unlink()
        self.disturbances += 1

    # --- what is done to our own tables

    def maintain(self, store: DeltaStore) -> None:
        """Any of compaction, checkpoint, log clean-up and vacuum, unguarded."""
        match self.random.randint(0, 3):
            case 0:
                DeltaTable(store.uri).optimize.compact()
            case 1:
                DeltaTable(store.uri).create_checkpoint()
            case 2:
                self.clean(store)
            case _:
                self.vacuum(store)

    def clean(self, store: DeltaStore) -> None:
        table = DeltaTable(store.uri)
        table.create_checkpoint()
        table.cleanup_metadata()

    def vacuum(self, store: DeltaStore) -> None:
        DeltaTable(store.uri).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
        self.disturbances += 1

    # --- what operators do

    def edit(self) -> None:
        """A judge is edited, set back to what it was, removed, added, misconfigured, capped or paused, or no longer."""
        name = self.random.choice("JKL")
        match self.random.randint(0, 6):
            case 0 | 1:
                self.edit_version()
            case 2 if len(self.in_force) > 1 and name in self.in_force:
                del self.in_force[name]
                self.removed.add(name)
            case 3 | 4:
                self.capped ^= {name}
            case 5:
                self.broken ^= {name}
            case _:
                self.paused ^= {name}

    def edit_version(self) -> None:
        self.in_force[self.random.choice("JKL")] = self.random.choice(("v1", "v2", "v3"))

    # --- workers

    def live(self, worker: Worker) -> Work:
        parts = Parts(
            spans=SpansTable(self._gated(self.spans, worker), self.clock),
            ledger=self._ledger(worker),
            active=self._active(worker),
            clock=self.clock,
            settle=SETTLE,
            max_wait=MAX_WAIT,
            start=self.start,
            stopping=lambda: worker.stopping,
        )

        async def work(worker: Worker) -> object:
            worker.notes["cursor"] = self.mirror.cursor
            return await tick(parts, worker.name) if has_work(parts) else None

        return work

    def evaluation(self, worker: Worker, whole: bool = False) -> Work:
        start = self.now - timedelta(hours=100 if whole else self.random.randint(0, 50))
        end = self.now + timedelta(days=2) if whole else start + timedelta(hours=self.random.randint(1, 40))
        parts = EvaluationParts(
            spans=SpansTable(self._gated(self.spans, worker), self.clock),
            ledger=self._ledger(worker),
            active=self._active(worker),
            clock=self.clock,
            settle=SETTLE,
            max_wait=MAX_WAIT,
        )
        worker.notes["cursor"] = max(self.mirror.content)
        return lambda worker: evaluate(parts, Range(start=start, end=end), worker.name)

    def publishing(self, worker: Worker) -> Work:
        ledger = self._ledger(worker)
        sink = AnnotationsSink(self._gated(self.annotations, worker), self.ledger_id)
        return lambda _: publish(ledger, [sink])

    def posting(self, worker: Worker) -> Work:
        ledger = self._ledger(worker)
        return lambda _: publish(ledger, [LedgerCursorSink(MemoryPublisher(self.place, worker), ledger.open)])

    def retrying(self, worker: Worker) -> Work:
        tables = SimpleNamespace(ledger=self._ledger(worker))

        async def work(worker: Worker) -> object:
            with (
                patch("evaluator.commands.interventions.build_tables", lambda _: tables),
                patch("evaluator.commands.interventions.utc_now", self.clock),
            ):
                return retry_unscored(None, None, None)  # type: ignore[arg-type]  # only its tables are used

        return work

    # --- what was committed

    def observe(self, worker: Worker, data: pa.Table, transactions: Mapping[str, int]) -> None:
        """A commit of the ledger by a worker: the invariants, and what its results were made of."""
        rows = self.mirror.commit(data, transactions)
        worker.notes["own commits"] = worker.notes.get("own commits", 0) + 1
        done = {row.target_id for row in rows if row.scorer is None and row.state == "done"}
        shown = {**worker.notes.get("calls", {}), **worker.notes.get("free", {})}
        committed = worker.notes.setdefault("committed", set())
        for row in rows:
            committed.add(row.key)
            seen = shown.get(row.key)
            if seen is None or row.state == "replaced":
                continue
            needed = self.mirror.spans_upto(row.target_id, worker.notes["cursor"])
            if worker.kind == "live" and row.target_id not in done:
                needed = self.mirror.decided.get(row.target_id, needed) - self.mirror.deleted
            check(
                needed <= seen,
                f"whole: {row.key} ({row.state}) by {worker.name} saw {len(seen)} of its spans",
            )
        for target in done:
            self.mirror.decided[target] = self.mirror.spans_upto(target, worker.notes.get("cursor", -1))
        if any(app.startswith("live/") for app in transactions):
            worker.notes["cursor"] = self.mirror.cursor

    def judge_end(self, worker: Worker) -> None:
        """Whether a worker may have ended as it did, and whether what it paid for was kept (11)."""
        if isinstance(worker.error, Violation):
            raise worker.error
        undisturbed = worker.notes["disturbances"] == self.disturbances
        if worker.error is not None and not worker.harmed and undisturbed:
            raise worker.error
        own = worker.notes.get("own commits", 0)
        alone = self.mirror.commits == worker.notes["commits"] + own
        if worker.error is None and not worker.harmed and alone and worker.kind == "live":
            lost = worker.notes.get("calls", {}).keys() - worker.notes.get("committed", set())
            check(not lost, f"11: {worker.name} paid for {len(lost)} results that it did not keep: {lost}")

    # --- inside

    def _active(self, worker: Worker) -> list[Active]:
        waits = self.random.random() < 0.3
        return [
            Active(
                scorer=Judge(self, worker, name, version, waits),
                rule=SelectionRule(name=name, sample_rate=0.5 if name == "L" else 1.0),
                paused=name in self.paused and not self.calm,
            )
            for name, version in sorted(self.in_force.items())
        ]

    def _ledger(self, worker: Worker) -> Ledger:
        return Ledger(GatedStore(self.ledger.uri, worker, self.observe), self.clock)

    def _gated(self, store: DeltaStore, worker: Worker) -> GatedStore:
        def nothing(*_: object) -> None: ...

        return GatedStore(store.uri, worker, nothing)

    def _note_spans(self, at: datetime | None = None) -> None:
        """Have the new commits happen at a time of ours, and note what they brought."""
        snapshot = self.spans.open()
        for version in range(self._read_spans + 1, snapshot.version + 1):
            _stamp(Path(self.spans.uri) / "_delta_log" / f"{version:020d}.json", at or self.now)
            commit = snapshot.commit(version)
            assert commit is not None
            spans: dict[str, set[str]] = {}
            for file in commit.added:
                for row in snapshot.read_file(file, ("trace_id", "span_id")).to_pylist():
                    spans.setdefault(row["trace_id"], set()).add(row["span_id"])
            self.mirror.content[version] = {trace: frozenset(ids) for trace, ids in spans.items()}
        self._read_spans = snapshot.version


def _stamp(file: Path, at: datetime) -> None:
    moment = int(at.timestamp() * 1000)
    actions = [orjson.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
    for action in actions:
        if "commitInfo" in action:
            action["commitInfo"]["timestamp"] = moment
        if "add" in action:
            action["add"]["modificationTime"] = moment
    file.write_bytes(b"\n".join(map(orjson.dumps, actions)))


@contextmanager
def small_portions() -> Iterator[None]:
    """The code's portions made so small that a handful of traces crosses their edges."""
    with (
        patch("evaluator.tick.CHUNK_TRACES", 2),
        patch("evaluator.tick.CHUNK_TRACES_JUDGED", 1),
        patch("evaluator.offline.CHUNK_TRACES", 2),
        patch("evaluator.tables.spans.SPANS_A_BATCH", 4),
        patch("evaluator.tables.spans.TRACES_A_PORTION", 3),
        patch("evaluator.publish.COMMITS_AT_ONCE", 4),
        patch("evaluator.commands.interventions.ROWS_A_COMMIT", 2),
        patch("asyncio.to_thread", in_place),
    ):
        yield
