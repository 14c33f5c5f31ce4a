"""A scorer whose answers the test decides, and real tables that ticks work on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from evaluator.chunk import EvaluationParts, Range
from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.engines.local import LocalEngine
from evaluator.errors import ModelError
from evaluator.feedback import Feedback, Reason, Scored, SourceType, Unscored
from evaluator.live.work import Parts
from evaluator.offline import Evaluation, evaluate
from evaluator.score import Active
from evaluator.summary import Summary
from evaluator.tables.delta import DeltaStore
from evaluator.tables.ledger import Ledger
from evaluator.tables.reading import CONTROL
from evaluator.tables.rows import Key, Row
from evaluator.tables.schemas import ANNOTATIONS
from evaluator.tables.spans import SpansTable
from evaluator.tables.views import Views
from evaluator.tick import tick
from tests.traffic import NOON, append, spans_store


@dataclass
class Greets:
    """A scorer of code: does the response greet? `fails` gives what it says instead of an answer."""

    name: str = "greets"
    version: str = "v1"
    fails: Reason | None = None
    raises: bool = False
    seen: list[str] = field(default_factory=list)
    source_type: SourceType = "CODE"
    waits: bool = False

    @property
    def definition(self) -> Mapping[str, Any]:
        return {"kind": "test"}

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        if self.raises:
            raise ModelError("the key is wrong")
        self.seen += [record.trace.trace_id for record in records]
        if self.fails:
            return [Scored(outcome=Unscored(reason=self.fails, detail="as the test asked")) for _ in records]
        return [Scored(outcome=self._feedback(record)) for record in records]

    def _feedback(self, record: Record) -> Feedback:
        passed = "Hello" in (record.outputs or "")
        return Feedback(value="yes" if passed else "no", passed=passed, rationale="looked for a greeting")


class Bench:
    """Real tables in a folder, and a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = NOON
        self.spans_store = spans_store(folder)
        self.ledger = Ledger(DeltaStore(str(folder / "agent_eval_ledger")), self.clock)
        self.ledger.provision()
        self.annotations = DeltaStore(str(folder / "agent_otel_annotations"))
        self.annotations.create(ANNOTATIONS)
        self.spans = SpansTable(self.spans_store, self.clock)
        self.views = Views(self.spans, self.annotations, self.ledger)

    def clock(self) -> datetime:
        return self.now

    def append(self, *rows: dict[str, Any]) -> int:
        return append(self.spans_store, rows)

    def parts(self, *scorers: Greets, **settings: Any) -> Parts:
        active = [Active(scorer=scorer, rule=SelectionRule(name=scorer.name)) for scorer in scorers]
        values = {"settle": timedelta(0), "max_wait": timedelta(hours=1), "active": active, **settings}
        return Parts(spans=self.spans, ledger=self.ledger, clock=self.clock, **values)

    async def tick(self, *scorers: Greets, **settings: Any) -> Summary:
        return await tick(self.parts(*scorers, **settings), run_id="run")

    def wanted(self, *active: Active, **settings: Any) -> EvaluationParts:
        """What an evaluation works with that waits for nothing."""
        values = {"settle": timedelta(0), "max_wait": timedelta(hours=1), **settings}
        return EvaluationParts(
            spans=self.spans, ledger=self.ledger, active=active, clock=self.clock, **values
        )

    async def evaluate(self, *active: Active, within: Range | None = None, **settings: Any) -> Evaluation:
        """An evaluation, of the last five days and the next unless told."""
        day = timedelta(days=1)
        within = within or Range(start=self.now - 5 * day, end=self.now + day)
        return await evaluate(self.wanted(*active, **settings), within, "eval", LocalEngine())

    def states(self) -> dict[Key, Row]:
        return self.ledger.open().rows(f"target_type <> '{CONTROL}'")

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)
