"""Spans in, whole traces out: which spans belong together, when they are all there, and what they make."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal, NamedTuple

from evaluator.telemetry import OWN
from evaluator.traces.conventions import step_of
from evaluator.traces.trace import Span, Step, Trace
from evaluator.traces.tree import Parents, by_time, in_order, innermost, outermost, parents_of


class Arrival(NamedTuple):
    """A span, when it arrived, and the version of the spans table that brought it. A tuple, as a span is."""

    span: Span
    arrived: datetime
    commit: int


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What has arrived of a trace: each span once, the first and the last arrival, the commits that held it.

    Without slots: its times are worked out once, and asked for by each of its rows.
    """

    trace_id: str
    spans: tuple[Span, ...]
    first: datetime
    last: datetime
    commits: tuple[int, ...]

    @cached_property
    def earliest(self) -> datetime | None:
        """When its first span began; None when no span tells a possible time."""
        starts = (span.start_time_unix_nano for span in self.spans)
        return _moment(min((start for start in starts if start), default=None))

    @cached_property
    def latest(self) -> datetime | None:
        """The last time that its spans tell."""
        times = (span.end_time_unix_nano or span.start_time_unix_nano for span in self.spans)
        return _moment(max((time for time in times if time), default=None))


def gather(arrivals: Iterable[Arrival]) -> dict[str, Pending]:
    """The traces that spans belong to, by trace id; the order of arrivals does not matter.

    The evaluator's own spans, should they ever get into the table, belong to none: judged, they would make further ones.
    """
    of_trace: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        if OWN in arrival.span.resource:
            continue
        of_trace.setdefault(arrival.span.trace_id, []).append(arrival)
    return {
        trace_id: Pending(
            trace_id=trace_id,
            spans=_each_once(arrival.span for arrival in group),
            first=min(arrival.arrived for arrival in group),
            last=max(arrival.arrived for arrival in group),
            commits=tuple(sorted({arrival.commit for arrival in group})),
        )
        for trace_id, group in of_trace.items()
    }


def join(one: Pending, other: Pending) -> Pending:
    """Two parts of the same trace as one, whichever came first."""
    return Pending(
        trace_id=one.trace_id,
        spans=_each_once((*one.spans, *other.spans)),
        first=min(one.first, other.first),
        last=max(one.last, other.last),
        commits=tuple(sorted({*one.commits, *other.commits})),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Whole, or waited for long enough (`incomplete`)."""

    incomplete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Not yet: when to look again if nothing arrives, and what for."""

    due: datetime
    reason: Literal["no_root", "root_not_ended", "settling"]


def readiness(pending: Pending, *, now: datetime, settle: timedelta, max_wait: timedelta) -> Ready | Waiting:
    """Whether a trace can be judged: its root has ended and nothing of it arrived for `settle`.

    `max_wait` from its first arrival bounds the waiting for a root, and for a trace that still grows. Only
    arrivals count; the times in the spans may be anything.
    """
    root = _main_root(pending.spans)
    ended = has_ended_root(pending.spans)
    settled = min(pending.last, now) + settle
    patience = min(pending.first, now) + max_wait
    if ended and settled <= now:
        return Ready(incomplete=False)
    if patience <= now:
        return Ready(incomplete=True)
    if ended:
        return Waiting(due=min(settled, patience), reason="settling")
    return Waiting(due=patience, reason="no_root" if root is None else "root_not_ended")


def has_ended_root(spans: Iterable[Span]) -> bool:
    """Whether these are, so far as spans can tell, the whole of a trace: its main root is there and has ended."""
    root = _main_root(spans)
    return root is not None and root.end_time_unix_nano is not None


def assemble(trace_id: str, spans: Iterable[Span], *, incomplete: bool) -> Trace:
    """The trace that spans make, in whatever order they come; duplicates add nothing.

    The main root's word counts for the whole. What it does not say is taken from below: the request and the
    response from the first and the last of the outermost agent and LLM spans that tell one, everything else
    from the first span that tells. Without a root there is only what is below.
    """
    kept = _each_once(spans)
    parents = parents_of(kept)
    steps = tuple(map(step_of, in_order(kept, parents)))
    root_span = _main_root(kept)
    root = next((step for step in steps if step.span is root_span), None)
    told = steps if root is None else (root, *steps)
    llm = [step for step in steps if step.span_type == "LLM"]
    request, response = _exchange(root, steps, parents)
    start, end, duration = _times(root_span, kept)
    tools, tool_calls = _tools(root, steps, llm, parents)
    return Trace(
        trace_id=trace_id,
        service_name=_first(told, lambda step: step.span.service_name) or "",
        name=_first(told, lambda step: step.span.name) or "",
        session_id=_first(told, lambda step: step.session_id),
        user_id=_first(told, lambda step: step.user_id),
        status="UNSET" if root_span is None else root_span.status,
        status_message="" if root_span is None else root_span.status_message,
        start_time=start,
        end_time=end,
        duration_ms=duration,
        request=request,
        response=response,
        model=_first((*reversed(innermost(llm, parents)), *told[:1]), lambda step: step.model),
        models=_distinct(step.model for step in llm),
        input_tokens=_total(llm, parents, lambda step: step.input_tokens),
        output_tokens=_total(llm, parents, lambda step: step.output_tokens),
        total_tokens=_total(llm, parents, _tokens),
        cost_usd=_total(llm, parents, lambda step: step.cost_usd),
        span_count=len(steps),
        llm_calls=len(innermost(llm, parents)),
        tool_calls=tool_calls,
        tools=tools,
        retrievals=sum(step.span_type == "RETRIEVER" for step in steps),
        error_count=sum(step.span.status == "ERROR" for step in steps),
        tags={key: value for step in reversed(told) for key, value in step.tags.items()},
        attributes={} if root_span is None else root_span.attributes,
        incomplete=incomplete,
        root_span_id=None if root_span is None else root_span.span_id,
        steps=steps,
    )


def _each_once(spans: Iterable[Span]) -> tuple[Span, ...]:
    """One span for each id, in the order of time: of several the one that ended, that took longest, that
    says most. The last word is a comparison of their texts, so that the order of arrival has none."""
    kept: dict[str, Span] = {}
    for span in spans:
        known = kept.setdefault(span.span_id, span)
        if known is not span and known != span and _completeness(span) > _completeness(known):
            kept[span.span_id] = span
    return tuple(sorted(kept.values(), key=by_time))


def _completeness(span: Span) -> tuple[bool, float, int, int, str]:
    ended = span.end_time_unix_nano is not None
    said = len(span.attributes), len(span.events)
    return (ended, span.duration_ms or 0.0, *said, repr(span))


def _main_root(spans: Iterable[Span]) -> Span | None:
    """The span without a parent; of several the earliest of those that ended, else the earliest.

    A span that names itself as its parent, or stands in a cycle, is no root.
    """
    roots = [span for span in spans if not span.parent_span_id]
    return min(roots, key=lambda span: (span.end_time_unix_nano is None, by_time(span)), default=None)


def _total(llm: Sequence[Step], parents: Parents, told: Callable[[Step], Any]) -> Any:
    """The sum over the LLM spans that tell, None when none does.

    A framework's LLM span around a client's LLM span reports the same call again, so only the innermost of
    those that tell are counted: the one nearest to the provider knows best, and no call is counted twice.
    """
    telling = [step for step in llm if told(step) is not None]
    return sum(told(step) for step in innermost(telling, parents)) if telling else None


def _tokens(step: Step) -> int | None:
    if step.total_tokens is not None or (step.input_tokens is None and step.output_tokens is None):
        return step.total_tokens
    return (step.input_tokens or 0) + (step.output_tokens or 0)


def _exchange(root: Step | None, steps: Sequence[Step], parents: Parents) -> tuple[str | None, str | None]:
    """What was asked and what was answered: by the root, else by the agents and models right below it."""
    request, response = (None, None) if root is None else (root.request, root.response)
    below = [step for step in steps if step.span_type in ("AGENT", "LLM") and step is not root]
    if request is None:
        asked = outermost([step for step in below if step.request is not None], parents)
        request = _first(asked, lambda step: step.request)
    if response is None:
        answered = outermost([step for step in below if step.response is not None], parents)
        response = _first(reversed(answered), lambda step: step.response)
    broken = root is not None and root.span.status == "ERROR"
    if response is None and not broken:  # nothing but tool calls: they are what came out
        closing = below if root is None else [*below, root]
        response = _first(reversed(closing), lambda step: step.output)
    return request, response


def _tools(
    root: Step | None, steps: Sequence[Step], llm: Sequence[Step], parents: Parents
) -> tuple[tuple[str, ...], int]:
    """The names of the tools in the order of their first use, and the number of calls."""
    spans = [step for step in steps if step.span_type == "TOOL"]
    if spans:
        return _distinct(step.tool_name for step in spans), len(spans)
    asking = innermost([step for step in llm if step.tool_calls], parents) or ([root] if root else [])
    calls = [call for step in asking for call in step.tool_calls]
    known = {call["id"] for call in calls if "id" in call}
    unnamed = sum("id" not in call for call in calls)
    return _distinct(call["name"] for call in calls), len(known) + unnamed


def _times(root: Span | None, spans: Sequence[Span]) -> tuple[datetime | None, datetime | None, float | None]:
    """The root's start, end and duration; where it lacks one, the earliest start and the latest end."""
    starts = [span.start_time_unix_nano for span in spans if span.start_time_unix_nano is not None]
    ends = [span.end_time_unix_nano for span in spans if span.end_time_unix_nano is not None]
    whole = Span(
        trace_id="",
        span_id="",
        start_time_unix_nano=(root and root.start_time_unix_nano) or min(starts, default=None),
        end_time_unix_nano=(root and root.end_time_unix_nano) or max(ends, default=None),
    )
    return _moment(whole.start_time_unix_nano), _moment(whole.end_time_unix_nano), whole.duration_ms


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(nanos: int | None) -> datetime | None:
    """A time to the microsecond; None for one that is missing or that no calendar has."""
    try:
        return None if nanos is None else _EPOCH + timedelta(microseconds=nanos // 1000)
    except OverflowError:
        return None


def _first(steps: Iterable[Step], told: Callable[[Step], str | None]) -> str | None:
    """The first word; an empty text is one only when nobody says more."""
    words = [word for word in map(told, steps) if word is not None]
    return next((word for word in words if word), words[0] if words else None)


def _distinct(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))
