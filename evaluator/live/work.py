"""What a tick has in hand: the book it commits to, the spans it reads, what waits, and how work goes through."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from evaluator.decisions import (
    LIVE,
    SUPERSEDED,
    days_around,
    replaced_row,
    result_row,
    session_wait,
    waited_too_long,
    waits_for_budget,
)
from evaluator.feedback import Scored
from evaluator.opened import Opened
from evaluator.portions import portions
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.score import Active, Assignment, Scores, is_held_up, score
from evaluator.shards import WHOLE, Shard
from evaluator.summary import Summary
from evaluator.tables.rows import Key, Moved, Row, Unit, newest_of_each, widened
from evaluator.traces.assembly import Pending, gather, has_ended_root

CHUNK_TRACES = 2_000
CHUNK_TRACES_JUDGED = 200
"""How many traces are scored and committed together: a second or more of work, and little to lose."""

CHUNKS_AT_ONCE = 3
"""How many chunks are judged at once: while the last calls of one are out, those of the next fill their place."""

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
    session_idle: timedelta = timedelta(minutes=5)
    rescore_late: bool = False
    late_window: timedelta = timedelta(days=7)
    start: str | timedelta = "auto"
    shard: Shard = WHOLE
    """Which traces and sessions this worker decides."""
    stopping: Callable[[], bool] = lambda: False
    """Asked between chunks: whether to leave the rest to the next tick."""
    committed: Callable[[], None] = lambda: None
    """Told after a chunk: there is something to publish."""
    past_for: timedelta = timedelta(minutes=1)
    """For how long a tick goes on with the past that judges catch up on (`since`), once the live work is done."""


class Work:
    """One tick's state. What touches the tables goes through `in_thread`, one at a time: a book is not shared."""

    def __init__(self, parts: Parts, run_id: str, summary: Summary) -> None:
        self.parts = parts
        self.run_id = run_id
        self.summary = summary
        self._tables = Opened(parts.ledger, parts.spans)
        self.began = parts.clock()
        self.in_force = self._versions(of_sessions=False)
        """The versions that decide traces and their spans; those that decide sessions are `of_sessions`."""
        self.of_sessions = self._versions(of_sessions=True)
        self.waiting: dict[str, Row] = {}
        self.sessions: dict[str, Row] = {}
        """The sessions that wait until they are idle."""
        self.due: dict[Key, Row] = {}
        """The open results to try again, of which this tick has said nothing yet."""
        self.left_out = False
        """Whether something was left undecided because the configuration kept it from a judge."""
        self.overtaken = False
        """Whether others decided what this tick was about to decide."""
        self._one_at_a_time = asyncio.Lock()
        self._line = asyncio.Lock()
        self._look_at_what_is_open()
        self.due = {
            row.key: row for row in self._opened if row.state != "waiting" and is_ours(row, parts.shard)
        }

    def _versions(self, *, of_sessions: bool) -> dict[str, str]:
        return {
            active.scorer.name: active.scorer.version
            for active in self.parts.active
            if (active.rule.target == "session") is of_sessions
        }

    # --- the tables

    @property
    def book(self) -> Book:
        return self._tables.book

    @property
    def spans(self) -> Spans:
        return self._tables.spans

    async def in_thread(self, work: Callable[Given, Got], *args: Given.args, **kwargs: Given.kwargs) -> Got:
        """Work on the tables, beside the calls to models; one at a time, for a book is not shared."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(work, *args, **kwargs)

    def restored(self, rows: Iterable[Row]) -> dict[str, Pending]:
        """The spans that waiting or open rows speak of, with the arrivals that the rows remember."""
        rows = list(rows)
        if not rows:
            return {}
        found = gather(self.spans.of_traces(*_where(row for row in rows if row.commits)))
        lost = [row for row in rows if row.trace_id not in found]
        if lost:
            ids, _, around = _where(lost)
            found |= gather(self.spans.around(ids, around))
        for row in rows:
            pending = found.get(row.trace_id or "")
            if pending is not None:
                found[pending.trace_id] = replace(
                    pending,
                    first=row.first or pending.first,
                    last=row.last or pending.last,
                    commits=tuple(row.commits),
                )
        return found

    def commit(self, units: Sequence[Unit], moved: Moved | None = None) -> None:
        """Commit a plan, and count what was written of it. Raises TableError."""
        if not units and moved is None:
            return
        units = self._with_sessions(units)
        written = self.write(units, moved=moved)
        for row in written:
            if row.scorer is None:
                self._remember(row)
            else:
                self._remember_result(row)
                self.summary.results += row.state in ("scored", "unscored") and row.due is None
                self.summary.deferred += row.state == "deferred"
        if len(written) < sum(map(len, units)):  # or several turns of a session told of its one wait
            keys = {row.key for row in written}
            left = [row for unit in units for row in unit if row.key not in keys]
            if left:  # others wrote meanwhile, or the reply to a commit was lost
                self.overtaken = self.overtaken or any(row.state == "done" for row in left)
                self._look_at_what_is_open()

    def write(
        self, units: Sequence[Unit], *, moved: Moved | None = None, floor: datetime | None = None
    ) -> list[Row]:
        """Commit a plan; what was written of it. Raises TableError."""
        yields = self.parts.rescore_late
        return self._tables.commit(units, moved=moved, floor=floor, decisions_yield=yields)

    def superseded(self, kind: str, target_id: str, spans: Collection[str] = ()) -> list[Row]:
        """What ends the open results that a new revision of a session, or of a trace and these spans of it, takes the
        place of. Of a span that the revision lacks (deleted, or days from the rest) it says nothing."""
        return [
            replaced_row(row, run_id=self.run_id, reason=SUPERSEDED)
            for row in list(self._open_results.values())  # which a commit in its thread may be changing
            if target_id == (row.target_id if row.target_type == "SESSION" else row.trace_id)
            and (row.target_type == "SESSION") is (kind == "SESSION")
            and (row.span_id is None or row.span_id in spans)
        ]

    def _with_sessions(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """The units, each decision on a turn with the wait of its session: they are one commit."""
        if not self.of_sessions:
            return units
        turns = {unit[0].key: unit[0] for unit in units if _is_turn(unit[0])}
        ids = {turn.session_id or "" for turn in turns.values()}
        judged = newest_of_each("SESSION", self.book.of_sessions(ids - self.sessions.keys()))
        known = judged | self.sessions
        now, idle = self.parts.clock(), self.parts.session_idle
        waits: dict[str | None, Row] = {}
        for turn in turns.values():
            wait = session_wait(turn, known.get(turn.session_id or ""), idle=idle, now=now)
            other = waits.get(turn.session_id)
            waits[turn.session_id] = wait if other is None else widened(wait, other)
        return [[*unit, waits[unit[0].session_id]] if unit[0].key in turns else unit for unit in units]

    def _remember(self, row: Row) -> None:
        """What waits, after a target's row."""
        waiting = self.sessions if row.target_type == "SESSION" else self.waiting
        if row.state == "waiting":
            waiting[row.target_id] = row
        else:
            waiting.pop(row.target_id, None)

    def _remember_result(self, row: Row) -> None:
        self.due.pop(row.key, None)
        self._open_results.pop(row.key, None)
        if row.due is not None:
            self._open_results[row.key] = row

    def _look_at_what_is_open(self) -> None:
        self._opened = self.book.open_rows()
        self._open_results = {row.key: row for row in self._opened if row.state != "waiting"}
        waiting = [row for row in self._opened if row.state == "waiting"]
        shard = self.parts.shard
        self.waiting = {
            row.target_id: row for row in waiting if row.target_type == "TRACE" and is_ours(row, shard)
        }
        self.sessions = {row.target_id: row for row in waiting if row.target_type == "SESSION"}

    # --- scoring

    async def score(self, assignments: Sequence[Assignment]) -> Scores:
        """Every assignment's result. What the operator has to mend is said in the summary."""
        scores = await score(assignments, self._line)
        if scores.failure is not None:
            self.summary.failure = self.summary.failure or str(scores.failure)
        return scores

    def left_as_they_are(self, assignments: Sequence[Assignment], scores: Scores) -> set[str]:
        """The traces (of a session, its first) to leave undecided: the configuration kept them from a judge, and
        nothing was paid for yet."""
        if scores.failure is None:
            return set()
        held_up, paid = set(), set()
        for assignment, scored in zip(assignments, scores.results, strict=True):
            trace_id = assignment.record.trace.trace_id
            if is_held_up(scored):
                held_up.add(trace_id)
            # Of a panel, some may have voted before one was held up.
            if scored.usage.input_tokens or (scored.usage.calls and not is_held_up(scored)):
                paid.add(trace_id)
        self.left_out = self.left_out or not held_up <= paid
        return held_up - paid

    async def through(
        self, items: Sequence[Item], judged: Callable[[Sequence[Item]], Coroutine[Any, Any, list[Unit]]]
    ) -> bool:
        """Judge chunk after chunk, some at once, and commit them in their order; False when told to stop before the end.

        Ends early, too, when the configuration keeps all of a chunk from being judged.
        """
        left, before = deque(portions(items, self.chunk_size)), self.left_out
        underway: deque[asyncio.Task[list[Unit]]] = deque()
        try:
            while left or underway:
                while left and len(underway) < CHUNKS_AT_ONCE and not self.stopping:
                    underway.append(asyncio.create_task(judged(left.popleft())))
                if not underway:
                    return False
                units = await underway[0]
                underway.popleft()
                await self.in_thread(self.commit, units)
                self.parts.committed()
                if self.left_out and not before and not units:
                    left.clear()  # what is underway may be paid for already
        finally:
            for task in underway:
                task.cancel()
            await asyncio.gather(*underway, return_exceptions=True)
        return True

    @property
    def stopping(self) -> bool:
        """Whether to leave the rest to the next tick, or to the workers among whom it has been shared out since."""
        return self.parts.stopping() or self.book.shards != self.parts.shard.count

    @property
    def chunk_size(self) -> int:
        """How many traces are judged together."""
        waits = any(active.scorer.waits for active in self.parts.active)
        return CHUNK_TRACES_JUDGED if waits else CHUNK_TRACES

    def result(
        self,
        assignment: Assignment,
        pending: Pending,
        scored: Scored,
        now: datetime,
        *,
        revision: int = 0,
        attempts: int = 0,
        upto: datetime | None = None,
        scope: str = LIVE,
    ) -> Row:
        """The row of a result."""
        return result_row(
            assignment.record.target,
            pending,
            scored,
            scorer=assignment.scorer.name,
            version=assignment.scorer.version,
            source_type=assignment.scorer.source_type,
            scope=scope,
            run_id=self.run_id,
            now=now,
            revision=revision,
            attempts=attempts,
            upto=upto,
        )

    def count(self, assignment: Assignment, scored: Scored) -> None:
        """Count a result, and what it took."""
        self.summary.count(assignment.scorer.name, assignment.scorer.version, scored.outcome)
        self.summary.spend(scored)


def without_strays(book: Book, found: Mapping[str, Pending]) -> dict[str, Pending]:
    """Without late spans, days from their root, of what live decided when it was: such a trace lies elsewhere."""
    rootless = {trace_id for trace_id, pending in found.items() if not has_ended_root(pending.spans)}
    strays = {
        row.target_id
        for row in book.decided(rootless).values()
        if row.trace_start is not None and row.trace_start.date() not in days_around([found[row.target_id]])
    }
    return {trace_id: pending for trace_id, pending in found.items() if trace_id not in strays}


def _is_turn(row: Row) -> bool:
    """Whether a row decides a trace of a session; what was decided before and is only told again has a `seq`."""
    return row.target_type == "TRACE" and row.state == "done" and row.session_id is not None and not row.seq


def is_ours(row: Row, shard: Shard) -> bool:
    """Whether an open row is for this worker to look at; a session may have turns in every shard."""
    return shard.holds(row.target_id if row.target_type == "SESSION" else row.trace_id or row.target_id)


def is_due(row: Row, by_name: Mapping[str, Active], now: datetime) -> bool:
    """Whether an open row is to be looked at now; one of a version no longer in force always is."""
    if row.state != "waiting":
        active = by_name.get(row.scorer or "")
        if active is None or active.scorer.version != row.version:
            return True
        if active.paused:
            return False
        if waits_in_vain(row, by_name):
            return waited_too_long(row, now)
    return row.due is not None and row.due <= now


def waits_in_vain(row: Row, by_name: Mapping[str, Active]) -> bool:
    """Whether the budget has no room for what waits for it."""
    active = by_name.get(row.scorer or "")
    current = active is not None and active.scorer.version == row.version
    return active is not None and current and waits_for_budget(row) and not active.affords(row)


def _where(rows: Iterable[Row]) -> tuple[set[str], set[int], tuple[datetime, datetime] | None]:
    """Which traces some rows speak of, in which commits, around which time (None: nobody knows)."""
    rows = list(rows)
    starts = [row.trace_start for row in rows if row.trace_start]
    around = (min(starts), max(starts)) if starts and len(starts) == len(rows) else None
    ids = {row.trace_id for row in rows if row.trace_id}
    return ids, {commit for row in rows for commit in row.commits}, around
