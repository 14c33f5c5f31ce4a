"""One random history: what happens in which order, who dies where, and what must hold when it is quiet."""

import json
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from evaluator.decisions import GONE, assessment_of
from evaluator.errors import TableError
from evaluator.notes import CatchUp, catch_ups
from evaluator.shards import Shard
from evaluator.sinks import mlflow
from evaluator.tables.annotations import annotation_id, erase
from evaluator.tables.rows import Key, Row, from_arrow, newest_of_each
from evaluator.tables.snapshot import CommitConflict
from evaluator.tables.spans import SpansTable
from evaluator.traces.assembly import assemble, gather
from tests.faults.baton import Killed, Worker
from tests.faults.mirror import check, trace_of
from tests.faults.world import World, small_portions

AT_ONCE = 2
KINDS = (
    "live", "live", "live", "live", "evaluation", "publishing", "posting", "retrying", "restating", "expiring",
    "forgetting",
)  # fmt: skip
ROUNDS = 25
LONGEST_RETRY = timedelta(hours=25)
JUMPS = (1, 10, 31, 40, 300, 700, 4_000, 25_000, -20)
"""By how many seconds the clock jumps."""
HAPPENS = (
    ("spans arrive", 0.42), ("the clock jumps", 0.62), ("edit", 0.78), ("OPTIMIZE", 0.84), ("DELETE", 0.88),
    ("clean the log", 0.92), ("maintain", 1.0),
)  # fmt: skip
"""What happens how often, as the share of all that it and those before it have."""
STOP = "told to stop"
FATES: Mapping[str | None, Callable[[], BaseException]] = {
    "kills": Killed,
    "lost replies": partial(CommitConflict, "the reply was lost"),
    "refusals": partial(TableError, "out of reach"),
}
"""What goes wrong for a worker where it stands, by the name under which it is counted."""


@dataclass
class Tally:
    """What a history, or many, came to."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[name]} {name}" for name in sorted(self.counts))


class History:
    """Runs one history from its seed. The same seed is the same history, step by step."""

    def __init__(self, folder: Path, seed: int, tally: Tally, *, race: bool) -> None:
        """`race`: nothing but two live workers, often of different versions, with many open results."""
        self.random = random.Random(seed)
        self.world = World(folder, self.random)
        self.world.failing = 0.5 if race else 0.25
        self.race = race
        self.tally = tally.counts
        self.trail: list[str] = []
        self.workers: list[Worker] = []
        self._started = 0
        self.happenings: Mapping[str, Callable[[], object]] = {
            "spans arrive": self.world.arrive,
            "the clock jumps": self._jump,
            "edit": self.world.edit,
            "OPTIMIZE": self.world.compact_spans,
            "DELETE": self.world.delete_spans,
            "clean the log": self.world.clean_spans_log,
            "maintain": self._maintain,
        }
        """What happens beside the workers, by name."""

    def run(self, steps: int) -> None:
        """Raises Violation, or what the code under test must not raise."""
        try:
            for _ in range(steps):
                self._step()
            self.rest()
        finally:
            self.end()
        self.tally["histories"] += 1
        self.tally["steps"] += steps
        self.tally["ledger commits"] += self.world.mirror.commits
        self.tally["calls"] += self.world.calls
        self.tally["traces forgotten"] += len(self.world.mirror.erased)
        self.tally["rows expired"] += len(self.world.mirror.expired)
        self.tally["traces"] += len({key.target_id for key in self.world.mirror.latest})

    def rest(self) -> None:
        """Let all that is underway end, all there is to do be done, and see that the law holds. Raises Violation."""
        for worker in list(self.workers):
            self._finish(worker)
        self._calm_down()
        self._quiet()

    def end(self) -> None:
        """Let no worker's thread outlive the history."""
        for worker in self.workers:
            worker.resume(Killed())
            while not worker.done:
                worker.resume(Killed())

    # --- one step

    def _step(self) -> None:
        chance = self.random.random()
        if self.workers and chance < 0.72:
            self._go_on(self._whose_turn())
        elif len(self.workers) < AT_ONCE and chance < 0.86:
            kind = "live" if self.race else self.random.choice(KINDS)
            if self.world.shared_out and self.random.random() < 0.06:
                kind = "sharing"
            self.begin(kind)
            if self.random.random() < 0.5 and len(self.workers) < AT_ONCE:
                self.begin_beside()
        else:
            self.happen(self._what_happens())

    def _whose_turn(self) -> Worker:
        """Any; where a commit is made and not yet read, rather another, who may commit in between."""
        worker = self.random.choice(self.workers)
        others = [other for other in self.workers if other is not worker]
        between = worker.step == "reread" and others and self.random.random() < 0.7
        return self.random.choice(others) if between else worker

    def begin(self, kind: str) -> Worker:
        """Start a worker; one that removes what is old comes after all is published."""
        if kind == "expiring":  # of what nobody has published there is nothing to remove
            self._alone("publishing")
            self._alone("posting")
        return self._start(kind)

    def begin_beside(self) -> None:
        """Start a live worker beside another; in a race, of another version."""
        if self.race:
            self._note("a new version", self.world.edit_version)
        self._start("live")

    def _start(self, kind: str) -> Worker:
        self._started += 1
        worker = Worker(f"{kind}-{self._started}", kind, lambda worker: worker.notes["work"](worker))
        worker.notes["work"] = getattr(self.world, kind)(worker)
        worker.notes["disturbances"] = self.world.disturbances
        worker.notes["commits"] = self.world.mirror.commits
        worker.notes["seq"] = self.world.mirror.transactions.get("seq", 0)
        self.workers.append(worker)
        self.tally["workers"] += 1
        return worker

    def _go_on(self, worker: Worker) -> None:
        """A worker takes some steps, the last of which may go wrong."""
        for _ in range(self.random.choice((1, 1, 2, 3, 5))):
            if self.go_on(worker, self._fate(worker)):
                return

    def go_on(self, worker: Worker, fate: str | None = None) -> bool:
        """A worker takes a step, or meets its fate there (one that cannot be at this step is none); whether it ended."""
        if fate == STOP:
            worker.stopping = True
        error = FATES[fate]() if fate in fates_at(worker.step) else None
        if error is not None:
            self.tally[f"{fate}"] += 1
        self.trail.append(f"{worker.name} at {worker.step}{'' if error is None else f': {error!r}'}")
        worker.resume(error)
        if worker.done:
            self.workers.remove(worker)
            self.tally["conflicts"] += worker.conflicts
            self.world.judge_end(worker)
        return worker.done

    def _fate(self, worker: Worker) -> str | None:
        chance = self.random.random()
        if chance < 0.015:
            return "kills"
        if chance < 0.05 and worker.step == "appended":
            return "lost replies"
        if chance < 0.025:
            return "refusals"
        return STOP if chance > 0.99 else None

    def _what_happens(self) -> str:
        chance = self.random.random()
        return next(name for name, upto in HAPPENS if chance < upto)

    def happen(self, what: str) -> None:
        """One of the happenings."""
        self._note(what, self.happenings[what])

    def _jump(self) -> None:
        by = timedelta(seconds=self.random.choice(JUMPS))
        self.world.now += by
        self.trail.append(f"by {by}")

    def _maintain(self) -> None:
        self.world.maintain(self.random.choice((self.world.ledger, self.world.annotations)))

    def _note(self, what: str, happening: Callable[[], object]) -> None:
        self.trail.append(what)
        self.tally[what] += 1
        happening()

    # --- when it is quiet

    def _finish(self, worker: Worker) -> None:
        while not worker.done:
            worker.resume()
        self.workers.remove(worker)
        self.world.judge_end(worker)

    def _alone(self, kind: str) -> Worker:
        worker = self._start(kind)
        self._finish(worker)
        if worker.error is not None:
            raise worker.error
        return worker

    def _calm_down(self) -> None:
        """Let the code do all there is to do, with nothing in its way."""
        world = self.world
        world.calm = True
        self.trail.append("calm")
        for _ in range(ROUNDS):
            world.now += LONGEST_RETRY
            before = world.mirror.commits
            for shard in world.mirror.shards:
                world.shard = shard
                self._alone("live")
            world.shard = None
            if world.mirror.commits == before:
                break
        check(world.mirror.commits == before, "7: never quiet")
        self._alone("publishing")
        self._alone("posting")
        self._sweep()

    def _sweep(self) -> None:
        """As upkeep does: a killed publisher may have posted late what is forgotten."""
        erased = [row.erased for row in self.world.mirror.latest.values() if row.forgotten]
        self.world.place.erase(erased)
        erase(self.world.annotations, erased)

    def _again(self) -> None:
        """What was given up is put up again, and the whole past is evaluated; then all there is to do."""
        self._alone("retrying")
        worker = self._start("evaluation")
        worker.notes["work"] = self.world.evaluation(worker, whole=True)
        self._finish(worker)
        self._calm_down()

    def _quiet(self) -> None:
        """The invariants of a quiet ledger; then, once all is scored, that nothing changes what stands in it."""
        world = self.world
        self._hold()
        self._the_past_is_caught_up()
        if self.random.random() < 0.5:
            self._alone("expiring")
            self._hold()
        self._again()
        self._alone("restating")
        before = dict(world.mirror.latest)
        for store in (world.ledger, world.annotations):
            for _ in range(2):
                world.maintain(store)
        world.compact_spans()
        world.clean_spans_log()
        self._again()
        for key, row in world.mirror.latest.items():
            old = before.get(key)
            same = old is not None and (old.state, old.value) == (row.state, row.value)
            of_it = {trace_of(row), *world.mirror.turns[row.session_id or ""]}
            # A span days from the rest of its trace is read with it or not, as it lies in a file with others or not.
            stray = row.target_type == "SPAN" and row.span_id in world.mirror.far
            found = stray and (old is None or old.error == GONE)
            anew = found or (old is None and bool(of_it & world.mirror.began_anew()))
            # With `start: latest` a trace was decided without its spans from before, and of a deleted one a span days away
            # may be left: read anew, it has other spans.
            other = world.start == "latest" or bool(of_it & world.mirror.forgotten)
            grown = old is None and row.revision > 0 and world.rescore_late and other
            # And put up again, it is found by that span, once it lies in a file with others.
            left = bool(of_it & world.mirror.forgotten & world.mirror.with_far_spans())
            check(
                same or anew or grown or left, f"12: what changes nothing changed {key} from {old} to {row}"
            )
        self._hold()

    def _hold(self) -> None:
        self._all_is_decided()
        self._all_is_published()
        self._the_mirror_is_true()

    def _all_is_decided(self) -> None:
        mirror = self.world.mirror
        check(mirror.cursor >= max(mirror.content), "7: commits were never read")
        ends: dict[tuple[str, str], set[str]] = {}
        for key, row in mirror.latest.items():
            check(row.due is None, f"7: open for ever: {row}")
            if row.scorer is not None:
                ends.setdefault((key.target_id, row.scorer), set()).add(row.state)
            else:
                check(row.state == "done", f"7: undecided: {row}")
        # A newer revision lies in an earlier day, and is taken out before it, where an earlier span or trace came late.
        for row in mirror.expired:
            if row.scorer is not None:
                ends.setdefault((row.target_id, row.scorer), set()).add(row.state)
        for (target, name), states in ends.items():
            gone = target.partition(":")[0] in mirror.forgotten
            if name in self.world.in_force and name not in self.world.removed and not gone and name != "L":
                check(states != {"replaced"}, f"8: {name} of {target} was replaced, and by nothing")
        for key, row in mirror.latest.items():
            if key.target_type in ("TRACE", "SESSION") and row.scorer is None:
                self._every_scorer(row)
        expired = {row.target_id for row in mirror.expired if row.target_type == "SESSION"}
        for row in newest_of_each("SESSION", mirror.latest).values():
            if not row.forgotten and row.target_id not in expired:
                mirror.covers(row)
        if self.world.rescore_late:
            self._nothing_came_too_late()

    def _nothing_came_too_late(self) -> None:
        mirror = self.world.mirror
        for trace_id, seen in mirror.covered.items():
            done = mirror.latest.get(Key("TRACE", trace_id))
            if done is None or done.forgotten or trace_id in mirror.began_anew() | mirror.forgotten:
                continue
            late = mirror.spans_upto(trace_id, mirror.cursor) - seen
            check(not late, f"late: {len(late)} spans of {trace_id} were never judged")

    def _the_past_is_caught_up(self) -> None:
        """Each judge with `since` has a word on every trace that began in its range, or left it to live."""
        world, mirror = self.world, self.world.mirror
        notes = {key.target_id: row for key, row in mirror.latest.items() if key.target_type == "CONTROL"}
        known = {(one.scorer, one.version): one for one in catch_ups(notes, mirror.shards)}
        found = gather(SpansTable(world.spans, world.clock).open().around(None, None))
        began = {one: assemble(one, found[one].spans, incomplete=False).start_time for one in found}
        decided = newest_of_each("TRACE", mirror.latest)
        for name, version in world.in_force.items():
            if world.since is None or name not in "JP":
                continue
            past = known.get((name, version))
            check(past is not None and past.done, f"since: {name}@{version} has not caught up: {past}")
            expired = {trace_of(row) for row in mirror.expired}
            for trace_id in began.keys() - mirror.forgotten - mirror.erased - expired:
                start, spans = began[trace_id], {one.span_id for one in found[trace_id].spans}
                done = decided.get(trace_id)
                ours = done is not None and json.loads(done.set or "{}").get(name) == version
                far = spans & mirror.far
                if past is None or start is None or ours or far or not past.start <= start < past.end:
                    continue
                # What came, or was decided, after the past was looked through is live's.
                if done is None or done.seq > _looked_through(notes, past, trace_id):
                    continue
                seen = [
                    row
                    for row in mirror.latest.values()
                    if (trace_of(row), row.scorer, row.version) == (trace_id, name, version)
                ]
                # A span that came late may have been there when the past was looked through, or not.
                sure = (
                    one for one in found[trace_id].spans if one.span_id in mirror.decided.get(trace_id, ())
                )
                some = name != "P" or any(not one.name.endswith("0") for one in sure)
                check(bool(seen) or not some, f"since: {name}@{version} has nothing on {trace_id}")

    def _every_scorer(self, row: Row) -> None:
        mirror = self.world.mirror
        for name, version in json.loads(row.set or "{}").items():
            key = Key(row.target_type, row.target_id, name, version)
            # It may lie on another day than the decision, and have gone with that.
            expired = [
                old for old in mirror.expired if (trace_of(old), *old.key[2:4]) == (key.target_id, *key[2:4])
            ]
            told = mirror.results(row, name, version) or expired
            skipped = name in json.loads(row.skipped or "{}")
            check(skipped or bool(told), f"7: {row.target_id} has nothing by {name}@{version}")

    def _all_is_published(self) -> None:
        rows = self.world.annotations.open().query("select * from t").to_pylist()
        twice = Counter((row["annotation_id"], row["updated_at"]) for row in rows).most_common(1)
        check(not twice or twice[0][1] == 1, f"9: an annotation twice: {twice}")
        newest: dict[str, dict[str, object]] = {}
        for row in sorted(rows, key=lambda row: row["updated_at"]):
            newest[row["annotation_id"]] = row
        erased = self.world.mirror.erased & {row["target_id"] for row in rows}
        check(not erased, f"forgotten: annotations of {erased}")
        past = [*self.world.mirror.expired, *self.world.mirror.rows]
        told = [assessment for assessment in map(assessment_of, past) if assessment]
        ever = {annotation_id(one.target, one.name, one.version) for one in told}
        check(newest.keys() <= ever, "9: an annotation of what is no result")
        stand: dict[str, Row] = {}  # of several revisions the one that was told last
        for row in sorted(newest_of_all(past), key=lambda row: row.seq):
            if key := published_as(row):
                stand[key] = row
        for key, row in stand.items():
            assessment = assessment_of(row)
            assert assessment is not None
            known = newest.get(key)
            check(known is not None, f"9: never published: {row.key}")
            assert known is not None
            same = known["value"] == row.value and known["updated_at"] == row.at
            # A newer revision's end that was put up again and then replaced was told, or came and went between two looks.
            later = {(one.value, one.at) for one in past if one.seq > row.seq and published_as(one) == key}
            same = same or (known["value"], known["updated_at"]) in later
            check(same, f"9: outdated: {row.key}")
            check(mlflow.assessment_id(assessment) in self.world.place.held, f"9: never posted: {row.key}")
        place = self.world.place
        ids = {mlflow.assessment_id(one) for one in told}
        check(place.held.keys() <= ids, "9: posted what is no result")
        check(place.posts == len(place.held), "9: posted twice")

    def _the_mirror_is_true(self) -> None:
        snapshot = self.world.ledger.open()
        stored = Counter(
            (row.key, row.seq, row.state, row.at) for row in from_arrow(snapshot.query("select * from t"))
        )
        mirrored = Counter((row.key, row.seq, row.state, row.at) for row in self.world.mirror.rows)
        check(stored == mirrored, "3: the ledger holds other rows than were committed")
        for app_id, value in self.world.mirror.transactions.items():
            check(snapshot.transaction(app_id) == value, f"5: {app_id} is {snapshot.transaction(app_id)}")


def fates_at(step: str) -> tuple[str, ...]:
    """The fates that a worker may meet at a step."""
    return {
        "open": ("kills", "refusals"),
        "append": ("kills", "refusals"),
        "appended": ("kills", "lost replies", "refusals"),
    }.get(step, ("kills",))


def newest_of_all(rows: Iterable[Row]) -> Iterable[Row]:
    """The newest row of each key: what was put up again before anybody told of it was never the last word."""
    return {row.key: row for row in sorted(rows, key=lambda row: row.seq)}.values()


def published_as(row: Row) -> str | None:
    """The annotation that a row is published as, if it is."""
    told = assessment_of(row)
    return annotation_id(told.target, told.name, told.version) if told else None


@contextmanager
def silence() -> Iterator[None]:
    """Without the warnings that a thousand harmed workers would log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _looked_through(notes: Mapping[str, Row], past: CatchUp, trace_id: str) -> int:
    """The `seq` by which a trace's part of a past was looked through, by a shard of whatever number."""
    prefix = f"since/{past.scorer}/{past.version}/"
    return min(
        row.seq
        for name, row in notes.items()
        if name.startswith(prefix)
        and row.upto == past.end
        and Shard(*map(int, name.removeprefix(prefix).split("of"))).holds(trace_id)
    )


def run_history(seed: int, steps: int, tally: Tally, *, race: bool | None = None) -> None:
    """One history in a folder of its own; every other seed is a race. Raises what it found wrong, with the seed and the way there."""
    race = seed % 2 == 1 if race is None else race
    with tempfile.TemporaryDirectory() as folder, small_portions(), silence():
        history = History(Path(folder), seed, tally, race=race)
        try:
            history.run(steps)
        except Exception as error:
            error.add_note(f"seed {seed}, {steps} steps, race {race}: " + "; ".join(history.trail[-40:]))
            raise
