"""What keeps coming while workers are killed, and what has to be said of it in the end."""

import random
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from evaluator.tables.delta import DeltaStore
from tests.faults.law import Law, Wanted
from tests.project import ONE_JUDGE
from tests.traffic import NOON, answer, append, span, span_id, trace_id

LATE = "looked up late"
MANIFOLD = """\
  - {name: small, sql: span_count < 3}
  - {name: quick, sql: duration_ms < 10000, target: span, span_filter: name = 'tool'}
  - {name: talks, sql: turns > 1, target: session}
"""
"""Scorers of whole traces, of their spans and of sessions: what late spans and further turns change shows in what they say."""
SETTINGS: Mapping[str, Any] = {"rescore_late": True, "session_idle": "0s"}


class Traffic:
    """Traces whose prompts are no other ones', so that a provider's requests tell how often each was asked.

    `manifold`: they call tools, are turns of sessions, and get a span more when they are decided already.
    """

    def __init__(self, spans: DeltaStore, law: Law, chance: random.Random, *, manifold: bool) -> None:
        self.traces = 0
        self.guidelines = [ONE_JUDGE, ONE_JUDGE.replace("must be polite", "must be very polite")]
        if manifold:
            self.guidelines = [text + MANIFOLD for text in self.guidelines]
        self._spans = spans
        self._law = law
        self._random = chance
        self._manifold = manifold
        self._late: set[int] = set()
        self._turns: dict[str, int] = {}

    def come(self, count: int) -> None:
        """So many traces more, in one commit; of some old ones a late span, in another or in the same."""
        numbers = range(self.traces, self.traces + count)
        rows = [row for number in numbers for row in self._trace(number)]
        late = self._late_ones()
        if late and self._random.random() < 0.5:
            self._arrive(late)
            late = []
        self._arrive([*rows, *late])
        self.traces += count

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many traces there were, sessions, and traces to which a span came late."""
        return self.traces, len(self._turns), len(self._late)

    @property
    def wanted(self) -> Wanted:
        """The last word of each scorer on each target that there is: by type, id and scorer; None where any will do."""
        traces = [(number, trace_id(f"t{number}")) for number in range(self.traces)]
        wanted: dict[tuple[str, str, str], bool | None] = {}
        for number, trace in traces:
            wanted |= {("TRACE", trace, "greets"): True, ("TRACE", trace, "polite"): None}
            if self._manifold:
                wanted["TRACE", trace, "small"] = number not in self._late
                wanted["SPAN", f"{trace}:{span_id(f't{number}', 'tool')}", "quick"] = True
        return wanted | {("SESSION", name, "talks"): turns > 1 for name, turns in self._turns.items()}

    def _trace(self, number: int) -> list[dict[str, Any]]:
        at = NOON + timedelta(seconds=number)
        name, request = f"t{number}", f"Question {number}?"
        if not self._manifold:
            return [answer(name, request=request, at=at)]
        told = {}
        if self._random.random() < 0.7:
            session = f"s{self._random.randint(number // 4, number // 3)}"
            self._turns[session] = self._turns.get(session, 0) + 1
            told = {"session.id": session}
        tool = {"openinference.span.kind": "TOOL", "output.value": "found"}
        return [
            answer(name, request=request, at=at, **told),
            span(name, "tool", parent="root", at=at, **tool),
        ]

    def _late_ones(self) -> list[dict[str, Any]]:
        if not self._manifold or not self.traces or self._random.random() < 0.4:
            return []
        numbers = {self._random.randrange(self.traces) for _ in range(2)} - self._late
        self._late |= numbers
        return [
            span(
                f"t{number}",
                "late",
                parent="root",
                at=NOON + timedelta(seconds=number),
                **{"output.value": LATE},
            )
            for number in sorted(numbers)
        ]

    def _arrive(self, rows: list[dict[str, Any]]) -> None:
        self._law.brought(append(self._spans, rows), rows)
