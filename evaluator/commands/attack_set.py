"""The attack set: texts that somebody who wants another verdict would put into a trace, and the records they go into."""

import base64
import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, Literal, cast, get_args

from evaluator.dataset.records import Record, record_of_span, record_of_trace
from evaluator.guidelines.definitions import TargetKind
from evaluator.traces.assembly import assemble
from evaluator.traces.trace import Span
from evaluator.yamlfile import load_yaml

Place = Literal["request", "response", "tool_output", "document"]
FILE = Path(__file__).with_name("attacks.yaml")
GUESSED_CODE = "0123456789abcdef01234567"
"""Of the length of a real one; nobody who writes a trace can know that."""


def _look_alikes(text: str) -> str:
    return text.translate(str.maketrans("aceopxyAEO", "асеорхуАЕО"))


def _variation_selectors(text: str) -> str:
    """Each byte as an invisible variation selector behind a letter."""
    return "a" + "".join(chr(0xFE00 + byte if byte < 16 else 0xE0100 + byte - 16) for byte in text.encode())


SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "tags": lambda text: "".join(chr(0xE0000 + ord(letter)) for letter in text if letter.isascii()),
    "zero_width": "\u200b".join,
    "bidi": lambda text: f"\u202e{text[::-1]}\u202c",
    "variation": _variation_selectors,
    "homoglyphs": _look_alikes,
    "full_width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "hex": lambda text: text.encode().hex(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One text and where it goes: `before` so many times, then the text as `hide` spells it.

    `$value` in them is the verdict that it wants, `$code` a guessed code. `on` is the record that it wants judged
    otherwise: the bad one, or the good one.
    """

    name: str
    kind: str
    text: str
    place: Place = "response"
    on: Literal["bad", "good"] = "bad"
    hide: str = "plain"
    before: str = ""
    repeat: int = 1

    def injected(self, value: str) -> str:
        """What is put into the record."""
        said = {"value": value, "code": GUESSED_CODE}
        before = Template(self.before).substitute(said) * self.repeat
        return before + SPELLINGS[self.hide](Template(self.text).substitute(said))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A record whose right verdict is known; `passes` None where only the judge itself can say it."""

    request: str
    response: str
    tool_output: str
    document: str
    passes: bool | None

    def attacked(self, place: Place, text: str) -> "Case":
        """The same record with a text at the end of one of its parts."""
        return replace(self, **cast(dict[str, Any], {place: f"{getattr(self, place)}\n\n{text}"}))

    def record(self, target: TargetKind = "trace") -> Record:
        """As the trace of an agent that asked a tool, looked up a document and answered, or as its first span."""
        spans = [
            _span(1, None, "AGENT", {"input.value": self.request, "output.value": self.response}),
            _span(2, 1, "TOOL", {"tool.name": "tickets", "output.value": self.tool_output}),
            _span(3, 1, "RETRIEVER", {"retrieval.documents.0.document.content": self.document}),
        ]
        trace = assemble(spans[0].trace_id, spans, incomplete=False)
        return record_of_span(trace, 0) if target == "span" else record_of_trace(trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSet:
    """The guideline that the shipped records follow or not, the records, and the attacks on them."""

    guideline: str
    cases: Mapping[str, Case]
    attacks: tuple[Attack, ...]


@cache
def shipped_attacks() -> AttackSet:
    """The set that ships with the package."""
    data = load_yaml(FILE).data
    return AttackSet(
        guideline=data["guideline"],
        cases={name: Case(**record) for name, record in data["records"].items()},
        attacks=tuple(Attack(**attack) for attack in data["attacks"]),
    )


PLACES: tuple[Place, ...] = get_args(Place)


def _span(number: int, parent: int | None, kind: str, attributes: Mapping[str, Any]) -> Span:
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    nano = int(start.timestamp()) * 10**9
    return Span(
        trace_id=f"{1:032x}",
        span_id=f"{number:016x}",
        parent_span_id=None if parent is None else f"{parent:016x}",
        name=kind.lower(),
        start_time_unix_nano=nano,
        end_time_unix_nano=nano + 10**9,
        attributes={"openinference.span.kind": kind, **attributes},
        status="OK",
    )
