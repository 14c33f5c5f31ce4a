"""What a scorer sees: inputs, outputs, expectations and the trace they came from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluator.feedback import Target
from evaluator.traces.trace import Session, Step, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of an evaluation dataset. `inputs` and `outputs` are the trace's request and response as text.

    Where it is about a span, they are what went into that and came out of it; `place` is that of its step in the
    trace, which is its context. Where it is about a session, they are the requests and the responses of all its turns,
    and the trace is all of them seen as one.
    """

    target: Target
    trace: Trace
    inputs: str | None
    outputs: str | None
    expectations: Mapping[str, Any] = field(default_factory=dict)
    place: int | None = None
    session: Session | None = None

    @property
    def step(self) -> Step | None:
        """The step that it is about, where it is about one."""
        return None if self.place is None else self.trace.steps[self.place]

    @property
    def subject(self) -> str:
        """What it is about, in a word."""
        return self.target.type.lower()


def record_of_trace(trace: Trace, expectations: Mapping[str, Any] | None = None) -> Record:
    """The record of a whole trace."""
    target = Target(
        type="TRACE", target_id=trace.trace_id, trace_id=trace.trace_id, session_id=trace.session_id
    )
    return Record(
        target=target,
        trace=trace,
        inputs=trace.request,
        outputs=trace.response,
        expectations=expectations or {},
    )


def record_of_span(trace: Trace, place: int, expectations: Mapping[str, Any] | None = None) -> Record:
    """The record of one step of a trace.

    A tool's arguments and result, a search and the documents found, a model's last user message and answer (or
    the tool calls it asked for), else the span's input and output as they were recorded.
    """
    step = trace.steps[place]
    span_id = step.span.span_id
    target = Target(
        type="SPAN",
        target_id=f"{trace.trace_id}:{span_id}",
        trace_id=trace.trace_id,
        span_id=span_id,
        session_id=trace.session_id,
    )
    inputs, outputs = _exchange(step)
    return Record(
        target=target,
        trace=trace,
        inputs=inputs,
        outputs=outputs,
        expectations=expectations or {},
        place=place,
    )


def record_of_session(session: Session) -> Record:
    """The record of a conversation, attached to its first trace."""
    whole = session.whole
    target = Target(
        type="SESSION",
        target_id=session.session_id,
        trace_id=whole.trace_id,
        session_id=session.session_id,
    )
    return Record(
        target=target,
        trace=whole,
        inputs=_together(turn.request for turn in session.turns),
        outputs=_together(turn.response for turn in session.turns),
        session=session,
    )


def _together(texts: Iterable[str | None]) -> str | None:
    return "\n\n".join(text for text in texts if text) or None


def record_of(trace: Trace, target: Target) -> Record | None:
    """The record of a target in its trace, as that is now; None for a span that is no longer there."""
    if target.type != "SPAN":
        return record_of_trace(trace)
    places = (place for place, step in enumerate(trace.steps) if step.span.span_id == target.span_id)
    place = next(places, None)
    return None if place is None else record_of_span(trace, place)


def _exchange(step: Step) -> tuple[str | None, str | None]:
    match step.span_type:
        case "TOOL":
            return step.input, step.output
        case "RETRIEVER" if step.documents:
            return step.input, "\n\n".join(document.content for document in step.documents)
        case "RETRIEVER":
            return step.input, step.output
        case _:
            return step.request, step.output if step.response is None else step.response
