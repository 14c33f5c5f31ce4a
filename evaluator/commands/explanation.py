"""Why a trace has the results it has, and why it lacks the others."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import orjson

from evaluator.dataset.selection import SelectionRule, select
from evaluator.decisions import newest_revisions
from evaluator.notes import EVERY_JUDGE, CatchUp, catch_ups, paused, scoring_begun
from evaluator.ports import Book, LedgerPort, Spans, SpanSource
from evaluator.shards import shards_of
from evaluator.tables.rows import Row, State
from evaluator.traces.assembly import Pending, assemble, gather, has_ended_root

Told = (
    State
    | Literal[
        "filtered", "sampled out", "skipped", "not scored", "not read", "out of scope", "forgotten", "unknown"
    ]
)

WAITING_FOR = {
    "session_idle": "it may go on",
    "no_root": "its root span has not arrived",
    "root_not_ended": "its root span has not ended",
    "settling": "spans of it arrived a moment ago",
}
FORGOTTEN_WHY = "what was known of it was erased (`evaluator forget`), and it is not judged again; since"
AGAIN = {"paused": "after `evaluator resume`", "budget": "when the budget has room"}
"""When what was held back is judged; all else at the next tick."""

PASSED_OVER = "the catch-up on the past (`since`) passed it over: "
NOT_THERE = "it was not in the table then, or the filter or the rate was another one"
"""Why it did where the rule of today lets the trace in."""
LATER = "this version came into force after the trace was decided: `evaluator eval` scores the past"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What is known of one scorer and the trace; `why` is a sentence, `reason` its word where there is no result."""

    scorer: str
    version: str | None
    state: Told
    why: str
    reason: str | None = None
    revision: int = 0
    value: Any = None
    passed: bool | None = None
    rationale: str | None = None
    attempts: int = 0
    due: datetime | None = None
    at: datetime | None = None
    span_id: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A trace's state, and that of every scorer for it. `found`: whether its spans are in the table.

    Where it is a turn of a session that is judged: `session_id`, and how that stands.
    """

    trace_id: str
    found: bool
    state: Told
    why: str
    scorers: Sequence[Explained]
    session_id: str | None = None
    session: str | None = None


def explain(
    trace_id: str,
    spans: SpanSource,
    ledger: LedgerPort,
    in_force: Mapping[str, str],
    rules: Sequence[SelectionRule] = (),
) -> Explanation:
    """Everything the ledger tells of a trace, and of the session that it is a turn of.

    `in_force` are the versions of the scorers of today, `rules` whom they look at. Raises TableError.
    """
    trace_id = trace_id.lower().removeprefix("tr-")
    book = ledger.open()
    rows = sorted(book.of_trace(trace_id), key=lambda row: (row.revision, row.seq))
    rows = [row for row in rows if row.target_type != "SESSION"]
    target = next((row for row in reversed(rows) if row.scorer is None), None)
    results = [row for row in rows if row.scorer is not None]
    snapshot = spans.open()
    pending = gather(snapshot.around([trace_id], None)).get(trace_id)
    found = pending is not None
    notes = book.notes()
    state, why = _of_target(target, found, book.cursor(snapshot.table_id) is None)
    if target is None and pending is not None:
        state, why = _never_decided(pending, book, snapshot, notes) or (state, why)
    known = catch_ups(notes, shards_of(book.shards)) if state in ("done", "out of scope") else []
    past = _past(pending, known, rules)
    of_sessions = {rule.name for rule in rules if rule.target == "session"}
    newest = newest_revisions(row.key for row in results)
    stands = _Standing(in_force, paused(notes))
    told = [stands.of(_of_result(row, newest[row.key[:4]])) for row in results]
    of_traces = {name: version for name, version in in_force.items() if name not in of_sessions}
    told += _passed_over(target, of_traces, {(row.scorer, row.version) for row in results}, past, state, why)
    # While the trace waits for late spans, nothing but its decision tells its session.
    turn = next((row for row in reversed(rows) if row.scorer is None and row.session_id), target)
    session = _Session(book, turn, {name: in_force[name] for name in of_sessions if name in in_force}, stands)
    told += session.told(state, why)
    order = {name: index for index, name in enumerate(in_force)}
    told.sort(key=lambda one: (order.get(one.scorer, len(order)), one.scorer, str(one.at)))
    return Explanation(
        trace_id=trace_id,
        found=found,
        state=state,
        why=why,
        scorers=told,
        session_id=session.session_id,
        session=session.why,
    )


class _Session:
    """What the ledger tells of the session that a trace is a turn of."""

    def __init__(
        self, book: Book, turn: Row | None, in_force: Mapping[str, str], stands: "_Standing"
    ) -> None:
        self._stands = stands
        self.session_id = turn.session_id if turn is not None else None
        self._in_force = in_force
        rows = book.of_session(self.session_id) if self.session_id else []
        self._results = [row for row in rows if row.scorer is not None]
        self._target = max(
            (row for row in rows if row.scorer is None), key=lambda row: (row.revision, row.seq), default=None
        )
        covered = self._target is not None and turn is not None and self._target.upto and turn.at
        self._after = bool(covered) and turn.at > self._target.upto  # type: ignore[union-attr,operator]  # both are known

    @property
    def why(self) -> str | None:
        """How the session stands, in a sentence."""
        target = self._target
        if self.session_id is None or (target is None and not self._in_force):
            return None
        if target is None:
            return "no judge of sessions was in force when this trace was decided"
        if target.state == "waiting":
            return f"waiting: {WAITING_FOR['session_idle']}; judged {_when(target.due)} unless another trace comes"
        after = "; this trace was decided after, with no judge of sessions in force" if self._after else ""
        return f"decided {_when(target.at)} as revision {target.revision}{after}"

    def told(self, state: Told, why: str) -> Iterable[Explained]:
        """What is known of each scorer of sessions; of the trace itself there is `state` and `why`."""
        newest = newest_revisions(row.key for row in self._results)
        for row in self._results:
            one = self._stands.of(_of_result(row, newest[row.key[:4]]))
            yield replace(one, session_id=self.session_id)
        known = {(row.scorer, row.version) for row in self._results}
        target = self._target
        if target is not None and target.state == "done":
            told = _passed_over(target, self._in_force, known, {}, state, why)
            yield from (replace(one, session_id=self.session_id) for one in told)
            return
        for name, version in self._in_force.items():
            if (name, version) in known:
                continue
            if target is not None:
                yield Explained(
                    scorer=name,
                    version=version,
                    state="waiting",
                    why=f"its session may go on; judged {_when(target.due)}",
                    session_id=self.session_id,
                )
            elif state == "done" and self.session_id is None:
                yield Explained(
                    scorer=name, version=version, state="skipped", why="the trace names no session"
                )
            else:
                yield Explained(
                    scorer=name,
                    version=version,
                    state="not scored" if state == "done" else state,
                    why=LATER if state == "done" else why,
                )


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the guidelines and the operator make of a result today."""

    in_force: Mapping[str, str]
    paused: Set[str]

    def of(self, one: Explained) -> Explained:
        """The same, and whether its version is no longer in force, or its judge is paused while it is open."""
        why = one.why
        if one.state in ("scored", "unscored") and one.scorer not in self.in_force:
            why += "; nothing of this name is in force any more"
        elif one.state in ("scored", "unscored") and self.in_force[one.scorer] != one.version:
            why += f"; version {self.in_force[one.scorer]} is in force now"
        elif one.due is not None and self.paused & {one.scorer, EVERY_JUDGE}:
            why += f"; paused: {AGAIN['paused']}"
        return replace(one, why=why)


def _never_decided(
    pending: Pending, book: Book, spans: Spans, notes: Mapping[str, Row]
) -> tuple[Told, str] | None:
    """Why a trace that is in the table will not be decided, if that is so."""
    floor, begun = book.floor, scoring_begun(notes, spans.table_id)
    if floor is not None and pending.latest is not None and pending.latest < floor:
        return "out of scope", (
            f"it ended before {_when(floor)}, where the ledger's memory begins (`start`, `retention`); "
            "`evaluator eval` scores the past"
        )
    if begun is not None and book.cursor(spans.table_id) == spans.version:
        return "out of scope", (
            f"it was there before scoring began at {_when(begun)} with what arrives from then on (`start`); "
            "`evaluator eval` scores the past"
        )
    return None


def _of_target(target: Row | None, found: bool, never_ticked: bool) -> tuple[Told, str]:
    if target is None and not found:
        return "unknown", "the spans table holds no span of it"
    if target is None:
        when = (
            "no tick has come to its end yet"
            if never_ticked
            else "it arrived after the last tick or before scoring began, or a judge cannot work as it is configured"
        )
        return "not read", f"{when}: the next tick reads what is new, `evaluator eval` scores the past"
    if target.forgotten:
        return "forgotten", f"{FORGOTTEN_WHY} {_when(target.at)}"
    if target.state == "waiting":
        return (
            "waiting",
            f"{WAITING_FOR.get(target.reason or '', target.reason)}; looked at again {_when(target.due)}",
        )
    incomplete = f" ({target.reason})" if target.reason else ""
    return "done", f"decided {_when(target.at)}{incomplete}"


def _passed_over(
    target: Row | None,
    in_force: Mapping[str, str],
    known: set[tuple[str | None, str | None]],
    past: Mapping[tuple[str, str], str],
    state: Told,
    why: str,
) -> Iterable[Explained]:
    """The scorers without a result of their own for the trace."""
    if target is None or target.state != "done" or target.forgotten:
        for name, version in in_force.items():
            if (name, version) not in known:
                told = past.get((name, version), why)
                yield Explained(scorer=name, version=version, state=state, why=told)
        return
    decided: dict[str, str] = orjson.loads(target.set or "{}")
    skipped: dict[str, str] = orjson.loads(target.skipped or "{}")
    for name, version in decided.items():
        if name in skipped:
            yield Explained(
                scorer=name,
                version=version,
                state=_skip_state(skipped[name]),
                why=skipped[name],
                at=target.at,
            )
    for name, version in in_force.items():
        if (name, version) not in known and decided.get(name) != version:
            yield Explained(
                scorer=name,
                version=version,
                state="not scored",
                why=past.get((name, version), LATER),
            )


def _past(
    pending: Pending | None, known: Iterable[CatchUp], rules: Sequence[SelectionRule]
) -> dict[tuple[str, str], str]:
    """What became of a trace in the past that versions of scorers catch up on, where it is in their range."""
    if pending is None:
        return {}
    trace = assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))
    began = trace.start_time
    if began is None:
        return {}
    ranged = [one for one in known if one.start <= began < one.end]
    [selection] = select([trace], rules if ranged else [])
    return {
        (one.scorer, one.version): PASSED_OVER + selection.skipped.get(one.scorer, NOT_THERE)
        if one.upto > began
        else f"the catch-up on the past (`since`) has come to {_when(one.upto)} and will come to it"
        for one in ranged
    }


def _skip_state(reason: str) -> Told:
    if reason == "filtered":
        return "filtered"
    return "sampled out" if reason == "sampled out" else "skipped"


def _of_result(row: Row, newest: int) -> Explained:
    """What is known of a result; `newest` is the newest revision by the same version on the same target."""
    match row.state:
        case "scored" | "unscored" if row.revision < newest:
            told = f"scored {_when(row.at)}" if row.state == "scored" else f"{row.reason}: {row.error}"
            why = f"{told}; revision {newest} stands in its place"
        case "scored":
            why = f"scored {_when(row.at)}"
        case "deferred":
            why = f"deferred ({row.reason}): {row.error}; again {AGAIN.get(row.reason or '', 'at the next tick')}"
        case "unscored" if row.due is not None:
            why = f"{row.reason}: {row.error}; tried {row.attempts} times, again {_when(row.due)}"
        case "unscored":
            why = f"{row.reason}: {row.error}; not tried again (`evaluator retry` puts it up)"
        case _:
            why = row.reason or ""
    return Explained(
        scorer=row.scorer or "",
        version=row.version,
        state=row.state,
        why=why,
        reason=None if row.state == "scored" else row.reason,
        revision=row.revision,
        value=orjson.loads(row.value) if row.value else None,
        passed=row.passed,
        rationale=row.rationale,
        attempts=row.attempts,
        due=row.due,
        at=row.at,
        span_id=row.span_id,
    )


def _when(moment: datetime | None) -> str:
    return "at the next tick" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z"
