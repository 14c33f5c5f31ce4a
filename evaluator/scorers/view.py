"""What a judge gets to see of a record: named texts within a bound, and what was left out for it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from evaluator.dataset.records import Record
from evaluator.guidelines.definitions import TraceView
from evaluator.traces.trace import Session, Step
from evaluator.traces.tree import parents_of

Part = Literal["inputs", "outputs", "expectations", "trace"]
"""What instructions can name, in MLflow's words; `trace` is everything."""

CHARACTERS = 48_000
"""Some 12,000 tokens: what a window of 16,000 holds beside the task and the reply, where nobody knows the window."""
MOST_CHARACTERS = 400_000
"""Some 100,000 tokens: beyond it a wider window adds cost, and little that a judge takes in."""
SHORTEST = 200
"""A text is not cut to less than this; it is left out instead."""
LONGEST_NAME = 80
"""Characters of a step's name or error in the index."""
DEEPEST = 8
"""Steps further within others are not set in more than this."""
AROUND = 100
"""Steps before and after a span that are shown with it; a runaway agent's trace has no end of them."""
INDEX_SHARE = 4
"""The index of a trace that is cut takes at most one part in so many."""
MOST_NAMED = 20
"""How many of the texts that were cut or left out are named."""
RULE = 2
"""Raised by hand when the rule of this file changes; part of every judge's version."""

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_UNSENDABLE = re.compile("[\x00\ud800-\udfff\U000e0000-\U000e007f]")
"""What cannot be sent, and tag characters: a model reads them and no person sees them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A text of the record. `name` is of our own words only: a name that a trace brings stands in the text.

    A lower `rank` is given room first.
    """

    name: str
    text: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The texts in the order in which they happened, and how much of the record is missing.

    `cut` names the texts that were shortened or left out.
    """

    blocks: tuple[Block, ...]
    left_out_blocks: int = 0
    left_out_characters: int = 0
    cut: tuple[str, ...] = ()

    @property
    def left_out(self) -> str:
        """For the judge and the result's metadata; empty where nothing is missing."""
        if not self.left_out_characters:
            return ""
        texts = f"{self.left_out_blocks} whole texts, " if self.left_out_blocks else ""
        more = f" and {len(self.cut) - MOST_NAMED:,} more" if len(self.cut) > MOST_NAMED else ""
        names = f" ({'; '.join(self.cut[:MOST_NAMED])}{more})" if self.cut else ""
        return f"{texts}{self.left_out_characters:,} characters in all{names}"


def view_of(
    record: Record,
    parts: frozenset[Part] = frozenset({"trace"}),
    *,
    trace_view: TraceView = "full",
    characters: int = CHARACTERS,
    redact: Callable[[str], str] = str,
) -> View:
    """The view of a record in at most about so many characters; what is not ASCII counts with its bytes in UTF-8.

    What does not fit is cut by rule: an index of all steps comes first, a line each; then the request and the
    response, then by rank errors, tool calls, documents and the rest. Each text is redacted before it is cut.
    A record about a span begins with that; what else there is of its trace comes after it, and in the room it leaves.
    One about a session is its turns, one after the other: what was asked, what was done, what was answered.
    """
    blocks = _blocks(record, parts, trace_view)
    texts = [text for block in blocks if (text := _seen(block, characters, redact))]
    if sum(size(block.text) for _, block in texts) <= characters and not any(lost for lost, _ in texts):
        return View(blocks=tuple(block for _, block in texts))
    index: list[Block] = []
    if "trace" in parts and trace_view == "full" and record.trace.steps:
        room = characters // INDEX_SHARE
        steps = record.trace.steps
        if record.session is not None:
            all_of_them = _index_of_session(record.session)
        else:
            all_of_them = _index(steps) if record.place is None else _index_around(steps, record.place)
        if seen := _seen(all_of_them, room, redact):
            index = [replace(seen[1], text=_shortened(seen[1].text, room))]
    room = characters - sum(size(block.text) for block in index)
    if record.place is None:
        return _within(texts, room, index)
    view = _within(texts, room, ())
    return replace(view, blocks=(*view.blocks, *index))


def _seen(block: Block, characters: int, redact: Callable[[str], str]) -> tuple[int, Block] | None:
    """A text as it may be seen, after how many characters it lost for it; None where there is nothing to see."""
    text, lost = _sendable(block.text), 0
    if size(text) > 4 * characters:
        # What would be cut anyway need not be redacted; twice the bound keeps every cut inside redacted text.
        cut = _shortened(text, 2 * characters)
        text, lost = cut, len(text) - len(cut)
    text = redact(text)
    if not text.strip():
        return None
    return lost, block if text == block.text else replace(block, text=text)


def _sendable(text: str) -> str:
    plain = text.isascii() and "\x00" not in text
    return text if plain else _UNSENDABLE.sub("\ufffd", text)


def _within(texts: Sequence[tuple[int, Block]], characters: int, index: Sequence[Block]) -> View:
    """The texts by rank within a bound, after the index."""
    sizes = [size(block.text) for _, block in texts]
    shares = _shares(
        [(block.rank, length) for (_, block), length in zip(texts, sizes, strict=True)], characters
    )
    shown, cut = [*index], []
    missing = missing_blocks = 0
    for (lost, block), length, share in zip(texts, sizes, shares, strict=True):
        kept = _shortened(block.text, share) if share else ""
        if lost or share < length:
            missing += lost + max(len(block.text) - min(len(kept), share), int(share < length))
            missing_blocks += not share
            cut.append(block.name if share else f"{block.name}, whole")
        if kept:
            shown.append(replace(block, text=kept))
    return View(
        blocks=tuple(shown), left_out_blocks=missing_blocks, left_out_characters=missing, cut=tuple(cut)
    )


def size(text: str) -> int:
    """How much room a text takes: tokenizers make about as many tokens of bytes in any script."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _shares(sizes: Sequence[tuple[int, int]], characters: int) -> list[int]:
    """How much room each text gets: rank by rank, and within a rank as evenly as their lengths allow."""
    shares = [0] * len(sizes)
    left = max(characters, 0)
    for rank in sorted({rank for rank, _ in sizes}):
        waiting = sorted((length, index) for index, (other, length) in enumerate(sizes) if other == rank)
        while waiting:
            length, index = waiting[0]
            fair = left // len(waiting)
            if fair < min(length, SHORTEST):
                waiting.pop()  # Not room for all of them: the longest goes without.
                continue
            waiting.pop(0)
            shares[index] = min(length, fair)
            left -= shares[index]
    return shares


def _shortened(text: str, room: int) -> str:
    """Its beginning and its end, with a mark between."""
    whole = size(text)
    if whole <= room:
        return text
    mark = f"\n[… {len(text) * (whole - room) // whole:,} characters left out …]\n"
    half = max((room - len(mark)) // 2, 1)
    if whole == len(text):
        return f"{text[:half]}{mark}{text[-half:]}"
    data = text.encode("utf-8", "replace")
    return f"{data[:half].decode('utf-8', 'ignore')}{mark}{data[-half:].decode('utf-8', 'ignore')}"


def _index(steps: Sequence[Step], begin: int = 0) -> Block:
    """What happened, a line for each step: its kind and name, its error, how long it took, how much went in and out."""
    parents = parents_of([step.span for step in steps])
    depths: dict[str | None, int] = {None: -1}
    lines = []
    for number, step in enumerate(steps, start=begin + 1):
        depth = depths.get(parents.get(step.span.span_id), 0) + 1
        depths[step.span.span_id] = depth
        lines.append(f"{'  ' * min(depth, DEEPEST)}{number}. {_line(step)}")
    return Block(name="index of all steps", text="\n".join(lines), rank=0)


def _index_around(steps: Sequence[Step], place: int) -> Block:
    """The index of the steps next to one of them."""
    near = _around(steps, place)
    index = _index(steps[near.start : near.stop], near.start)
    before = f"({near.start:,} earlier steps)\n" if near.start else ""
    after = f"\n({len(steps) - near.stop:,} later steps)" if near.stop < len(steps) else ""
    name = "index of all steps" if len(near) == len(steps) else "index of the steps around the span"
    return Block(name=f"trace: {name}", text=f"{before}{index.text}{after}", rank=2)


def _around(steps: Sequence[Step], place: int) -> range:
    """The places of the steps that are shown with one of them."""
    return range(max(place - AROUND, 0), min(place + AROUND + 1, len(steps)))


def _line(step: Step) -> str:
    said = [f"{step.span_type} {_one_line(step.tool_name or step.span.name)}".rstrip()]
    if error := _error(step):
        said.append(f"error: {_one_line(error)}")
    if step.duration_ms is not None:
        said.append(f"{step.duration_ms:,.0f} ms")
    for name, text in (("in", step.input or step.request), ("out", step.output or step.response)):
        if text:
            said.append(f"{name} {len(text):,} characters")
    return ", ".join(said)


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST_NAME else f"{flat[:LONGEST_NAME]}…"


def _blocks(record: Record, parts: frozenset[Part], trace_view: TraceView) -> Iterator[Block]:
    whole = "trace" in parts
    if record.place is not None:
        yield from _blocks_about_a_span(record, record.place, parts, trace_view)
        return
    if record.session is not None:
        yield from _blocks_of_session(record.session, parts, trace_view)
        return
    if record.inputs and (whole or "inputs" in parts):
        yield Block(name="request", text=record.inputs, rank=0)
    if record.outputs and (whole or "outputs" in parts):
        yield Block(name="response", text=record.outputs, rank=0)
    if record.expectations and "expectations" in parts:
        yield Block(name="expectations", text=_json(dict(record.expectations)), rank=0)
    if whole and trace_view == "index" and record.trace.steps:
        yield _index(record.trace.steps)
    if whole and trace_view == "full":
        # Conventions repeat a text on every span it passes through: each is shown where it first stands.
        seen = {_key(text) for text in (record.inputs, record.outputs) if text}
        for number, step in enumerate(record.trace.steps, start=1):
            for block in _blocks_of_step(f"step {number}", step):
                if (key := _key(block.text)) not in seen:
                    seen.add(key)
                    yield _signed(block, step)


def _blocks_of_session(session: Session, parts: frozenset[Part], trace_view: TraceView) -> Iterator[Block]:
    """The turns in the order of time; what a later one carries along of an earlier one is shown where it first stands."""
    whole = "trace" in parts
    if whole and trace_view == "index" and session.whole.steps:
        yield _index_of_session(session)
    seen: set[str] = set()
    for number, turn in enumerate(session.turns, start=1):
        seen |= {_key(text) for text in (turn.request, turn.response) if text}
        if turn.request and (whole or "inputs" in parts):
            yield Block(name=f"turn {number}: request", text=turn.request, rank=0)
        if whole and trace_view == "full":
            for place, step in enumerate(turn.steps, start=1):
                for block in _blocks_of_step(f"turn {number}, step {place}", step):
                    if (key := _key(block.text)) not in seen:
                        seen.add(key)
                        yield _signed(block, step)
        if turn.response and (whole or "outputs" in parts):
            yield Block(name=f"turn {number}: response", text=turn.response, rank=0)


def _index_of_session(session: Session) -> Block:
    """What happened in each turn."""
    turns = [
        f"turn {number}\n{_index(turn.steps).text}" for number, turn in enumerate(session.turns, start=1)
    ]
    return Block(name="index of all steps", text="\n".join(turns), rank=0)


def _blocks_about_a_span(
    record: Record, place: int, parts: frozenset[Part], trace_view: TraceView
) -> Iterator[Block]:
    """The span first, then its trace as its context; nothing where the span holds nothing to judge."""
    whole = "trace" in parts
    step = record.trace.steps[place]
    own = [
        Block(name=f"span: {name}", text=text, rank=0)
        for part, name, text in (("inputs", "input", record.inputs), ("outputs", "output", record.outputs))
        if text and (whole or part in parts)
    ]
    if whole:
        more = _errors if step.span_type in ("TOOL", "RETRIEVER") else _blocks_of_step
        own += [replace(block, rank=1) for block in more("span", step)]
    if not own:
        return
    if whole:
        yield Block(name="span", text=f"{place + 1}. {_line(step)}", rank=0)
    context = _context(record, place, trace_view) if whole else ()
    seen: set[str] = set()
    for block in (*own, *context):
        if (key := _key(block.text)) not in seen:
            seen.add(key)
            yield block
    if record.expectations and "expectations" in parts:
        yield Block(name="expectations", text=_json(dict(record.expectations)), rank=0)


def _context(record: Record, place: int, trace_view: TraceView) -> Iterator[Block]:
    """What is shown of the trace around a span."""
    trace = record.trace
    for name, text in (("request", trace.request), ("response", trace.response)):
        if text:
            yield Block(name=f"trace: {name}", text=text, rank=2)
    if trace_view == "index":
        yield _index_around(trace.steps, place)
    if trace_view == "full":
        near = _around(trace.steps, place)
        for other in (other for other in near if other != place):
            for block in _blocks_of_step(f"trace: step {other + 1}", trace.steps[other]):
                yield replace(block, rank=block.rank + 2)
        if len(near) < len(trace.steps):
            more = f"{len(trace.steps) - len(near):,} steps further from the span are not shown"
            yield Block(name="trace: other steps", text=more, rank=2)


def _signed(block: Block, step: Step) -> Block:
    """An answer with the name of the step that gave it: among several agents, who spoke."""
    if block.text != step.response or not step.span.name:
        return block
    return replace(block, text=f"{step.span.name}: {block.text}")


def _blocks_of_step(place: str, step: Step) -> Iterator[Block]:
    if step.span_type == "TOOL":
        name = step.tool_name or step.span.name
        yield Block(name=f"{place}: tool call", text=f"{name} {step.input or ''}".strip(), rank=2)
        if step.output:
            yield Block(name=f"{place}: tool result", text=step.output, rank=2)
    elif step.span_type == "RETRIEVER":
        if step.input:
            yield Block(name=f"{place}: search", text=step.input, rank=3)
        for document in step.documents:
            yield Block(name=f"{place}: document", text=document.content, rank=3)
        if step.output and not step.documents:
            yield Block(name=f"{place}: documents", text=step.output, rank=3)
    else:
        for message in step.messages:
            role = message.role if message.role in _ROLES else "other"
            if message.content:
                yield Block(name=f"{place}: {role} message", text=message.content, rank=4)
            yield from _tool_calls(place, message.tool_calls)
        if step.request and not step.messages:
            yield Block(name=f"{place}: input", text=step.request, rank=5)
        yield from _tool_calls(place, step.tool_calls)
        if step.response:
            yield Block(name=f"{place}: output", text=step.response, rank=4)
    yield from _errors(place, step)


def _errors(place: str, step: Step) -> Iterator[Block]:
    if error := _error(step):
        yield Block(name=f"{place}: error", text=error, rank=1)


def _tool_calls(place: str, calls: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    for call in calls:
        text = f"{call.get('name', '')} {_json(call.get('arguments', ''))}".strip()
        yield Block(name=f"{place}: tool call", text=text, rank=2)


def _error(step: Step) -> str:
    texts = [step.span.status_message] if step.span.status == "ERROR" else []
    for event in step.span.events:
        if event.name == "exception":
            kind, message = (
                event.attributes.get("exception.type"),
                event.attributes.get("exception.message"),
            )
            texts.append(": ".join(str(said) for said in (kind, message) if said))
    text = "\n".join(dict.fromkeys(text for text in texts if text))
    return text or ("the step failed without saying why" if step.span.status == "ERROR" else "")


def _json(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _key(text: str) -> str:
    """The same for JSON however it is laid out."""
    return "".join(text.split())
