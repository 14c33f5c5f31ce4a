"""What a judge gets to see of a record: named texts within a bound, and what was left out for it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from evaluator.dataset.records import Record
from evaluator.traces.trace import Step

Part = Literal["inputs", "outputs", "expectations", "trace"]
"""What instructions can name, in MLflow's words; `trace` is everything."""

CHARACTERS = 48_000
"""Some 12,000 tokens: what a window of 16,000 holds beside the task and the reply."""
SHORTEST = 200
"""A text is not cut to less than this; it is left out instead."""
RULE = 1
"""Raised by hand when the rule of this file changes; part of every judge's version."""

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


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
    """The texts in the order in which they happened, and how much of the record is missing."""

    blocks: tuple[Block, ...]
    left_out_blocks: int = 0
    left_out_characters: int = 0

    @property
    def left_out(self) -> str:
        """For the judge and the result's metadata; empty where nothing is missing."""
        if not self.left_out_characters:
            return ""
        texts = f"{self.left_out_blocks} whole texts, " if self.left_out_blocks else ""
        return f"{texts}{self.left_out_characters:,} characters in all"


def view_of(
    record: Record,
    parts: frozenset[Part] = frozenset({"trace"}),
    *,
    characters: int = CHARACTERS,
    redact: Callable[[str], str] = str,
) -> View:
    """The view of a record in at most about so many characters: the request and the response, then by rank errors,
    tool calls, documents and the rest. Each text is redacted before it is cut."""
    blocks = []
    for block in _blocks(record, parts):
        text = _UNSENDABLE.sub("\ufffd", block.text)
        # What would be cut anyway need not be redacted; twice the bound keeps every cut inside redacted text.
        text = redact(_shortened(text, 2 * characters) if len(text) > 4 * characters else text)
        if text.strip():
            blocks.append((len(block.text), replace(block, text=text)))
    shares = _shares([(block.rank, len(block.text)) for _, block in blocks], characters)
    shown = []
    missing = missing_blocks = 0
    for (whole, block), share in zip(blocks, shares, strict=True):
        missing += max(whole - share, 0) if share < len(block.text) or whole > 4 * characters else 0
        missing_blocks += share == 0
        if share:
            shown.append(replace(block, text=_shortened(block.text, share)))
    return View(blocks=tuple(shown), left_out_blocks=missing_blocks, left_out_characters=missing)


def _shares(sizes: Sequence[tuple[int, int]], characters: int) -> list[int]:
    """How many characters each text gets: rank by rank, and within a rank as evenly as their lengths allow."""
    shares = [0] * len(sizes)
    left = characters
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


def _shortened(text: str, characters: int) -> str:
    """Its beginning and its end, with a mark between."""
    if len(text) <= characters:
        return text
    mark = f"\n[… {len(text) - characters:,} characters left out …]\n"
    half = max((characters - len(mark)) // 2, 1)
    return f"{text[:half]}{mark}{text[-half:]}"


def _blocks(record: Record, parts: frozenset[Part]) -> Iterator[Block]:
    whole = "trace" in parts
    if record.inputs and (whole or "inputs" in parts):
        yield Block(name="request", text=record.inputs, rank=0)
    if record.outputs and (whole or "outputs" in parts):
        yield Block(name="response", text=record.outputs, rank=0)
    if record.expectations and "expectations" in parts:
        yield Block(name="expectations", text=_json(dict(record.expectations)), rank=0)
    if whole:
        # Conventions repeat a text on every span it passes through: each is shown where it first stands.
        seen = {_key(text) for text in (record.inputs, record.outputs) if text}
        for number, step in enumerate(record.trace.steps, start=1):
            for block in _blocks_of_step(number, step):
                if (key := _key(block.text)) not in seen:
                    seen.add(key)
                    yield _signed(block, step)


def _signed(block: Block, step: Step) -> Block:
    """An answer with the name of the step that gave it: among several agents, who spoke."""
    if block.text != step.response or not step.span.name:
        return block
    return replace(block, text=f"{step.span.name}: {block.text}")


def _blocks_of_step(number: int, step: Step) -> Iterator[Block]:
    place = f"step {number}"
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
