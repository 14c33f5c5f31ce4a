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

import pyarrow as pa
from deltalake import DeltaTable

from evaluator.chunk import EvaluationParts, Range
from evaluator.commands.interventions import retry_unscored
from evaluator.dataset.conditions import parse_condition
from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.engines.local import LocalEngine
from evaluator.errors import ModelError
from evaluator.feedback import Assessment, Erased, Feedback, Reason, Scored, SourceType, Unscored, Usage
from evaluator.live.work import Parts
from evaluator.offline import evaluate
from evaluator.publish import publish
from evaluator.score import Active
from evaluator.shards import Shard
from evaluator.sinks import mlflow
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.sinks.cursor import LedgerCursorSink
from evaluator.tables.delta import DeltaStore
from evaluator.tables.forgetting import forget
from evaluator.tables.ledger import Ledger
from evaluator.tables.maintenance import maintain
from evaluator.tables.retention import expire
from evaluator.tables.rows import Key, Row
from evaluator.tables.schemas import ANNOTATIONS
from evaluator.tables.spans import SpansTable
from evaluator.tick import look, tick
from evaluator.traces.columns import SPANS
from evaluator.worker.upkeep import restate
from tests.faults.baton import GatedStore, Work, Worker, in_place
from tests.faults.mirror import Mirror, Violation, check, trace_of
from tests.traffic import NOON, append, span, spans_store, stamp, trace_id

SETTLE, MAX_WAIT, SESSION_IDLE = timedelta(seconds=30), timedelta(minutes=10), timedelta(minutes=2)
BUT_THE_FIRST = parse_condition("name NOT LIKE '%0'", SPANS)
PAID = Usage(model="stub", calls=1)
TRANSIENT, LASTING = Reason.UNAVAILABLE, Reason.REFUSED


@dataclass
class Place:
    """Where results are put as MLflow takes them: by an id, of which it keeps the first. `posts` counts."""

    held: dict[str, Assessment] = field(default_factory=dict)
    posts: int = 0

    def erase(self, erased: Sequence[Erased]) -> None:
        """Drop what is held of some traces and sessions."""
        for key, held in list(self.held.items()):
            if any(one.covers(held.target, held.revision) for one in erased):
                del self.held[key]
                self.posts -= 1


class MemoryPublisher:
    """Puts results into a place one by one; it may die or be refused between any two."""

    name = "memory"

    def __init__(self, place: Place, worker: Worker) -> None:
        self._place = place
        self._worker = worker

    def due(self) -> bool:
        return False

    def waiting(self) -> int:
        return 0

    def lost_since(self) -> None:
        return None

    def remember(self) -> None: ...

    async def publish(self, assessments: Sequence[Assessment]) -> None:
        for assessment in assessments:
            self._worker.at("post")
            if mlflow.assessment_id(assessment) not in self._place.held:
                self._place.held[mlflow.assessment_id(assessment)] = assessment
                self._place.posts += 1

    async def forget(self, erased: Sequence[Erased]) -> None:
        self._worker.at("erase")
        self._place.erase(erased)


def _span_ids(record: Record) -> frozenset[str]:
    return frozenset(step.span.span_id for step in record.trace.steps)


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
        shown = self.worker.notes.setdefault("shown", {})
        shown |= {self._key(record): _span_ids(record) for record in records}
        if self.name in self.world.broken and not self.world.calm:
            raise ModelError("the key is wrong")
        return [self._scored(record) for record in records]

    def _key(self, record: Record) -> Key:
        return Key(record.target.type, record.target.target_id, self.name, self.version)

    def _scored(self, record: Record) -> Scored:
        key, seen = self._key(record), _span_ids(record)
        if self.name in self.world.capped and not self.world.calm:
            return Scored(outcome=Unscored(reason=Reason.BUDGET, detail="spent"))
        calls = self.worker.notes.setdefault("calls", {})
        again = (
            calls.get(key) == seen and not self.world.rescore_late
        )  # late spans may have been found by time before
        raced = again and self.world.first_time_after_a_race(self.worker, record.trace.trace_id, key)
        check(not again or raced, f"11: {self.worker.name} paid twice for {key}")
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
        self.in_force = {"J": "v1", "K": "v1", "P": "v1", "S": "v1"}
        """P judges spans, S sessions."""
        self.since = timedelta(hours=30) if chance.random() < 0.6 else None
        """How far J, L and P catch up on the past when they are first seen."""
        self.rescore_late = chance.random() < 0.5
        self.names = "JKLPS"
        if chance.random() < 0.5:  # without a judge of sessions other things happen more often
            del self.in_force["S"]
            self.names = "JKLP"
        self.shared_out = chance.random() < 0.4
        """Whether the number of shards changes."""
        self.shard: Shard | None = None
        """The part that the next live worker does; None: any."""
        self.place = Place()
        self.start = "earliest" if chance.random() < 0.85 else "latest"
        self.spans = spans_store(folder)
        self.ledger = DeltaStore(str(folder / "ledger"))
        self.annotations = DeltaStore(str(folder / "annotations"))
        self.annotations.create(ANNOTATIONS)
        self._read_spans = -1
        self._births: dict[str, datetime] = {}
        self._spans_of: dict[str, int] = {}
        self._times: dict[tuple[str, str], datetime] = {}
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
            late = kind == "child" and trace_id(name) in self.mirror.decided and self.random.random() < 0.4
            if late:
                at += timedelta(days=3)  # more than a day from the rest: its days do not tell that it is late
            at = self._times.setdefault((name, f"{kind}{number}"), at)
            parent = None if kind == "root" else "root0"
            session = {} if int(name[1:]) % 4 == 3 else {"session.id": f"s{int(name[1:]) % 4}"}
            rows.append(
                span(name, f"{kind}{number}", parent=parent, at=at, **{"output.value": "Hello"}, **session)
            )
            if at - born > timedelta(days=2):
                self.mirror.far.add(rows[-1]["span_id"])
            self.mirror.ended[rows[-1]["span_id"]] = at + timedelta(seconds=1)
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
        match self.random.randint(0, 4):
            case 0:
                DeltaTable(store.uri).optimize.compact()
            case 1:
                DeltaTable(store.uri).create_checkpoint()
            case 2:
                self.clean(store)
            case 3:
                maintain("table", store, {}, now=self.now)
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
        name = self.random.choice(self.names)
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
        self.in_force[self.random.choice(self.names)] = self.random.choice(("v1", "v2", "v3"))

    # --- workers

    def live(self, worker: Worker) -> Work:
        """A turn of one shard's worker. One that finds the work shared out otherwise stops."""
        shard = self.shard or self.random.choice(self.mirror.shards)
        parts = Parts(
            spans=SpansTable(self._gated(self.spans, worker), self.clock),
            ledger=self._ledger(worker),
            active=self._active(worker),
            clock=self.clock,
            settle=SETTLE,
            max_wait=MAX_WAIT,
            session_idle=SESSION_IDLE,
            rescore_late=self.rescore_late,
            late_window=timedelta(days=10_000),
            start=self.start,
            shard=shard,
            stopping=lambda: worker.stopping,
        )
        worker.notes["shard"] = shard

        async def work(worker: Worker) -> object:
            worker.notes["cursor"] = self.mirror.cursor_of(shard)
            book = parts.ledger.open()
            if book.shards != shard.count or not look(parts, book).work:
                return None
            return await tick(parts, worker.name)

        return work

    def sharing(self, worker: Worker) -> Work:
        """The first turn of a worker that was started with another number of shards."""
        ledger, count = self._ledger(worker), self.random.choice((1, 2, 3))

        async def work(_: Worker) -> object:
            book = ledger.open()
            while book.shards != count:
                book.share_out(count, self.spans.open().table_id)
            return None

        return work

    def evaluation(self, worker: Worker, whole: bool = False) -> Work:
        """`whole`: from before all spans on, at whatever time; a session whose first turn lies before the range would
        be left out, and begin with its second turn once the first lies days before it."""
        if whole:
            start, end = NOON - timedelta(days=5), self.now + timedelta(days=2)
        else:
            start = self.now - timedelta(hours=self.random.randint(0, 50))
            end = start + timedelta(hours=self.random.randint(1, 40))
        parts = EvaluationParts(
            spans=SpansTable(self._gated(self.spans, worker), self.clock),
            ledger=self._ledger(worker),
            active=self._active(worker),
            clock=self.clock,
            settle=SETTLE,
            max_wait=MAX_WAIT,
        )
        worker.notes["cursor"] = max(self.mirror.content)
        return lambda worker: evaluate(parts, Range(start=start, end=end), worker.name, LocalEngine())

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

    def restating(self, worker: Worker) -> Work:
        ledger = self._ledger(worker)

        async def work(_: Worker) -> object:
            return restate(ledger, self.now - timedelta(hours=self.random.choice((0, 2, 24))))

        return work

    def expiring(self, worker: Worker) -> Work:
        ledger = self._ledger(worker)
        keep = timedelta(hours=self.random.choice((24, 48)))

        async def work(_: Worker) -> object:
            spans = SpansTable(self.spans, self.clock).open()
            return expire(ledger, keep, spans=spans, published=self.published(), now=self.now)

        return work

    def forgetting(self, worker: Worker) -> Work:
        ledger = self._ledger(worker)
        known = sorted(self._births) or ["t0"]

        async def work(_: Worker) -> object:
            return forget(ledger, [trace_id(self.random.choice(known))], [])

        return work

    def published(self) -> int:
        """The `seq` that both sinks have reached."""
        annotated = self.annotations.open().transaction(self.ledger_id) or 0
        return min(annotated, self.mirror.transactions.get("sink/memory", 0))

    # --- what was committed

    def observe_replacement(
        self, worker: Worker, where: str, data: pa.Table, transactions: Mapping[str, int]
    ) -> None:
        published = self.published()
        known = len(self.mirror.expired)
        self.mirror.replace(where, data, transactions)
        worker.notes["own commits"] = worker.notes.get("own commits", 0) + 1
        early = [row for row in self.mirror.expired[known:] if row.seq > published]
        check(not early, f"retention: took out before it was published: {early}")

    def observe(self, worker: Worker, data: pa.Table, transactions: Mapping[str, int]) -> None:
        """A commit of the ledger by a worker: the invariants, and what its results were made of."""
        rows = self.mirror.commit(data, transactions)
        worker.notes["own commits"] = worker.notes.get("own commits", 0) + 1
        done = {row.target_id for row in rows if row.scorer is None and row.state == "done"}
        shown = worker.notes.get("shown", {})
        committed = worker.notes.setdefault("committed", set())
        self._turns(worker, rows)
        for row in rows:
            key = row.key._replace(revision=0)
            committed.add(key)
            seen = shown.get(key)
            if seen is None or row.state == "replaced":
                continue
            trace = trace_of(row)
            needed = self.mirror.spans_upto(trace, worker.notes["cursor"])
            if worker.kind == "live" and trace not in done:
                needed = self.mirror.decided.get(trace, needed) - self.mirror.deleted
            if row.target_type == "SESSION":
                turns = self.mirror.turns[row.target_id] if row.target_id in done else ()
                needed = frozenset().union(*(self.mirror.decided.get(turn, ()) for turn in turns))
                needed -= self.mirror.deleted | self.mirror.out_of_scope()
            elif row.target_id in done:
                self.mirror.covered[row.target_id] = seen
            check(
                needed <= seen,
                f"whole: {row.key} ({row.state}) by {worker.name} saw {len(seen)} of its spans",
            )
        for target in done:
            if not any(row.target_id == target and row.key._replace(revision=0) in shown for row in rows):
                self.mirror.covered.pop(target, None)
            self.mirror.decided[target] = self.mirror.spans_upto(target, worker.notes.get("cursor", -1))
        if "shard" in worker.notes and any(app.startswith("live/") for app in transactions):
            worker.notes["cursor"] = self.mirror.cursor_of(worker.notes["shard"])

    def _turns(self, worker: Worker, rows: Sequence[Row]) -> None:
        """A decision on a turn says, in the same commit, that its session went on."""
        if worker.kind != "live" or not worker.notes["sessions"]:
            return
        went_on = {row.target_id for row in rows if row.goes_on}
        for row in rows:
            turn = row.target_type == "TRACE" and self.mirror.first_told(row) and row.session_id
            check(not turn or row.session_id in went_on, f"10: {row.key} and not a word of {row.session_id}")

    def first_time_after_a_race(self, worker: Worker, trace: str, key: Key) -> bool:
        """Whether somebody else decided a trace while a worker was at it, which may cost each call once more (11): a
        catch-up judges it anew if that decision was without the scorer."""
        touched = worker.notes.setdefault("touched", set())
        decisions = (row for row in self.mirror.latest.values() if row.target_id == trace and not row.scorer)
        others = [row for row in decisions if row.run_id != worker.name and row.seq > worker.notes["seq"]]
        first = key not in touched
        touched.add(key)
        return bool(others) and first

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
        worker.notes["sessions"] = "S" in self.in_force
        return [
            Active(
                scorer=Judge(self, worker, name, version, waits),
                rule=SelectionRule(
                    name=name,
                    sample_rate=0.5 if name == "L" else 1.0,
                    target={"S": "session", "P": "span"}.get(name, "trace"),  # type: ignore[arg-type]
                    span_filter=BUT_THE_FIRST if name == "P" else None,
                ),
                paused=name in self.paused and not self.calm,
                since=self.since if name in "JLP" else None,
            )
            for name, version in sorted(self.in_force.items())
        ]

    def _ledger(self, worker: Worker) -> Ledger:
        return Ledger(GatedStore(self.ledger.uri, worker, self.observe, self.observe_replacement), self.clock)

    def _gated(self, store: DeltaStore, worker: Worker) -> GatedStore:
        def nothing(*_: object) -> None: ...

        return GatedStore(store.uri, worker, nothing, nothing)

    def _note_spans(self, at: datetime | None = None) -> None:
        """Have the new commits happen at a time of ours, and note what they brought."""
        snapshot = self.spans.open()
        for version in range(self._read_spans + 1, snapshot.version + 1):
            stamp(Path(self.spans.uri) / "_delta_log" / f"{version:020d}.json", at or self.now)
            commit = snapshot.commit(version)
            assert commit is not None
            spans: dict[str, set[str]] = {}
            for file in commit.added:
                for row in snapshot.read_file(file, ("trace_id", "span_id")).to_pylist():
                    spans.setdefault(row["trace_id"], set()).add(row["span_id"])
            self.mirror.content[version] = {trace: frozenset(ids) for trace, ids in spans.items()}
        self._read_spans = snapshot.version


@contextmanager
def small_portions() -> Iterator[None]:
    """The code's portions made so small that a handful of traces crosses their edges."""
    with (
        patch("evaluator.live.work.CHUNK_TRACES", 2),
        patch("evaluator.live.work.CHUNK_TRACES_JUDGED", 1),
        patch("evaluator.chunk.PIECE_TRACES", 2),
        patch("evaluator.tables.reading.NAMED_CHARACTERS", 64),
        patch("evaluator.tables.spans.SPANS_A_BATCH", 4),
        patch("evaluator.tables.spans.TRACES_A_PORTION", 3),
        patch("evaluator.publish.COMMITS_AT_ONCE", 4),
        patch("evaluator.worker.upkeep.ROWS_A_COMMIT", 2),
        patch("evaluator.commands.interventions.ROWS_A_COMMIT", 2),
        patch("asyncio.to_thread", in_place),
    ):
        yield
