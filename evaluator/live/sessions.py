"""The sessions that are idle: judged with all of their turns, and judged again when they go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from evaluator.dataset.selection import Selection, select_sessions
from evaluator.decisions import (
    done_row,
    gone_row_of_target,
    newest_revisions,
    nothing_new_row,
    result_key,
)
from evaluator.live.conversations import Conversation, conversations
from evaluator.live.work import Work, is_ours
from evaluator.score import Assignment
from evaluator.tables.rows import Key, Row, Unit, newest_of_each

LATEST = datetime.max.replace(tzinfo=UTC)


def idle_sessions(work: Work) -> list[Row]:
    """The sessions that this worker is to judge now, in the order of their beginnings: so a chunk reads a short time."""
    now = work.parts.clock()
    idle = [
        row
        for row in work.sessions.values()
        if row.due is not None and row.due <= now and is_ours(row, work.parts.shard)
    ]
    return sorted(idle, key=lambda row: row.trace_start or LATEST)


class Sessions:
    """The sessions that a tick finds idle, each judged as one.

    The work is to be begun after the turns were decided: what came to a session since then puts off its judging.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._parts = work.parts

    async def judge(self) -> None:
        """Judge what is idle."""
        await self._work.through(idle_sessions(self._work), self._judge)

    async def _judge(self, waits: Sequence[Row]) -> list[Unit]:
        """The units that decide some idle sessions."""
        work = self._work
        idle, ended = await work.in_thread(self._read, waits)
        sessions = [one.talk.session for one in idle]
        rules = [active.rule for active in self._parts.active]
        selections = await work.in_thread(select_sessions, sessions, rules)
        states = await work.in_thread(work.book.of_sessions, {one.wait.target_id for one in idle})
        assignments = self._assignments(idle, selections, states)
        scores = await work.score(assignments)
        now = self._parts.clock()
        known = newest_revisions(states)
        results: dict[str, list[Row]] = {one.wait.target_id: [] for one in idle}
        of_session = {one.wait.target_id: one for one in idle}
        left_out = work.left_as_they_are(assignments, scores)
        for assignment, scored in zip(assignments, scores.results, strict=True):
            target, scorer = assignment.record.target, assignment.scorer
            one = of_session[target.target_id]
            key = result_key(target, scorer.name, scorer.version)
            revision = max(one.wait.revision, known.get(key[:4], -1) + 1)
            row = work.result(
                assignment, one.talk.pending, scored, now, revision=revision, upto=one.talk.upto
            )
            results[target.target_id].append(row)
            if target.trace_id in left_out:
                work.summary.spend(scored)
            else:
                work.count(assignment, scored)
        units = [*ended]
        for one, selection in zip(idle, selections, strict=True):
            if one.talk.record.target.trace_id in left_out:
                continue
            session_id = one.wait.target_id
            work.summary.sessions += 1
            work.summary.skipped.update(selection.skipped.values())
            done = self._done(one, selection, now)
            units.append([done, *results[session_id], *work.superseded("SESSION", session_id)])
        return units

    def _read(self, waits: Sequence[Row]) -> tuple[list["_Idle"], list[Unit]]:
        """The sessions that have something new to judge, and the units that end the waits of the others."""
        work = self._work
        found = conversations(work.book, work.spans, waits)
        judged = newest_of_each("SESSION", work.book.of_sessions([wait.target_id for wait in waits]))
        idle, ended = [], []
        for wait in waits:
            talk, before = found.get(wait.target_id), judged.get(wait.target_id)
            if talk is None:
                ended.append([gone_row_of_target(wait, work.of_sessions, run_id=work.run_id)])
            elif before is not None and before.upto and talk.upto and talk.upto <= before.upto:
                ended.append([nothing_new_row(wait, before, run_id=work.run_id)])
            else:
                idle.append(_Idle(wait=wait, talk=talk))
        return idle, ended

    def _assignments(
        self, idle: Sequence["_Idle"], selections: Sequence[Selection], states: Mapping[Key, Row]
    ) -> list[Assignment]:
        """The work on some sessions; what an `eval` has scored already, all turns included, is not scored again."""
        scorers = {active.scorer.name: active.scorer for active in self._parts.active}
        covered: dict[tuple[object, ...], datetime] = {}
        for key, row in states.items():
            if row.state == "scored" and row.upto is not None:
                covered[key[:4]] = max(row.upto, covered.get(key[:4], row.upto))
        assignments = []
        for one, selection in zip(idle, selections, strict=True):
            for name, record in selection.work:
                key = result_key(record.target, name, scorers[name].version)
                upto = covered.get(key[:4])
                if upto is not None and one.talk.upto is not None and upto >= one.talk.upto:
                    self._work.summary.reused += 1
                    continue
                assignments.append(Assignment(scorer=scorers[name], record=record))
        return assignments

    def _done(self, one: "_Idle", selection: Selection, now: datetime) -> Row:
        return done_row(
            one.talk.record.target,
            one.talk.pending,
            in_force=self._work.of_sessions,
            skipped=selection.skipped,
            run_id=self._work.run_id,
            now=now,
            incomplete=one.talk.session.whole.incomplete,
            revision=one.wait.revision,
            upto=one.talk.upto,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Idle:
    """A session that is to be judged: its wait, and what it has come to."""

    wait: Row
    talk: Conversation
