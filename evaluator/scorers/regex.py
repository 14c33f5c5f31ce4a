"""A scorer that looks for a pattern in the request or the response, or in what went into a span or came out."""

from collections.abc import Sequence

from evaluator.dataset.records import Record
from evaluator.feedback import Scored, SourceType
from evaluator.guidelines.definitions import RegexDefinition
from evaluator.redaction import compile_pattern
from evaluator.scorers.scorer import about, fingerprint
from evaluator.scorers.verdict import not_applicable, verdict


class RegexScorer:
    """Passes where the pattern (RE2: linear time, whatever the text) occurs."""

    source_type: SourceType = "CODE"
    waits = False

    def __init__(self, definition: RegexDefinition) -> None:
        """Raises ValueError: RE2 does not take the pattern."""
        self.name = definition.name
        self._on = definition.on
        self._pattern = definition.regex
        self._compiled = compile_pattern(definition.regex)
        self.definition = {
            "kind": "regex",
            "regex": definition.regex,
            "on": definition.on,
            **about(definition.target),
        }
        self.version = fingerprint(self.definition)

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        """One result for each record."""
        return [self._score(record) for record in records]

    def _score(self, record: Record) -> Scored:
        text = record.outputs if self._on == "response" else record.inputs
        if text is None:
            return not_applicable(f"the {record.subject} has no {self._on}")
        match = self._compiled.search(text.encode("utf-8", "replace"))
        if match is None:
            return verdict(
                False, f"{self._pattern} does not occur in the {self._on}'s {len(text):,} characters"
            )
        place = len(text.encode("utf-8", "replace")[: match.start()].decode("utf-8", "replace")) + 1
        return verdict(True, f"{self._pattern} occurs in the {self._on}, first at character {place:,}")
