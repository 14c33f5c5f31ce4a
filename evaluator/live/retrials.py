"""Trying again: what is due, what waits for the budget, and what is open for a version no longer in force."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from evaluator.dataset.records import Record, record_of
from evaluator.dataset.selection import select, select_sessions
from evaluator.decisions import (
    GIVEN_UP_AFTER,
    SUPERSEDED,
    days_around,
    given_up_row,
    gone_row,
    newest_revisions,
    replaced_row,
    result_key,
    waits_for_budget,
)
from evaluator.feedback import Reason, Scored, Unscored
from evaluator.live.conversations import conversations
from evaluator.live.work import Work, is_due, waits_in_vain
from evaluator.score import Active, Assignment
from evaluator.tables.rows import Key, Row, Unit
from evaluator.traces.assembly import Pending, assemble, has_ended_root
from evaluator.traces.trace import Trace

TRY_SLOW_FOR = timedelta(minutes=10)
"""How long a tick goes on with the backlog of a judge whose provider cannot keep up: what is new waits for its end."""


class Retrials:
    """The open results that a tick found, tried once more."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._by_name = {active.scorer.name: active for active in work.parts.active}
        self._resting: set[str] = set()
        self._given_up = 0
        self._taken_over: set[Key] = set()
        """The results of versions in force that are asked for in the place of older ones."""

    async def catch_up(self) -> None:
        """Score what waits for the budget, the oldest first and before what is new; give up what waited too long."""
        await self._try_all([row for row in self._work.due.values() if waits_for_budget(row)])
        if self._given_up:
            self._work.summary.notes.append(
                f"{self._given_up} results were given up: the budget had no room for them in {GIVEN_UP_AFTER.days} days "
                "(`evaluator retry` puts them up again)"
            )

    async def try_what_is_due(self) -> None:
        """Score again what is due, and pass to the version in force what is open for an older one."""
        await self._try_all([row for row in self._work.due.values() if not waits_for_budget(row)])

    async def _try_all(self, rows: Sequence[Row]) -> None:
        now = self._work.parts.clock()
        await self._work.through([row for row in rows if is_due(row, self._by_name, now)], self._try)

    async def _try(self, rows: Sequence[Row]) -> list[Unit]:
        """The units of one more attempt for some open results; those of older versions pass to the one in force."""
        work = self._work
        # The budget is asked anew: nothing is read and rendered for what an earlier chunk left no room for.
        due = [
            row
            for row in rows
            if row.scorer not in self._resting
            and is_due(row, self._by_name, work.began)
            and not (row.target_type == "SESSION" and row.target_id in work.sessions)  # it is judged anew
        ]
        in_vain = {row.key: row for row in due if waits_in_vain(row, self._by_name)}
        rows = [row for row in due if row.key not in in_vain]
        subjects = await work.in_thread(_Subjects, work, rows)
        targets = {row.target_id for row in rows}
        states = await work.in_thread(work.book.states, targets, days_around(subjects.pendings))
        # Others may have said something of it since the tick began, or a reply was lost.
        rows = [row for row in rows if row.key not in states or states[row.key].seq <= row.seq]
        newest = newest_revisions(states)
        retrials = [self._retrial(row, subjects, states, newest) for row in rows]
        assignments = [retrial.assignment for retrial in retrials if retrial.assignment]
        scores = await work.score(assignments)
        results = iter(scores.results)
        now = work.parts.clock()
        self._resting |= _tired(assignments, scores.results, now - work.began)
        units = [self._given_up_unit(row) for row in in_vain.values()]
        for retrial in retrials:
            unit = list(retrial.unit)
            if retrial.assignment is not None:
                scored = next(results)
                row, pending = retrial.row, subjects.pending(retrial.row)
                assert pending is not None
                unit.append(
                    work.result(
                        retrial.assignment,
                        pending,
                        scored,
                        now,
                        revision=row.revision,
                        attempts=0 if unit else row.attempts,
                        upto=subjects.upto(row),
                        scope=row.scope,
                    )
                )
                work.count(retrial.assignment, scored)
            if unit and not _says_the_same(unit, retrial.row):
                units.append(unit)
        return units

    def _given_up_unit(self, row: Row) -> Unit:
        given_up = given_up_row(row, run_id=self._work.run_id)
        self._given_up += 1
        told = Unscored(reason=Reason.BUDGET, detail=given_up.error or "")
        self._work.summary.count(row.scorer or "", row.version or "", told)
        return [given_up]

    def _retrial(
        self,
        row: Row,
        subjects: "_Subjects",
        states: Mapping[Key, Row],
        newest: Mapping[tuple[object, ...], int],
    ) -> "_Retrial":
        """What becomes of an open result: another attempt, a newer version in its place, or an end.

        `newest` has the newest revision of each version's result. A newer one supersedes it, by the same version or by that
        in force; what other versions said says nothing of this one.
        """
        run_id = self._work.run_id
        replaced = [replaced_row(row, run_id=run_id)]
        active = self._by_name.get(row.scorer or "")
        versions = {row.version, active.scorer.version if active else row.version}
        told = [newest.get((*row.key[:3], version), 0) for version in versions]
        if max(told) > row.revision:
            return _Retrial(row=row, unit=[replaced_row(row, run_id=run_id, reason=SUPERSEDED)])
        if active is None or active.rule.target != row.target_type.lower():
            return _Retrial(row=row, unit=replaced)
        record, scorer = subjects.record(row), active.scorer
        key = result_key(row.target, scorer.name, scorer.version, row.revision)
        is_in_force = scorer.version == row.version
        if not is_in_force:
            said = key in states and states[key].state != "replaced"
            if said or (record and not subjects.chosen(active, record)):
                return _Retrial(row=row, unit=replaced)
            if key in self._taken_over:  # once that has come, a tick ends this one
                return _Retrial(row=row, unit=[])
        if record is None:  # nor would a newer version find it
            return _Retrial(row=row, unit=[gone_row(row, run_id=run_id)])
        assignment = Assignment(scorer=scorer, record=record)
        if is_in_force:
            return _Retrial(row=row, unit=[], assignment=assignment)
        self._taken_over.add(key)
        return _Retrial(row=row, unit=replaced, assignment=assignment)


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
    """Whether a unit would only repeat what the ledger says: deferred for the same reason as before, at no cost."""
    if len(unit) > 1:
        return False  # another version has it now
    [new] = unit
    same = new.state == "deferred" == row.state and (new.reason, new.attempts) == (row.reason, row.attempts)
    return same and not new.calls


class _Subjects:
    """What some open results are about, each trace and session put together once; what is of one target is one record."""

    def __init__(self, work: Work, rows: Sequence[Row]) -> None:
        self._restored = work.restored(row for row in rows if row.target_type != "SESSION")
        of_sessions = [row for row in rows if row.target_type == "SESSION"]
        self._conversations = conversations(work.book, work.spans, of_sessions)
        self._traces: dict[str, Trace] = {}
        self._records: dict[tuple[str, str], Record | None] = {}
        self._chosen: dict[tuple[str, str], set[str]] = {}

    @property
    def pendings(self) -> list[Pending]:
        """The spans of all of them."""
        turns = [turn for talk in self._conversations.values() for turn in talk.turns]
        return [*self._restored.values(), *turns]

    def pending(self, row: Row) -> Pending | None:
        """The spans that a result is about; None where they are no longer there."""
        if row.target_type == "SESSION":
            talk = self._conversations.get(row.target_id)
            return None if talk is None else talk.pending
        return self._restored.get(row.trace_id or "")

    def upto(self, row: Row) -> datetime | None:
        """When the last turn of a session that a result is about was decided."""
        return self._conversations[row.target_id].upto if row.target_type == "SESSION" else None

    def record(self, row: Row) -> Record | None:
        """What a scorer sees of a target; None for one that is no longer there."""
        if row.target_type == "SESSION":
            talk = self._conversations.get(row.target_id)
            return None if talk is None else talk.record
        pending = self.pending(row)
        if pending is None:
            return None
        key = row.target_type, row.target_id
        if key not in self._records:
            self._records[key] = record_of(self._trace(pending), row.target)
        return self._records[key]

    def chosen(self, active: Active, record: Record) -> bool:
        """Whether a scorer gets a record."""
        key = active.scorer.name, record.target.target_id if record.session else record.trace.trace_id
        if key not in self._chosen:
            if record.session:
                [selection] = select_sessions([record.session], [active.rule])
            else:
                [selection] = select([record.trace], [active.rule])
            self._chosen[key] = selection.targets
        return record.target.target_id in self._chosen[key]

    def _trace(self, pending: Pending) -> Trace:
        if pending.trace_id not in self._traces:
            incomplete = not has_ended_root(pending.spans)
            self._traces[pending.trace_id] = assemble(pending.trace_id, pending.spans, incomplete=incomplete)
        return self._traces[pending.trace_id]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retrial:
    """An open result, the rows that come before its new one, and the attempt to be made, if any; neither: it stays open."""

    row: Row
    unit: Unit
    assignment: Assignment | None = None
