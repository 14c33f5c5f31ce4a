"""The past that a new judge catches up on (`since`): a finite range, oldest first, once the live work is done."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import orjson

from evaluator.dataset.selection import select
from evaluator.decisions import days_around, newest_revisions, result_key
from evaluator.feedback import Scored, Unscored
from evaluator.live.work import Parts, Work, without_strays
from evaluator.notes import CatchUp, begun_unit, catch_ups, reached_unit
from evaluator.portions import portions
from evaluator.score import Active, Assignment
from evaluator.tables.rows import Row, Unit, newest_of_each
from evaluator.traces.assembly import Pending, Ready, assemble, gather, has_ended_root, readiness
from evaluator.traces.trace import Trace

SINCE = "since"
"""The scope of its results."""
WINDOW = timedelta(days=1)
"""How much of a range is looked through at once."""
NOT_WHOLE = "not whole yet"

Window = tuple[datetime, datetime]


def has_past(parts: Parts, notes: Mapping[str, Row]) -> bool:
    """Whether some judge in force has a past that it has not caught up on."""
    known = {(one.scorer, one.version): one for one in catch_ups(notes, [parts.shard])}
    for active in with_since(parts):
        one = known.get((active.scorer.name, active.scorer.version))
        if one is None or not (one.done or active.paused):
            return True
    return False


def with_since(parts: Parts) -> list[Active]:
    """The scorers in force that are to catch up on the past."""
    return [active for active in parts.active if active.since is not None and active.rule.target != "session"]


@dataclass(slots=True, kw_only=True)
class _Scope:
    """A judge and its past: `upto` is how far it was looked through, `noted` what the ledger knows of that."""

    active: Active
    past: CatchUp
    upto: datetime
    noted: datetime

    @property
    def left(self) -> Window:
        return self.upto, self.past.end


class Past:
    """What a tick does for the judges that have a past to catch up on.

    A range is fixed when its judge is first seen, and how far it was looked through is committed behind its results:
    who is killed reads a little of it again. What live decides with the same version is left to it, and what is open
    afterwards, too. Nothing is written of what the budget holds back, or a provider that is down: the past waits, and
    the backlog stays that of live.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._parts = work.parts
        self._judges = with_since(work.parts)
        self._scopes: list[_Scope] = []
        self._aside: set[str] = set()
        """The judges whose past waits for the next tick, while those of others go on."""
        self._held: Counter[str] = Counter()

    async def begin(self) -> None:
        """Fix the range of each judge that is new: from as long ago as it says until now."""
        if self._judges:
            await self._work.in_thread(self._begin)

    async def go_on(self) -> None:
        """Look further through the ranges for as long as a tick may, once live has read all there is."""
        work = self._work
        if not self._judges or work.left_out or work.stopping:
            return
        until = self._parts.clock() + self._parts.past_for
        await work.in_thread(self._look)
        while (together := self._furthest_behind()) and self._may_go_on(until):
            await self._through_a_window(together, until)
        await work.in_thread(self._commit, [])
        if self._held:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(self._held.items()))
            work.summary.notes.append(
                f"catching up on the past waits ({reasons}): the next tick goes on with it"
            )

    def _begin(self) -> None:
        known = {(one.scorer, one.version) for one in catch_ups(self._work.book.notes())}
        now = self._work.began
        units = [
            begun_unit(active.scorer.name, active.scorer.version, now - active.since, now)
            for active in self._judges
            if active.since is not None and (active.scorer.name, active.scorer.version) not in known
        ]
        if units:
            self._work.write(units)

    def _look(self) -> None:
        judges = {(active.scorer.name, active.scorer.version): active for active in self._judges}
        for one in catch_ups(self._work.book.notes(), [self._parts.shard]):
            active = judges.get((one.scorer, one.version))
            if active is not None and not active.paused:
                self._scopes.append(_Scope(active=active, past=one, upto=one.upto, noted=one.upto))

    # --- one window after the other

    def _furthest_behind(self) -> list[_Scope]:
        """Who has come least far; who stands at the same point with as much left goes on with it, in the same calls."""
        open_ones = [
            scope
            for scope in self._scopes
            if scope.upto < scope.past.end and scope.past.scorer not in self._aside
        ]
        first = min((scope.left for scope in open_ones), default=None)
        return [scope for scope in open_ones if scope.left == first]

    def _may_go_on(self, until: datetime) -> bool:
        return not self._work.stopping and self._parts.clock() < until

    async def _through_a_window(self, scopes: Sequence[_Scope], until: datetime) -> None:
        """Look through the next part of a range, as far as there is time, or set aside whom something holds back."""
        work = self._work
        begin, end = scopes[0].left
        window = begin, min(begin + WINDOW, end)
        found = await work.in_thread(lambda: list(work.spans.ids_between(*window)))
        for ids, around in found:
            mine = [trace_id for trace_id in ids if self._parts.shard.holds(trace_id)]
            for chunk in portions(mine, work.chunk_size):
                if not self._may_go_on(until) or not self._may_spend(scopes):
                    return
                units, waiting = await self._judge(scopes, chunk, around, window)
                await work.in_thread(self._commit, units)
                if waiting:
                    self._aside |= waiting
                    return
            _reach(scopes, around[1])
        _reach(scopes, window[1])

    def _may_spend(self, scopes: Sequence[_Scope]) -> bool:
        without = {scope.past.scorer for scope in scopes if not scope.active.spares()}
        if without:
            self._held["budget, half of which is kept for what is new"] += len(without)
            self._aside |= without
        return not without

    def _commit(self, units: Sequence[Unit]) -> None:
        """Commit results, and with them how far the ranges were looked through before."""
        moved = [scope for scope in self._scopes if scope.upto > scope.noted]
        if not units and not moved:
            return
        shard = self._parts.shard
        self._work.commit([*units, *(reached_unit(scope.past, scope.upto, shard) for scope in moved)])
        self._parts.committed()
        for scope in moved:
            scope.noted = scope.upto

    # --- some traces

    async def _judge(
        self, scopes: Sequence[_Scope], ids: Sequence[str], around: Window, window: Window
    ) -> tuple[list[Unit], set[str]]:
        """The units of some traces, and the judges that have to look at them again."""
        work = self._work
        found, unready = await work.in_thread(self._read, scopes, ids, around, window)
        pendings = {one.pending.trace_id: one.pending for one in found if one.ready}
        wanted = await work.in_thread(self._wanted, [one for one in found if one.ready], scopes)
        scores = await work.score([assignment for assignment, _ in wanted])
        now = self._parts.clock()
        unready += sum(not one.ready for one in found)
        held = Counter({NOT_WHOLE: unready}) if unready else Counter[str]()
        waiting = {scope.past.scorer for scope in scopes} if unready else set[str]()
        units: list[Unit] = []
        for (assignment, revision), scored in zip(wanted, scores.results, strict=True):
            if reason := _held_back(scored):
                held[reason] += 1
                waiting.add(assignment.scorer.name)
                continue
            pending = pendings[assignment.record.trace.trace_id]
            units.append([work.result(assignment, pending, scored, now, revision=revision, scope=SINCE)])
            work.count(assignment, scored)
        self._held += held
        return units, waiting

    def _read(
        self, scopes: Sequence[_Scope], ids: Sequence[str], around: Window, window: Window
    ) -> tuple[list["_Found"], int]:
        """The traces that began in a window and that some of the judges want, and how many live has yet to decide: with
        which versions, nobody knows."""
        work = self._work
        days = _days(around)
        decided = newest_of_each("TRACE", work.book.decided(ids, days))
        waiting = work.waiting.keys() & set(ids)
        wanted = {one: _wanting(scopes, decided.get(one)) for one in ids if one not in waiting}
        left = {one for one, names in wanted.items() if names}
        read = without_strays(work.book, gather(work.spans.around(left, around)))
        found = []
        for trace_id in wanted:
            pending, done = read.get(trace_id), decided.get(trace_id)
            if pending is None:
                continue
            now, settle, longest = self._parts.clock(), self._parts.settle, self._parts.max_wait
            state = readiness(pending, now=now, settle=settle, max_wait=longest)
            incomplete = not has_ended_root(pending.spans)
            trace = assemble(trace_id, pending.spans, incomplete=incomplete)
            if trace.start_time is not None and window[0] <= trace.start_time < window[1]:
                found.append(
                    _Found(
                        trace=trace,
                        pending=pending,
                        names=wanted[trace_id],
                        revision=0 if done is None else done.revision,
                        ready=done is not None or isinstance(state, Ready),
                    )
                )
        return found, len(waiting)

    def _wanted(self, found: Sequence["_Found"], scopes: Sequence[_Scope]) -> list[tuple[Assignment, int]]:
        """What is to be judged, and as which revision; what has a row, of whatever state, is not."""
        scorers = {scope.active.scorer.name: scope.active.scorer for scope in scopes}
        selections = select([one.trace for one in found], [scope.active.rule for scope in scopes])
        targets = set[str]().union(*(selection.targets for selection in selections))
        states = self._work.book.states(targets, days_around(one.pending for one in found))
        known = newest_revisions(key for key, row in states.items() if row.state != "replaced")
        return [
            (Assignment(scorer=scorers[name], record=record), one.revision)
            for one, selection in zip(found, selections, strict=True)
            for name, record in selection.work
            if name in one.names
            and known.get(result_key(record.target, name, scorers[name].version)[:4], -1) < one.revision
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A trace of the past, who wants it, and as which revision live decided it."""

    trace: Trace
    pending: Pending
    names: frozenset[str]
    revision: int
    ready: bool


def _wanting(scopes: Iterable[_Scope], done: Row | None) -> frozenset[str]:
    """Who is to look at a trace: not who was in force when live decided it, and nobody where it is forgotten."""
    if done is not None and done.forgotten:
        return frozenset()
    decided: dict[str, str] = orjson.loads(done.set or "{}") if done is not None else {}
    judges = (scope.active.scorer for scope in scopes)
    return frozenset(judge.name for judge in judges if decided.get(judge.name) != judge.version)


def _reach(scopes: Iterable[_Scope], upto: datetime) -> None:
    for scope in scopes:
        scope.upto = max(scope.upto, upto)


def _held_back(scored: Scored) -> str | None:
    """What kept a scorer from looking at a record at all, for nothing was paid."""
    outcome = scored.outcome
    if isinstance(outcome, Unscored) and outcome.reason.held_back and not scored.usage.calls:
        return outcome.reason.value
    return None


def _days(around: Window) -> set[date]:
    """The partitions of traces whose spans lie around a time (R2)."""
    first, last = (moment.astimezone(UTC).date() for moment in around)
    return {first + timedelta(days=number) for number in range(-1, (last - first).days + 2)}
