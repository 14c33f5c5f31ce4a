"""Why a trace has the results it has, and why it lacks the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from evaluator.ports import LedgerPort, SpanSource
from evaluator.tables.rows import Row, State
from evaluator.traces.assembly import gather

Told = State | Literal["filtered", "sampled out", "skipped", "not scored", "not read", "unknown"]

WAITING_FOR = {
    "no_root": "its root span has not arrived",
    "root_not_ended": "its root span has not ended",
    "settling": "spans of it arrived a moment ago",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What is known of one scorer and the trace; `why` is a sentence."""

    scorer: str
    version: str | None
    state: Told
    why: str
    revision: int = 0
    value: Any = None
    passed: bool | None = None
    rationale: str | None = None
    attempts: int = 0
    due: datetime | None = None
    at: datetime | None = None
    span_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A trace's state, and that of every scorer for it. `found`: whether its spans are in the table."""

    trace_id: str
    found: bool
    state: Told
    why: str
    scorers: Sequence[Explained]


def explain(trace_id: str, spans: SpanSource, ledger: LedgerPort, in_force: Mapping[str, str]) -> Explanation:
    """Everything the ledger tells of a trace; `in_force` are the versions of the scorers of today.

    Raises TableError.
    """
    trace_id = trace_id.lower().removeprefix("tr-")
    book = ledger.open()
    rows = sorted(book.of_trace(trace_id), key=lambda row: row.seq)
    target = next((row for row in reversed(rows) if row.scorer is None), None)
    results = [row for row in rows if row.scorer is not None]
    snapshot = spans.open()
    found = trace_id in gather(snapshot.around([trace_id], None))
    state, why = _of_target(target, found, book.cursor(snapshot.table_id) is None)
    told = [_of_result(row) for row in results]
    told += _passed_over(target, in_force, {(row.scorer, row.version) for row in results}, state, why)
    order = {name: index for index, name in enumerate(in_force)}
    told.sort(key=lambda one: (order.get(one.scorer, len(order)), one.scorer, str(one.at)))
    return Explanation(trace_id=trace_id, found=found, state=state, why=why, scorers=told)


def _of_target(target: Row | None, found: bool, never_ticked: bool) -> tuple[Told, str]:
    if target is None and not found:
        return "unknown", "the spans table holds no span of it"
    if target is None:
        when = (
            "no tick has run yet"
            if never_ticked
            else "it arrived after the last tick, or before scoring began"
        )
        return "not read", f"{when}: the next tick reads what is new, `evaluator eval` scores the past"
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
    state: Told,
    why: str,
) -> Iterable[Explained]:
    """The scorers without a result of their own for the trace."""
    if target is None or target.state != "done":
        for name, version in in_force.items():
            if (name, version) not in known:
                yield Explained(scorer=name, version=version, state=state, why=why)
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
                why="this version came into force after the trace was decided: `evaluator eval` scores the past",
            )


def _skip_state(reason: str) -> Told:
    if reason == "filtered":
        return "filtered"
    return "sampled out" if reason == "sampled out" else "skipped"


def _of_result(row: Row) -> Explained:
    match row.state:
        case "scored":
            why = f"scored {_when(row.at)}"
        case "deferred":
            why = f"deferred ({row.reason}): {row.error}"
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
