"""What judges are shown of a record: its view in a fence, made once for all who look at it in the same way."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evaluator.dataset.records import Record
from evaluator.feedback import Target
from evaluator.guidelines.definitions import TraceView
from evaluator.models.client import Model
from evaluator.scorers import view
from evaluator.scorers.prompts import Material, Prompts
from evaluator.scorers.view import Part, View, view_of

REMEMBERED = 16
"""Records; the judges of one trace ask one after the other."""


class Redaction(Protocol):
    """One numbering of placeholders: the same address in two texts of a record is the same placeholder."""

    def redact(self, text: str) -> str: ...


class Redacts(Protocol):
    """Takes out of texts what a model must not see; `definition` is part of every judge's version."""

    @property
    def definition(self) -> Any: ...
    def begin(self) -> Redaction: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How a judge looks at records: at which parts, at how much of a trace, within which bound."""

    parts: frozenset[Part]
    trace_view: TraceView = "full"
    characters: int = view.CHARACTERS

    @property
    def definition(self) -> Mapping[str, Any]:
        return {
            "rule": view.RULE,
            "parts": sorted(self.parts),
            "trace_view": self.trace_view,
            "characters": self.characters,
        }


def sight_of(model: Model, parts: frozenset[Part], trace_view: TraceView) -> Sight:
    """What fits the model's window, where anybody knows it."""
    room = model.input_characters
    characters = view.CHARACTERS if room is None else min(room, view.MOST_CHARACTERS)
    return Sight(parts=parts, trace_view=trace_view, characters=characters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a judge sees of one record, and the beginning of the prompt that it makes."""

    view: View
    material: Material

    @property
    def texts(self) -> list[str]:
        return [block.text for block in self.view.blocks]


class Materials:
    """Shows records to judges: redacted, within their bounds, in a fence whose code `fence_key` decides."""

    def __init__(self, *, prompts: Prompts, fence_key: bytes, redactor: Redacts) -> None:
        self.prompts = prompts
        self._fence_key = fence_key
        self._redactor = redactor
        self._remembered: OrderedDict[tuple[Target, Sight], tuple[Record, Shown]] = OrderedDict()

    @property
    def redaction(self) -> Any:
        """The definition of what is redacted."""
        return self._redactor.definition

    def of(self, record: Record, sight: Sight) -> Shown:
        key = (record.target, sight)
        known = self._remembered.get(key)
        if known is not None and known[0] is record:
            return known[1]
        redact = self._redactor.begin().redact
        seen = view_of(
            record, sight.parts, trace_view=sight.trace_view, characters=sight.characters, redact=redact
        )
        material = self.prompts.material(
            self._fence_key, seen, incomplete=record.trace.incomplete, subject=record.subject
        )
        shown = Shown(view=seen, material=material)
        self._remembered[key] = (record, shown)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return shown
