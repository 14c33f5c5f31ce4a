"""A span's attributes, in any of three conventions, read into one step."""

from collections.abc import Callable

from evaluator.traces.conventions import genai, mlflow, openinference
from evaluator.traces.conventions.messages import calls_in, last_answer, last_user
from evaluator.traces.conventions.reading import Reading, Said
from evaluator.traces.conventions.values import id_of, name_of
from evaluator.traces.trace import Message, Span, Step

_READERS: tuple[tuple[frozenset[str], Callable[[Span], Reading]], ...] = (
    (frozenset({"mlflow"}), mlflow.read),
    (frozenset({"openinference", "llm", "input", "output", "retrieval", "tag"}), openinference.read),
    (frozenset({"gen_ai", "traceloop"}), genai.read),
)
"""Who reads which families of attributes; a span that speaks several is read by all, the first word counts."""

_TOOL_SPAN_NAME = "execute_tool "
_NOTHING = Said(None)


def step_of(span: Span) -> Step:
    """What a span was. A value that is malformed counts as not told; nothing raises."""
    told = _read(span)
    spoken, answered = told.input or _NOTHING, told.output or _NOTHING
    asked = last_user(spoken.messages)
    span_type = told.span_type or "OTHER"
    return Step(
        span=span,
        span_type=span_type,
        input=spoken.text,
        output=answered.text,
        request=spoken.text if asked is None else asked,
        response=last_answer(answered.messages) if answered.messages else answered.text,
        messages=_conversation(spoken, answered),
        tool_calls=calls_in(answered.messages),
        model=told.model,
        input_tokens=told.input_tokens,
        output_tokens=told.output_tokens,
        total_tokens=told.total_tokens,
        cost_usd=told.cost_usd,
        tool_name=_tool_name(told, span) if span_type == "TOOL" else None,
        documents=told.documents,
        duration_ms=span.duration_ms,
        session_id=id_of(span.attributes.get("session.id")) or told.session_id,
        user_id=id_of(span.attributes.get("user.id"), span.attributes.get("enduser.id")) or told.user_id,
        tags=told.tags,
    )


def _read(span: Span) -> Reading:
    families = {key.partition(".")[0] for key in span.attributes}
    families.update(event.name.partition(".")[0] for event in span.events)
    reading: Reading | None = None
    for own, read in _READERS:
        if not families.isdisjoint(own):
            reading = read(span) if reading is None else reading.completed(read(span))
    return reading or Reading()


def _conversation(spoken: Said, answered: Said) -> tuple[Message, ...]:
    """The messages of both sides. A side that is plain text beside messages is one; an output that
    repeats its input (a graph's state) is the conversation already."""
    before, after = spoken.messages, answered.messages
    if not before and not after:
        return ()
    if before and after[: len(before)] == before:
        return after
    return (*(before or _one("user", spoken.text)), *(after or _one("assistant", answered.text)))


def _one(role: str, text: str | None) -> tuple[Message, ...]:
    return (Message(role=role, content=text),) if text else ()


def _tool_name(told: Reading, span: Span) -> str | None:
    return told.tool_name or name_of(span.name.removeprefix(_TOOL_SPAN_NAME))
