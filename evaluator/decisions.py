"""What a wait, a decision and a result become in the ledger."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, assert_never

import orjson

from evaluator.feedback import Assessment, Feedback, Reason, Scored, SourceType, Target, Unscored, Usage
from evaluator.tables.rows import Key, Row, partition_day, widened
from evaluator.traces.assembly import Pending
from evaluator.traces.trace import Span

LIVE = "live"
LONGEST_TRACE = timedelta(days=1)
SPANS = "spans"
"""The metadata of a decided trace: which spans it was decided with."""
GONE = "its spans are no longer in the table"
OUT_OF_SCOPE = "what is left of it ended before scoring begins"
NOTHING_NEW = "no turn came since it was judged"
SUPERSEDED = "a newer revision stands in its place"
GIVEN_UP_AFTER = timedelta(days=7)
"""How long a result waits for the budget."""
RETRY_AFTER = (
    timedelta(0),
    timedelta(minutes=15),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(hours=24),
)
"""How long after a failed attempt the next one is due: at the next tick, then with growing distance."""


def next_attempt(attempts: int, now: datetime) -> datetime | None:
    """When what failed for the `attempts`th time is due again; None when it is given up."""
    return now + RETRY_AFTER[attempts - 1] if attempts <= len(RETRY_AFTER) else None


def waiting_row(pending: Pending, *, due: datetime, reason: str, now: datetime, revision: int = 0) -> Row:
    """A trace that is not ready: when to look again, and which commits hold its spans.

    Those of one that was decided before are found by their times.
    """
    return Row(
        day=partition_day(pending.earliest, now),
        scope=LIVE,
        target_type="TRACE",
        target_id=pending.trace_id,
        trace_id=pending.trace_id,
        state="waiting",
        reason=reason,
        due=due,
        first=pending.first,
        last=pending.last,
        commits=() if revision else pending.commits,
        trace_start=pending.earliest,
        revision=revision,
    )


def session_wait(turn: Row, known: Row | None, *, idle: timedelta, now: datetime) -> Row:
    """That a session went on with a decided trace, after what was known of it: it is looked at when it is idle."""
    row = Row(
        day=turn.day,
        scope=LIVE,
        target_type="SESSION",
        target_id=turn.session_id or "",
        trace_id=turn.trace_id,
        session_id=turn.session_id,
        state="waiting",
        reason="session_idle",
        due=min(turn.last or now, now) + idle,
        first=turn.first,
        last=turn.last,
        trace_start=turn.trace_start,
    )
    if known is None:
        return row
    revision = known.revision if known.state == "waiting" else known.revision + 1
    return replace(widened(row, known), revision=revision)


def done_row(
    target: Target,
    pending: Pending,
    *,
    in_force: Mapping[str, str],
    skipped: Mapping[str, str],
    run_id: str,
    now: datetime,
    incomplete: bool,
    revision: int = 0,
    upto: datetime | None = None,
) -> Row:
    """A target that is decided: the scorer versions in force, and which of them passed it over and why.

    Of a trace it remembers which spans there were; of a session, `upto` when its last turn was decided.
    """
    return Row(
        day=partition_day(pending.earliest, now),
        scope=LIVE,
        target_type=target.type,
        target_id=target.target_id,
        trace_id=target.trace_id,
        span_id=target.span_id,
        session_id=target.session_id,
        state="done",
        reason="incomplete" if incomplete else None,
        first=pending.first,
        last=pending.last,
        set=orjson.dumps(in_force).decode(),
        skipped=orjson.dumps(skipped).decode() if skipped else None,
        run_id=run_id,
        trace_start=pending.earliest,
        revision=revision,
        upto=upto,
        metadata=orjson.dumps({SPANS: spans_told(pending)}).decode() if target.type == "TRACE" else None,
    )


def spans_told(pending: Pending) -> str:
    """A hash of which spans a trace has, and when they ended: what arrives again changes nothing of it."""
    told = sorted(
        f"{span.span_id}:{span.end_time_unix_nano}"
        for span in pending.spans
        if is_near(span, pending.earliest)
    )
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def is_near(span: Span, start: datetime | None) -> bool:
    """Whether a span is one of a trace that began then: one more than a day away is not looked for with it."""
    nanos = span.start_time_unix_nano
    if start is None or nanos is None:
        return True
    return abs(nanos - start.timestamp() * 1e9) <= LONGEST_TRACE.total_seconds() * 1e9


def has_grown(done: Row, pending: Pending) -> bool:
    """Whether a decided trace has other spans than it was decided with; nobody knows of one that an older version decided."""
    if done.reason == GONE:
        return bool(pending.spans)
    told = orjson.loads(done.metadata or "{}").get(SPANS)
    return told is not None and told != spans_told(pending)


def still_done_row(done: Row, wait: Row) -> Row:
    """What ends the wait for late spans of a trace that was decided long ago: its decision, told again in its place."""
    return replace(done, day=wait.day, revision=wait.revision)


def result_key(target: Target, scorer: str, version: str, revision: int = 0) -> Key:
    """The key of a scorer version's result on a target."""
    return Key(target.type, target.target_id, scorer, version, revision)


def result_row(
    target: Target,
    pending: Pending,
    scored: Scored,
    *,
    scorer: str,
    version: str,
    source_type: SourceType,
    scope: str,
    run_id: str,
    now: datetime,
    revision: int = 0,
    attempts: int = 0,
    upto: datetime | None = None,
) -> Row:
    """What came of an attempt: scored, to be tried again, deferred, or finally unscored.

    `attempts` counts those made before this one. What a budget, a pause, a provider that is down or a
    key that has to be mended held back is deferred: that was no attempt, and is due at once.
    """
    usage = scored.usage
    return Row(
        day=partition_day(pending.earliest, now),
        scope=scope,
        target_type=target.type,
        target_id=target.target_id,
        trace_id=target.trace_id,
        span_id=target.span_id,
        session_id=target.session_id,
        scorer=scorer,
        version=version,
        revision=revision,
        first=pending.first,
        last=pending.last,
        run_id=run_id,
        source_type=source_type,
        model=usage.model,
        calls=usage.calls,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=usage.cost_usd,
        latency_ms=usage.latency_ms,
        metadata=orjson.dumps(dict(scored.metadata)).decode() if scored.metadata else None,
        trace_start=pending.earliest,
        upto=upto,
        **_told(scored.outcome, pending, attempts, now),
    )


def _told(outcome: Feedback | Unscored, pending: Pending, attempts: int, now: datetime) -> dict[str, Any]:
    """The columns that tell what came of an attempt, `attempts` before it."""
    match outcome:
        case Feedback():
            return {
                "state": "scored",
                "attempts": attempts + 1,
                "value": orjson.dumps(outcome.value).decode(),
                "passed": outcome.passed,
                "rationale": outcome.rationale,
            }
        case Unscored(reason=reason) if reason.held_back:
            told = {"state": "deferred", "due": now, "attempts": attempts}
        case Unscored(reason=reason):
            due = next_attempt(attempts + 1, now) if reason.transient else None
            told = {"state": "unscored", "due": due, "attempts": attempts + 1}
        case _:
            assert_never(outcome)
    return {**told, "reason": outcome.reason.value, "error": outcome.detail, "commits": pending.commits}


def without_spend(row: Row) -> Row:
    """The row for a restatement: what the attempt took is told once, by the row of the attempt."""
    return replace(
        row, calls=None, input_tokens=None, output_tokens=None, cost_usd=None, latency_ms=None, model=None
    )


def replaced_row(old: Row, *, run_id: str, reason: str = "version no longer in force") -> Row:
    """An open result in whose place another one stands: of a version that is no longer in force, or SUPERSEDED."""
    return replace(without_spend(old), state="replaced", reason=reason, due=None, run_id=run_id)


def waits_for_budget(row: Row) -> bool:
    return row.state == "deferred" and row.reason == Reason.BUDGET


def waited_too_long(row: Row, now: datetime) -> bool:
    """Whether a deferred result is to be given up; it has been due since it was deferred."""
    return row.due is not None and now - row.due >= GIVEN_UP_AFTER


def given_up_row(old: Row, *, run_id: str) -> Row:
    """A result for which the budget had no room in all that time."""
    return replace(
        without_spend(old),
        state="unscored",
        error=f"given up: {old.error}, for {GIVEN_UP_AFTER.days} days",
        due=None,
        metadata=None,
        run_id=run_id,
    )


def gone_row(old: Row, *, run_id: str) -> Row:
    """An open result whose trace is no longer in the spans table: nobody can judge it any more."""
    return replace(
        without_spend(old),
        state="unscored",
        reason=Reason.NOT_APPLICABLE.value,
        error=GONE,
        due=None,
        commits=(),
        run_id=run_id,
    )


def gone_row_of_target(old: Row, in_force: Mapping[str, str], *, run_id: str, reason: str = GONE) -> Row:
    """A waiting trace or session of which the spans table holds nothing (in scope) any more: decided, with nothing to
    judge."""
    return replace(
        old,
        state="done",
        reason=reason,
        due=None,
        commits=(),
        set=orjson.dumps(in_force).decode(),
        skipped=orjson.dumps(dict.fromkeys(in_force, reason)).decode(),
        run_id=run_id,
    )


def nothing_new_row(old: Row, judged: Row, *, run_id: str) -> Row:
    """The wait of a session to which no turn came since it was judged: decided, with nothing to judge anew."""
    return replace(old, state="done", reason=NOTHING_NEW, due=None, set="{}", upto=judged.upto, run_id=run_id)


def newest_revisions(states: Iterable[Key]) -> dict[tuple[object, ...], int]:
    """The newest known revision of each scorer version's result on each target."""
    newest: dict[tuple[object, ...], int] = {}
    for key in states:
        newest[key[:4]] = max(key.revision, newest.get(key[:4], 0))
    return newest


def days_around(pendings: Iterable[Pending]) -> set[date]:
    """The partitions that may know these traces: the days of their spans, and one on either side (R2)."""
    days: set[date] = set()
    for pending in pendings:
        for moment in (pending.earliest, pending.latest):
            if moment is not None and 1970 < moment.year < 9000:
                days |= days_beside([moment.astimezone(UTC).date()])
    return days


def days_beside(days: Iterable[date]) -> set[date]:
    """Some days, and one on either side of each."""
    return {day + timedelta(days=by) for day in days for by in (-1, 0, 1)}


def assessment_of(row: Row) -> Assessment | None:
    """What a row publishes: a result, or that there finally is none; None for what is still open."""
    if row.scorer is None or row.version is None or row.at is None or row.due is not None:
        return None
    if row.state == "scored" and row.value is not None:
        outcome: Feedback | Unscored = Feedback(
            value=orjson.loads(row.value), passed=row.passed, rationale=row.rationale or ""
        )
    elif row.state == "unscored":
        outcome = Unscored(reason=Reason(row.reason or Reason.SCORER_FAILED), detail=row.error or "")
    else:
        return None
    return Assessment(
        seq=row.seq,
        target=row.target,
        name=row.scorer,
        version=row.version,
        revision=row.revision,
        source_type=row.source_type or "CODE",
        scored=Scored(outcome=outcome, usage=_usage(row), metadata=orjson.loads(row.metadata or "{}")),
        run_id=row.run_id or "",
        at=row.at,
        trace_start=row.trace_start,
    )


def _usage(row: Row) -> Usage:
    return Usage(
        model=row.model,
        calls=row.calls or 0,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=row.cost_usd,
        latency_ms=row.latency_ms,
    )
