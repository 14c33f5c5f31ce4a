"""A scorer that is one SQL condition over the columns of a trace, a span or a session."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from evaluator.dataset.conditions import Answer, Condition, ConditionFailure, evaluate, parse_condition
from evaluator.dataset.records import Record
from evaluator.feedback import Reason, Scored, SourceType
from evaluator.guidelines.definitions import SqlDefinition
from evaluator.scorers.scorer import about, fingerprint
from evaluator.scorers.verdict import not_applicable, shown, unscored, verdict
from evaluator.traces.columns import COLUMNS, sessions_table, spans_table, traces_table

if TYPE_CHECKING:
    import pyarrow as pa


class SqlScorer:
    """Passes where the condition holds; a condition that gives null is not applicable."""

    source_type: SourceType = "CODE"
    waits = False

    def __init__(self, definition: SqlDefinition) -> None:
        """Raises ConditionError."""
        self.name = definition.name
        self._target = definition.target
        self._condition = parse_condition(definition.sql, COLUMNS[definition.target])
        self.definition = {"kind": "sql", "sql": self._condition.text, **about(definition.target)}
        self.version = fingerprint(self.definition)

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        """One result for each record; one query for all of them."""
        if not records:
            return []
        rows = self._rows(records)
        (answers,) = evaluate([self._condition], rows)
        looked_at = rows.select(list(self._condition.columns)).to_pylist()
        return [
            _scored(self._condition, answer, ", ".join(f"{name} = {shown(row[name])}" for name in row))
            for answer, row in zip(answers, looked_at, strict=True)
        ]

    def _rows(self, records: Sequence[Record]) -> "pa.Table":
        match self._target:
            case "span":
                steps = [record.step for record in records if record.step is not None]
                return spans_table(steps, self._condition.columns or {"span_id"})
            case "session":
                return sessions_table([record.session for record in records if record.session is not None])
            case "trace":
                return traces_table([record.trace for record in records])
            case _:
                assert_never(self._target)


def _scored(condition: Condition, answer: Answer, values: str) -> Scored:
    if isinstance(answer, ConditionFailure):
        return unscored(Reason.SCORER_FAILED, f"{condition.text}: {answer.detail}")
    if answer is None:
        return not_applicable(f"{condition.text} is null: one of {', '.join(condition.columns)} is not known")
    held = "holds" if answer else "does not hold"
    return verdict(answer, f"{condition.text} {held}" + (f": {values}" if values else ""))
