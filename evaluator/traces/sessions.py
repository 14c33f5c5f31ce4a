"""Traces in, the session that they are the turns of out."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

from evaluator.traces.trace import Session, Trace

LAST = datetime.max.replace(tzinfo=UTC)
Number = TypeVar("Number", int, float)


def session_of(session_id: str, traces: Iterable[Trace]) -> Session:
    """The session of some traces, at least one, in the order in which they began; one whose start nobody knows is last.

    Seen as one trace it has the id, the names and the attributes of its first turn, the first request and the last
    response, and the time from the first start to the last end. Tokens, cost and counts are sums over the turns. Its
    status is ERROR where that of a turn is.
    """
    turns = tuple(sorted(traces, key=lambda trace: (trace.start_time or LAST, trace.trace_id)))
    first, last = turns[0], turns[-1]
    speaks = next((turn for turn in turns if turn.status == "ERROR"), last)
    ends = [turn.end_time for turn in turns if turn.end_time is not None]
    end = max(ends, default=None)
    start = first.start_time
    whole = Trace(
        trace_id=first.trace_id,
        service_name=first.service_name,
        name=first.name,
        session_id=session_id,
        user_id=next((turn.user_id for turn in turns if turn.user_id), None),
        status=speaks.status,
        status_message=speaks.status_message,
        start_time=start,
        end_time=end,
        duration_ms=None if start is None or end is None else max((end - start).total_seconds(), 0.0) * 1000,
        request=next((turn.request for turn in turns if turn.request), None),
        response=next((turn.response for turn in reversed(turns) if turn.response), None),
        model=last.model,
        models=_each_once(model for turn in turns for model in turn.models),
        input_tokens=_total(turn.input_tokens for turn in turns),
        output_tokens=_total(turn.output_tokens for turn in turns),
        total_tokens=_total(turn.total_tokens for turn in turns),
        cost_usd=_total(turn.cost_usd for turn in turns),
        span_count=sum(turn.span_count for turn in turns),
        llm_calls=sum(turn.llm_calls for turn in turns),
        tool_calls=sum(turn.tool_calls for turn in turns),
        tools=_each_once(tool for turn in turns for tool in turn.tools),
        retrievals=sum(turn.retrievals for turn in turns),
        error_count=sum(turn.error_count for turn in turns),
        tags={key: value for turn in turns for key, value in turn.tags.items()},
        attributes=first.attributes,
        incomplete=any(turn.incomplete for turn in turns),
        root_span_id=first.root_span_id,
        steps=tuple(step for turn in turns for step in turn.steps),
    )
    return Session(session_id=session_id, turns=turns, whole=whole)


def _each_once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _total(values: Iterable[Number | None]) -> Number | None:
    """Their sum, None when nobody tells one."""
    told = [value for value in values if value is not None]
    return sum(told[1:], told[0]) if told else None
