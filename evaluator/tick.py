"""One tick: what is new is read, put together, selected, scored, committed and published."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from evaluator.dataset.records import Record, record_of_trace
from evaluator.dataset.selection import Selection, select
from evaluator.decisions import (
    GIVEN_UP_AFTER,
    LIVE,
    days_around,
    done_row,
    given_up_row,
    gone_row,
    gone_trace_row,
    replaced_row,
    result_row,
    waited_too_long,
    waiting_row,
    waits_for_budget,
)
from evaluator.feedback import Reason, Scored, Unscored
from evaluator.portions import portions
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.score import Active, Assignment, Scores, is_held_up, score
from evaluator.summary import Summary
from evaluator.tables.rows import Key, Moved, Row, Unit
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
from evaluator.traces.trace import Trace

CHUNK_TRACES = 2_000
CHUNK_TRACES_JUDGED = 200
"""How many traces are scored and committed together: a second or more of work, and little to lose."""

CHUNKS_AT_ONCE = 3
"""How many chunks are judged at once: while the last calls of one are out, those of the next fill their place."""

TRY_SLOW_FOR = timedelta(minutes=10)
"""How long a tick goes on with the backlog of a judge whose provider cannot keep up: what is new waits for its end."""

NOTHING_READ = -1

Given = ParamSpec("Given")
Got = TypeVar("Got")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a tick works with; `wiring` builds it."""

    spans: SpanSource
    ledger: LedgerPort
    active: Sequence[Active]
    clock: Callable[[], datetime]
    settle: timedelta
    max_wait: timedelta
    start: str | timedelta = "auto"
    stopping: Callable[[], bool] = lambda: False
    """Asked between chunks: whether to leave the rest to the next tick."""


def has_work(parts: Parts) -> bool:
    """Whether a tick would find anything to decide: only then is a lease worth taking. Raises TableError."""
    spans, book = parts.spans.open(), parts.ledger.open()
    cursor = book.cursor(spans.table_id)
    if cursor is None or cursor < spans.version:
        return True
    now = parts.clock()
    by_name = {active.scorer.name: active for active in parts.active}
    return any(_is_due(row, by_name, now) for row in book.open_rows())


async def tick(parts: Parts, run_id: str) -> Summary:
    """Decide what is new and try again what is due; what was done.

    What a configuration that has to be mended kept from being judged stays as it is; the summary's `failure` says
    what to mend. Raises TableError.
    """
    summary = Summary(run_id=run_id)
    work = await asyncio.to_thread(_Work.begin, parts, run_id, summary)
    await work.catch_up()
    await work.decide_what_is_new()
    await work.try_again_what_is_due()
    return summary


class _Work:
    """One tick's state: the book it commits to, the spans it reads, and what waits."""

    def __init__(self, parts: Parts, book: Book, spans: Spans, run_id: str, summary: Summary) -> None:
        self._parts = parts
        self._book = book
        self._spans = spans
        self._run_id = run_id
        self._summary = summary
        opened = book.open_rows()
        self._waiting = {row.target_id: row for row in opened if row.state == "waiting"}
        self._due = [row for row in opened if row.state != "waiting"]
        self._in_force = {active.scorer.name: active.scorer.version for active in parts.active}
        self._left_out = False
        self._tables = asyncio.Lock()
        self._line = asyncio.Lock()
        self._began = parts.clock()
        self._resting: set[str] = set()
        self._given_up = 0

    @classmethod
    def begin(cls, parts: Parts, run_id: str, summary: Summary) -> "_Work":
        book = parts.ledger.open()  # first: so the spans table has all that its rows speak of
        return cls(parts, book, parts.spans.open(), run_id, summary)

    async def decide_what_is_new(self) -> None:
        """Read on from the cursor until nothing is left, deciding what is ready in each batch."""
        cursor, cursor_at = await self._in_thread(self._begin_at)
        while True:
            batch = await self._in_thread(self._spans.since, cursor, cursor_at)
            if batch.caught_up:
                self._summary.notes.append(
                    "the spans table's log was cleaned up past the cursor: caught up by the files' age"
                )
            now = batch.upto_at if batch.more else self._parts.clock()
            found = await self._in_thread(self._put_together, gather(batch.arrivals), now, batch.more)
            ready, waiting = self._split(found, now)
            moved = None
            if batch.upto > cursor:
                moved = Moved(table_id=self._spans.table_id, cursor=batch.upto, cursor_at=batch.upto_at)
            await self._decide(ready, waiting, moved)
            self._summary.cursor = self._book.cursor(self._spans.table_id)
            if not batch.more or self._parts.stopping() or self._summary.cursor != batch.upto:
                return  # the cursor is elsewhere when another worker is at it: the next tick reads on from it
            cursor, cursor_at = batch.upto, batch.upto_at

    async def catch_up(self) -> None:
        """Score what waits for the budget, the oldest first and before what is new; give up what waited too long."""
        await self._try_again_all([row for row in self._due if waits_for_budget(row)])
        if self._given_up:
            self._summary.notes.append(
                f"{self._given_up} results were given up: the budget had no room for them in {GIVEN_UP_AFTER.days} days "
                "(`evaluator retry` puts them up again)"
            )

    async def try_again_what_is_due(self) -> None:
        """Score again what is due, and pass to the version in force what is open for an older one."""
        await self._try_again_all([row for row in self._due if not waits_for_budget(row)])

    async def _try_again_all(self, rows: Sequence[Row]) -> None:
        by_name = {active.scorer.name: active for active in self._parts.active}
        now = self._parts.clock()
        due = [row for row in rows if _is_due(row, by_name, now)]
        await self._work_through(due, lambda chunk: self._try_again(chunk, by_name))

    # --- where to begin

    def _begin_at(self) -> tuple[int, datetime | None]:
        """The cursor; without one yet, where `start` says, which is committed so that it stays said."""
        table_id = self._spans.table_id
        cursor = self._book.cursor(table_id)
        if cursor is not None:
            return cursor, self._book.cursor_at(table_id)
        now = self._parts.clock()
        start = self._parts.start
        if start == "auto":
            start = "earliest" if self._spans.ours else "latest"
            if start == "latest":
                self._summary.notes.append(
                    "the spans table was there before: scoring starts with what arrives from now on "
                    "(`start: earliest` or `7d` begins in the past, `evaluator eval` scores a range of it)"
                )
        if start == "latest":
            version = self._spans.version
            begins = Moved(table_id=table_id, cursor=version, cursor_at=now, begins=True)
            self._book.commit([], moved=begins, floor=now)
            return self._begin_at()  # where another worker has said it, if one was first
        if isinstance(start, timedelta):
            self._book.commit([], floor=now - start)
        return NOTHING_READ, None

    # --- putting traces together

    def _put_together(self, found: dict[str, Pending], now: datetime, more: bool) -> dict[str, Pending]:
        """What the batch touched and, once all is read, what is due: with earlier spans, without the decided."""
        due = (
            {}
            if more
            else {
                trace_id: row
                for trace_id, row in self._waiting.items()
                if row.due is not None and row.due <= now
            }
        )
        earlier = {trace_id: row for trace_id, row in self._waiting.items() if trace_id in found} | due
        restored = self._restore(earlier.values())
        for trace_id, pending in restored.items():
            found[trace_id] = join(found[trace_id], pending) if trace_id in found else pending
        gone = [row for trace_id, row in due.items() if trace_id not in found]
        self._commit([[gone_trace_row(row, self._in_force, run_id=self._run_id)] for row in gone], None)
        return self._undecided(found)

    def _restore(self, rows: Iterable[Row]) -> dict[str, Pending]:
        """The spans that waiting or open rows speak of, with the arrivals that the rows remember."""
        rows = list(rows)
        if not rows:
            return {}
        restored = gather(self._spans.of_traces(*_where(row for row in rows if row.commits)))
        lost = [row for row in rows if row.trace_id not in restored]
        if lost:
            ids, _, around = _where(lost)
            restored |= gather(self._spans.around(ids, around))
        for row in rows:
            pending = restored.get(row.trace_id or "")
            if pending is not None:
                restored[pending.trace_id] = replace(
                    pending,
                    first=row.first or pending.first,
                    last=row.last or pending.last,
                    commits=tuple(row.commits),
                )
        return restored

    def _undecided(self, found: Mapping[str, Pending]) -> dict[str, Pending]:
        """Without what is done (its late spans change nothing), and without what ended before the floor."""
        states = self._book.states(found, days_around(found.values()))
        floor = self._book.floor
        undecided = {}
        for trace_id, pending in found.items():
            known = states.get(Key("TRACE", trace_id))
            if known is not None and known.state == "done":
                self._summary.late += 1
            elif floor is None or pending.latest is None or pending.latest >= floor:
                undecided[trace_id] = pending
        return undecided

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
                    waiting.append(waiting_row(pending, due=due, reason=reason, now=now))
        return ready, waiting

    # --- deciding

    async def _decide(
        self, ready: Sequence[tuple[Pending, bool]], waiting: Sequence[Row], moved: Moved | None
    ) -> None:
        """Score and commit what is ready, chunk by chunk; the last commit takes the cursor and what waits."""
        if not await self._work_through(ready, self._judge) or self._left_out:
            return  # the cursor stays: the next tick reads this batch again, without what is decided
        await self._in_thread(self._commit, [[row] for row in waiting if self._changed(row)], moved)
        self._summary.waiting = len(self._waiting)

    async def _judge(self, chunk: Sequence[tuple[Pending, bool]]) -> list[Unit]:
        """The units that decide some ready traces."""
        chunk = await self._in_thread(self._completed, chunk)
        pendings = {pending.trace_id: pending for pending, _ in chunk}
        traces = [
            assemble(pending.trace_id, pending.spans, incomplete=incomplete) for pending, incomplete in chunk
        ]
        selections = await self._in_thread(select, traces, [active.rule for active in self._parts.active])
        states = await self._in_thread(self._book.states, pendings, days_around(pendings.values()))
        assignments = self._assignments(traces, selections, states)
        scores = await score(assignments, self._line)
        now = self._parts.clock()
        units: dict[str, Unit] = {
            trace.trace_id: [
                done_row(
                    record_of_trace(trace).target,
                    pendings[trace.trace_id],
                    in_force=self._in_force,
                    skipped=selection.skipped,
                    run_id=self._run_id,
                    now=now,
                    incomplete=trace.incomplete,
                )
            ]
            for trace, selection in zip(traces, selections, strict=True)
        }
        left_out = self._note_failure(assignments, scores)
        for assignment, scored in zip(assignments, scores.results, strict=True):
            trace_id = assignment.record.trace.trace_id
            units[trace_id].append(self._result(assignment, pendings[trace_id], scored, now))
            if trace_id not in left_out:
                self._count(assignment, scored)
        for trace, selection in zip(traces, selections, strict=True):
            if trace.trace_id not in left_out:
                self._summary.traces += 1
                self._summary.skipped.update(selection.skipped.values())
        return [unit for trace_id, unit in units.items() if trace_id not in left_out]

    def _note_failure(self, assignments: Sequence[Assignment], scores: Scores) -> set[str]:
        """The traces to be left as they are: those that the configuration kept from a judge, with nothing paid for yet."""
        if scores.failure is None:
            return set()
        self._summary.failure = self._summary.failure or str(scores.failure)
        held_up, paid = set(), set()
        for assignment, scored in zip(assignments, scores.results, strict=True):
            if is_held_up(scored):
                held_up.add(assignment.record.trace.trace_id)
            elif scored.usage.calls:
                paid.add(assignment.record.trace.trace_id)
        self._left_out = self._left_out or not held_up <= paid
        return held_up - paid

    def _completed(self, chunk: Sequence[tuple[Pending, bool]]) -> list[tuple[Pending, bool]]:
        """What is to be judged without a root is looked up over all days: decided long ago, or begun before
        the cursor's first commit (R2)."""
        rootless = {pending.trace_id: pending for pending, incomplete in chunk if incomplete}
        if not rootless:
            return list(chunk)
        states = self._book.states(rootless, None)
        starts = [pending.earliest for pending in rootless.values() if pending.earliest]
        earlier = gather(self._spans.around(rootless, (min(starts), max(starts)) if starts else None))
        completed = []
        for pending, incomplete in chunk:
            known = states.get(Key("TRACE", pending.trace_id))
            if incomplete and known is not None and known.state == "done":
                self._summary.late += 1
                continue
            if pending.trace_id in earlier:
                whole = join(pending, earlier[pending.trace_id])
                if whole.spans != pending.spans:
                    pending = replace(whole, first=pending.first, last=pending.last)
            completed.append((pending, incomplete))
        return completed

    def _assignments(
        self, traces: Sequence[Trace], selections: Sequence[Selection], states: Mapping[Key, Row]
    ) -> list[Assignment]:
        """The work on some traces, trace by trace; what an `eval` has scored already is not scored again."""
        assignments = []
        for trace, selection in zip(traces, selections, strict=True):
            record = record_of_trace(trace)
            for active in self._parts.active:
                if active.scorer.name in selection.skipped:
                    continue
                known = states.get(_result_key(record, active))
                if known is not None and known.state == "scored":
                    self._summary.reused += 1
                    continue
                assignments.append(Assignment(scorer=active.scorer, record=record))
        return assignments

    # --- trying again

    async def _try_again(self, rows: Sequence[Row], by_name: Mapping[str, Active]) -> list[Unit]:
        """The units of one more attempt for some open results; those of older versions pass to the one in force."""
        # The budget is asked anew: nothing is read and rendered for what an earlier chunk left no room for.
        due = [row for row in rows if row.scorer not in self._resting and _is_due(row, by_name, self._began)]
        rows = [row for row in due if not _waits_in_vain(row, by_name)]
        restored = await self._in_thread(self._restore, rows)
        states = await self._in_thread(self._book.states, restored, days_around(restored.values()))
        retrials = [self._retrial(row, by_name.get(row.scorer or ""), restored, states) for row in rows]
        assignments = [retrial.assignment for retrial in retrials if retrial.assignment]
        scores = await score(assignments, self._line)
        if scores.failure is not None:
            self._summary.failure = self._summary.failure or str(scores.failure)
        results = iter(scores.results)
        now = self._parts.clock()
        self._resting |= _tired(assignments, scores.results, now - self._began)
        units = [self._given_up_unit(row) for row in due if row not in rows]
        for retrial in retrials:
            unit = list(retrial.unit)
            if retrial.assignment is not None:
                scored = next(results)
                pending = restored[retrial.row.trace_id or ""]
                attempts = 0 if unit else retrial.row.attempts
                unit.append(self._result(retrial.assignment, pending, scored, now, attempts=attempts))
                self._count(retrial.assignment, scored)
            if unit and not _says_the_same(unit, retrial.row):
                units.append(unit)
        return units

    def _given_up_unit(self, row: Row) -> Unit:
        given_up = given_up_row(row, run_id=self._run_id)
        self._given_up += 1
        told = Unscored(reason=Reason.BUDGET, detail=given_up.error or "")
        self._summary.count(row.scorer or "", row.version or "", told)
        return [given_up]

    def _retrial(
        self, row: Row, active: Active | None, restored: Mapping[str, Pending], states: Mapping[Key, Row]
    ) -> "_Retrial":
        """What becomes of an open result: another attempt, a newer version in its place, or an end."""
        current = active is not None and active.scorer.version == row.version
        unit = [] if current else [replaced_row(row, run_id=self._run_id)]
        pending = restored.get(row.trace_id or "")
        if pending is None:
            return _Retrial(row=row, unit=unit or [gone_row(row, run_id=self._run_id)])
        if active is None:
            return _Retrial(row=row, unit=unit)
        trace = assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))
        record = record_of_trace(trace)
        if not current:
            [selection] = select([trace], [active.rule])
            known = states.get(_result_key(record, active))
            if selection.skipped or (known is not None and known.state != "replaced"):
                return _Retrial(row=row, unit=unit)
        return _Retrial(row=row, unit=unit, assignment=Assignment(scorer=active.scorer, record=record))

    # --- common

    async def _work_through(
        self, items: Sequence[Item], judged: Callable[[Sequence[Item]], Coroutine[Any, Any, list[Unit]]]
    ) -> bool:
        """Judge chunk after chunk, some at once, and commit them in their order; False when told to stop before the end.

        Ends early, too, when the configuration keeps all of a chunk from being judged.
        """
        left = deque(portions(items, self._chunk_size))
        underway: deque[asyncio.Task[list[Unit]]] = deque()
        try:
            while left or underway:
                while left and len(underway) < CHUNKS_AT_ONCE and not self._parts.stopping():
                    underway.append(asyncio.create_task(judged(left.popleft())))
                if not underway:
                    return False
                units = await underway[0]
                underway.popleft()
                await self._in_thread(self._commit, units, None)
                if self._left_out and not units:
                    left.clear()  # what is underway may be paid for already
        finally:
            for task in underway:
                task.cancel()
            await asyncio.gather(*underway, return_exceptions=True)
        return True

    async def _in_thread(self, work: Callable[Given, Got], *args: Given.args, **kwargs: Given.kwargs) -> Got:
        """Work on the tables, beside the calls to models; one at a time, for a book is not shared."""
        async with self._tables:
            return await asyncio.to_thread(work, *args, **kwargs)

    @property
    def _chunk_size(self) -> int:
        return (
            CHUNK_TRACES_JUDGED if any(active.scorer.waits for active in self._parts.active) else CHUNK_TRACES
        )

    def _result(
        self, assignment: Assignment, pending: Pending, scored: Scored, now: datetime, *, attempts: int = 0
    ) -> Row:
        return result_row(
            assignment.record.target,
            pending,
            scored,
            scorer=assignment.scorer.name,
            version=assignment.scorer.version,
            source_type=assignment.scorer.source_type,
            scope=LIVE,
            run_id=self._run_id,
            now=now,
            attempts=attempts,
        )

    def _changed(self, row: Row) -> bool:
        """Whether a waiting row says something that the ledger does not say yet."""
        known = self._waiting.get(row.target_id)
        return known is None or _wait(known) != _wait(row)

    def _commit(self, units: Sequence[Unit], moved: Moved | None) -> None:
        if not units and moved is None:
            return
        written = self._book.commit(units, moved=moved)
        for row in written:
            if row.state == "waiting":
                self._waiting[row.target_id] = row
            elif row.scorer is None:
                self._waiting.pop(row.target_id, None)
            else:
                self._summary.results += row.state in ("scored", "unscored") and row.due is None
                self._summary.deferred += row.state == "deferred"
        if len(written) < sum(map(len, units)):  # others wrote meanwhile, or the reply to a commit was lost
            opened = self._book.open_rows()
            self._waiting = {row.target_id: row for row in opened if row.state == "waiting"}

    def _count(self, assignment: Assignment, scored: Scored) -> None:
        self._summary.count(assignment.scorer.name, assignment.scorer.version, scored.outcome)
        self._summary.spend(scored)


def _is_due(row: Row, by_name: Mapping[str, Active], now: datetime) -> bool:
    """Whether an open row is to be looked at now; one of a version no longer in force always is."""
    if row.state != "waiting":
        active = by_name.get(row.scorer or "")
        if active is None or active.scorer.version != row.version:
            return True
        if active.paused:
            return False
        if _waits_in_vain(row, by_name):
            return waited_too_long(row, now)
    return row.due is not None and row.due <= now


def _waits_in_vain(row: Row, by_name: Mapping[str, Active]) -> bool:
    """Whether the budget has no room for what waits for it."""
    active = by_name.get(row.scorer or "")
    current = active is not None and active.scorer.version == row.version
    return active is not None and current and waits_for_budget(row) and not active.affords(row)


def _result_key(record: Record, active: Active) -> Key:
    target = record.target
    return Key(target.type, target.target_id, active.scorer.name, active.scorer.version, 0)


def _where(rows: Iterable[Row]) -> tuple[set[str], set[int], tuple[datetime, datetime] | None]:
    """Which traces some rows speak of, in which commits, around which time (None: nobody knows)."""
    rows = list(rows)
    starts = [row.trace_start for row in rows if row.trace_start]
    around = (min(starts), max(starts)) if starts and len(starts) == len(rows) else None
    ids = {row.trace_id for row in rows if row.trace_id}
    return ids, {commit for row in rows for commit in row.commits}, around


def _wait(row: Row) -> tuple[object, ...]:
    """What a waiting row says. Its commits count: one that came with an older clock changes nothing else."""
    return row.due, row.reason, row.first, row.last, set(row.commits)


def _tired(assignments: Sequence[Assignment], results: Sequence[Scored], lasted: timedelta) -> set[str]:
    """The scorers to leave alone for the rest of the tick: their provider does not answer, or not fast enough."""
    down: set[str] = set()
    working: set[str] = set()
    for assignment, scored in zip(assignments, results, strict=True):
        outcome = scored.outcome
        is_down = isinstance(outcome, Unscored) and outcome.reason is Reason.ENDPOINT_DOWN
        (down if is_down else working).add(assignment.scorer.name)
    return down if lasted > TRY_SLOW_FOR else down - working


def _says_the_same(unit: Unit, row: Row) -> bool:
    """Whether a unit would only repeat what the ledger says: deferred for the same reason as before."""
    [new] = unit[-1:]
    return new.state == "deferred" == row.state and (new.reason, new.attempts) == (row.reason, row.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retrial:
    """An open result, the rows that come before its new one, and the attempt to be made, if any."""

    row: Row
    unit: Unit
    assignment: Assignment | None = None
