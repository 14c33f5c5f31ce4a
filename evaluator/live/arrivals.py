"""What arrived since the cursor: put together, waited for, decided."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from evaluator.dataset.records import record_of_trace
from evaluator.dataset.selection import Selection, select
from evaluator.decisions import (
    OUT_OF_SCOPE,
    days_around,
    done_row,
    gone_row_of_target,
    newest_revisions,
    result_key,
    waiting_row,
)
from evaluator.live.late import decided_anew, decided_before
from evaluator.live.work import Work
from evaluator.notes import scoring_begun, scoring_begun_unit
from evaluator.score import Assignment
from evaluator.tables.rows import Key, Moved, Row, Unit, newest_of_each
from evaluator.traces.assembly import (
    Pending,
    Ready,
    Waiting,
    assemble,
    gather,
    has_ended_root,
    join,
    readiness,
)

NOTHING_READ = -1


class Arrivals:
    """The traces that a tick finds new, each decided once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._parts = work.parts
        self._revisions: dict[str, int] = {}
        """Of the traces to which late spans came: as which revision they are decided anew."""
        self._brought: set[str] = set()
        """The traces of which the batch in hand has spans."""
        self._begun: datetime | None = None
        """When scoring began, where these were found by their time: some may have been there before."""

    async def decide(self) -> bool:
        """Read on from the cursor until nothing is left, deciding what is ready in each batch; whether it came so far."""
        work = self._work
        cursor, cursor_at, mark = await work.in_thread(self._begin_at)
        while True:
            batch = await work.in_thread(work.spans.since, cursor, cursor_at, mark)
            if batch.caught_up is not None:
                work.summary.notes.append(f"the spans table: {batch.caught_up}; caught up by its files' age")
            now = batch.upto_at if batch.more else self._parts.clock()
            mine = [arrival for arrival in batch.arrivals if self._parts.shard.holds(arrival.span.trace_id)]
            self._brought = {arrival.span.trace_id for arrival in mine}
            self._begun = await work.in_thread(self._scoring_begun) if batch.by_time else None
            found = await work.in_thread(self._put_together, gather(mine), now, batch.more)
            ready, waiting = self._split(found, now)
            moved = None
            if batch.upto > cursor or (batch.upto == cursor and batch.upto_mark != mark):
                moved = self._moved(batch.upto, batch.upto_at, batch.upto_mark)
            await self._decide(ready, waiting, moved)
            work.summary.cursor = work.book.cursor(work.spans.table_id, self._parts.shard)
            # It is elsewhere when another worker is at it: the next tick reads on from there.
            passed = work.summary.cursor == batch.upto
            if not batch.more or not passed or work.stopping:
                return passed and not batch.more
            cursor, cursor_at, mark = batch.upto, batch.upto_at, batch.upto_mark

    # --- where to begin

    def _begin_at(self) -> tuple[int, datetime | None, int | None]:
        """The cursor, with its time and mark; without one yet, where `start` says, which is committed so that it stays
        said."""
        work = self._work
        said = self._said()
        if said is not None:
            return said
        now = self._parts.clock()
        start = self._parts.start
        if start == "auto":
            start = "earliest" if work.spans.ours else "latest"
            if start == "latest":
                work.summary.notes.append(
                    "the spans table was there before: scoring starts with what arrives from now on "
                    "(`start: earliest` or `7d` begins in the past, `evaluator eval` scores a range of it)"
                )
        if start == "latest":
            version = work.spans.version
            mark = work.spans.mark(version)
            begun = [scoring_begun_unit(work.spans.table_id, now)]
            work.write(begun, moved=self._moved(version, now, mark, begins=True))
            # Another worker may have been first; where nothing is said yet, others share the work meanwhile.
            return self._said() or (version, now, mark)
        if (
            isinstance(start, timedelta) and work.book.floor is None
        ):  # once said, it does not go on with the clock
            work.write([], floor=now - start)
        return NOTHING_READ, None, None

    def _scoring_begun(self) -> datetime | None:
        return scoring_begun(self._work.book.notes(), self._work.spans.table_id)

    def _said(self) -> tuple[int, datetime | None, int | None] | None:
        """What the ledger says of the cursor."""
        book, table_id, shard = self._work.book, self._work.spans.table_id, self._parts.shard
        cursor = book.cursor(table_id, shard)
        if cursor is None:
            return None
        return cursor, book.cursor_at(table_id, shard), book.cursor_mark(table_id, shard)

    def _moved(self, cursor: int, at: datetime, mark: int | None, *, begins: bool = False) -> Moved:
        return Moved(
            table_id=self._work.spans.table_id,
            cursor=cursor,
            cursor_at=at,
            cursor_mark=mark,
            shard=self._parts.shard,
            begins=begins,
        )

    # --- putting traces together

    def _put_together(self, found: dict[str, Pending], now: datetime, more: bool) -> dict[str, Pending]:
        """What the batch touched and, once all is read, what is due: with earlier spans, without the decided."""
        work = self._work
        due = (
            {}
            if more
            else {
                trace_id: row
                for trace_id, row in work.waiting.items()
                if row.due is not None and row.due <= now
            }
        )
        earlier = {trace_id: row for trace_id, row in work.waiting.items() if trace_id in found} | due
        restored = work.restored(earlier.values())
        for trace_id, pending in restored.items():
            found[trace_id] = join(found[trace_id], pending) if trace_id in found else pending
        gone = {trace_id: row for trace_id, row in due.items() if trace_id not in found}
        decided, ended = decided_before(work, [one for one, row in gone.items() if not row.revision])
        left = [row for trace_id, row in gone.items() if trace_id not in decided]
        work.commit([*ended, *([gone_row_of_target(row, work.in_force, run_id=work.run_id)] for row in left)])
        return self._undecided(found)

    def _undecided(self, found: Mapping[str, Pending]) -> dict[str, Pending]:
        """Without what is done, and without what is out of scope.

        The late spans of what is done change nothing, unless they are to make its next revision.
        """
        work = self._work
        days = days_around(found.values())
        states = work.book.states(found, days)
        newest_of = newest_of_each("TRACE", states)
        floor = work.book.floor
        undecided, late = {}, {}
        out_of_scope: list[Unit] = []
        for trace_id, pending in found.items():
            newest = newest_of.get(trace_id)
            # A wait that is none any more ended in another partition: an earlier span had come.
            wait_ended = newest is not None and newest.revision > 0 and trace_id not in work.waiting
            if newest is not None and (newest.state == "done" or wait_ended):
                late[trace_id] = pending
            elif newest is not None and newest.revision:
                self._revisions[trace_id] = newest.revision
                undecided[trace_id] = replace(pending, commits=())
            elif self._is_in_scope(pending, floor):
                self._revisions.pop(trace_id, None)
                undecided[trace_id] = pending
            elif wait := work.waiting.get(trace_id):
                out_of_scope.append(
                    [gone_row_of_target(wait, work.in_force, run_id=work.run_id, reason=OUT_OF_SCOPE)]
                )
        anew = decided_anew(work, late, days) if self._parts.rescore_late else {}
        self._revisions |= {trace_id: revision for trace_id, (revision, _) in anew.items()}
        late = {trace_id: pending for trace_id, pending in late.items() if trace_id not in anew}
        work.summary.late += len(late)
        _, told_again = decided_before(work, [trace_id for trace_id in late if trace_id in work.waiting])
        work.commit([*out_of_scope, *told_again])
        return undecided | {trace_id: pending for trace_id, (_, pending) in anew.items()}

    def _is_in_scope(self, pending: Pending, floor: datetime | None) -> bool:
        """Not what ended before the floor, nor, of what was found by its time, before scoring began."""
        if pending.latest is None:
            return True
        begun = None if pending.trace_id in self._work.waiting else self._begun
        return all(pending.latest >= moment for moment in (floor, begun) if moment)

    def _split(
        self, found: Mapping[str, Pending], now: datetime
    ) -> tuple[list[tuple[Pending, bool]], list[Row]]:
        """What is ready (and whether incomplete), and the rows of what waits."""
        ready, waiting = [], []
        for pending in found.values():
            match readiness(pending, now=now, settle=self._parts.settle, max_wait=self._parts.max_wait):
                case Ready(incomplete=incomplete):
                    ready.append((pending, incomplete))
                case Waiting(due=due, reason=reason):
                    revision = self._revisions.get(pending.trace_id, 0)
                    waiting.append(waiting_row(pending, due=due, reason=reason, now=now, revision=revision))
        return ready, waiting

    # --- deciding

    async def _decide(
        self, ready: Sequence[tuple[Pending, bool]], waiting: Sequence[Row], moved: Moved | None
    ) -> None:
        """Score and commit what is ready, chunk by chunk; the last commit takes the cursor and what waits."""
        work = self._work
        if not await work.through(ready, self._judge) or work.left_out:
            return  # the cursor stays: the next tick reads this batch again, without what is decided
        if work.overtaken and self._parts.rescore_late:
            return  # what others decided meanwhile may lack spans of this batch: the next tick looks
        await work.in_thread(work.commit, [[row] for row in waiting if self._changed(row)], moved)
        work.summary.waiting = len(work.waiting)

    async def _judge(self, chunk: Sequence[tuple[Pending, bool]]) -> list[Unit]:
        """The units that decide some ready traces."""
        work = self._work
        chunk, closed = await work.in_thread(self._completed, chunk)
        pendings = {pending.trace_id: pending for pending, _ in chunk}
        traces = [
            assemble(pending.trace_id, pending.spans, incomplete=incomplete) for pending, incomplete in chunk
        ]
        selections = await work.in_thread(select, traces, [active.rule for active in self._parts.active])
        targets = set[str]().union(*(selection.targets for selection in selections))
        states = await work.in_thread(work.book.states, targets, days_around(pendings.values()))
        assignments = self._assignments(selections, states)
        scores = await work.score(assignments)
        now = self._parts.clock()
        units: dict[str, Unit] = {
            trace.trace_id: [
                done_row(
                    record_of_trace(trace).target,
                    pendings[trace.trace_id],
                    in_force=work.in_force,
                    skipped=selection.skipped,
                    run_id=work.run_id,
                    now=now,
                    incomplete=trace.incomplete,
                    revision=self._revisions.get(trace.trace_id, 0),
                )
            ]
            for trace, selection in zip(traces, selections, strict=True)
        }
        left_out = work.left_as_they_are(assignments, scores)
        known = newest_revisions(states)
        for assignment, scored in zip(assignments, scores.results, strict=True):
            trace_id = assignment.record.trace.trace_id
            revision = self._revision(assignment, known)
            result = work.result(assignment, pendings[trace_id], scored, now, revision=revision)
            units[trace_id].append(result)
            if trace_id in left_out:
                work.summary.spend(scored)
            else:
                work.count(assignment, scored)
        for trace, selection in zip(traces, selections, strict=True):
            if trace.trace_id not in left_out:
                work.summary.traces += 1
                work.summary.skipped.update(selection.skipped.values())
            if self._revisions.get(trace.trace_id):
                spans = {step.span.span_id for step in trace.steps}
                units[trace.trace_id] += work.superseded("TRACE", trace.trace_id, spans)
        return [*closed, *(unit for trace_id, unit in units.items() if trace_id not in left_out)]

    def _revision(self, assignment: Assignment, known: Mapping[tuple[object, ...], int]) -> int:
        """The revision of a new result: that of its trace, and above what an `eval` made of it meanwhile."""
        revision = self._revisions.get(assignment.record.trace.trace_id, 0)
        if not revision:
            return 0
        key = result_key(assignment.record.target, assignment.scorer.name, assignment.scorer.version)
        return max(revision, known.get(key[:4], -1) + 1)

    def _completed(
        self, chunk: Sequence[tuple[Pending, bool]]
    ) -> tuple[list[tuple[Pending, bool]], list[Unit]]:
        """What is to be judged without a root is looked up over all days (R2): it may have begun before the
        cursor's first commit, or have been decided long ago. The units end the waits for the latter."""
        rootless = {
            pending.trace_id: pending
            for pending, incomplete in chunk
            if incomplete and not self._revisions.get(pending.trace_id)
        }
        if not rootless:
            return list(chunk), []
        decided, ended = decided_before(self._work, rootless)
        starts = [pending.earliest for pending in rootless.values() if pending.earliest]
        earlier = gather(self._work.spans.around(rootless, (min(starts), max(starts)) if starts else None))
        completed = []
        for pending, incomplete in chunk:
            if pending.trace_id in decided:
                continue
            if pending.trace_id in earlier:
                whole = join(pending, earlier[pending.trace_id])
                pending = replace(whole, first=pending.first, last=pending.last)
                incomplete = not has_ended_root(whole.spans)
            completed.append((pending, incomplete))
        self._work.summary.late += len(decided)
        return completed, ended

    def _assignments(self, selections: Iterable[Selection], states: Mapping[Key, Row]) -> list[Assignment]:
        """The work on some traces, trace by trace; what an `eval` has scored already is not scored again."""
        scorers = {active.scorer.name: active.scorer for active in self._parts.active}
        assignments = []
        for selection in selections:
            for name, record in selection.work:
                known = states.get(result_key(record.target, name, scorers[name].version))
                late = self._revisions.get(record.trace.trace_id)
                if known is not None and known.state == "scored" and not late:
                    self._work.summary.reused += 1
                    continue
                assignments.append(Assignment(scorer=scorers[name], record=record))
        return assignments

    def _changed(self, row: Row) -> bool:
        """Whether a waiting row says something that the ledger does not say yet.

        Of a trace that was decided before it names no commits: that spans came is news by itself, to whoever is just
        deciding the trace without them.
        """
        known = self._work.waiting.get(row.target_id)
        more = row.revision > 0 and row.target_id in self._brought
        return known is None or more or _wait(known) != _wait(row)


def _wait(row: Row) -> tuple[object, ...]:
    """What a waiting row says. Its commits count: one that came with an older clock changes nothing else."""
    return row.revision, row.due, row.reason, row.first, row.last, set(row.commits)
