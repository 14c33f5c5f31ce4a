"""A judge that is paused: no call is made, and its work waits."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluator.dataset.records import Record
from evaluator.feedback import Reason, Scored, SourceType, Unscored
from evaluator.scorers.scorer import Scorer


class PausedScorer:
    """Stands in for a scorer while it is paused; name and version are the scorer's own."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    @property
    def name(self) -> str:
        return self._scorer.name

    @property
    def version(self) -> str:
        return self._scorer.version

    @property
    def source_type(self) -> SourceType:
        return self._scorer.source_type

    @property
    def waits(self) -> bool:
        return False

    @property
    def definition(self) -> Mapping[str, Any]:
        return self._scorer.definition

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        paused = Unscored(reason=Reason.PAUSED, detail="paused (`evaluator resume` lets it go on)")
        return [Scored(outcome=paused) for _ in records]
