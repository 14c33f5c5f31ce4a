"""What one tick or one evaluation did, counted."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, assert_never

from evaluator.errors import ModelError
from evaluator.feedback import Feedback, Scored, Unscored
from evaluator.quality.statistics import rate


@dataclass(slots=True, kw_only=True)
class ScorerCount:
    """The results of one scorer; `unscored` holds the reasons."""

    version: str
    scored: int = 0
    passed: int = 0
    failed: int = 0
    unscored: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        share, low, high = rate(self.passed, self.passed + self.failed)
        return {
            "version": self.version,
            "scored": self.scored,
            "passed": self.passed,
            "failed": self.failed,
            "unscored": self.unscored.total(),
            "pass_rate": share,
            "pass_rate_low": low,
            "pass_rate_high": high,
        }


@dataclass(slots=True, kw_only=True)
class Summary:
    """Counts that grow while the work goes on.

    `results` are new in this command, with a value or finally unscored. `answered` and `unanswered` count
    the judgements for which a model was called and gave, or did not give, an answer. `failure` says what has to be
    mended before some judge can work.
    """

    run_id: str
    traces: int = 0
    sessions: int = 0
    results: int = 0
    reused: int = 0
    deferred: int = 0
    waiting: int = 0
    late: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    cost_unknown: int = 0
    answered: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    cursor: int | None = None
    seconds: float = 0.0
    scorers: dict[str, ScorerCount] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, name: str, version: str, outcome: Feedback | Unscored) -> None:
        """Count an outcome under its scorer."""
        counted = self.scorers.setdefault(name, ScorerCount(version=version))
        match outcome:
            case Feedback(passed=passed):
                counted.scored += 1
                counted.passed += passed is True
                counted.failed += passed is False
            case Unscored(reason=reason):
                counted.unscored[reason.value] += 1
            case _:
                assert_never(outcome)

    def spend(self, scored: Scored) -> None:
        """Count what a new result took; a provider that refuses a key or a model's name takes nothing for it."""
        usage = scored.usage
        unscored = scored.outcome if isinstance(scored.outcome, Unscored) else None
        self.calls += usage.calls
        self.cached += usage.cached
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        if usage.cost_usd is not None:
            self.cost_usd += usage.cost_usd
        elif usage.calls and not (unscored and unscored.reason.configuration):
            self.cost_unknown += 1
        if usage.calls and unscored and unscored.reason.unanswered:
            self.unanswered[unscored.detail] += 1
        elif usage.calls:
            self.answered += 1

    def check_answers(self) -> None:
        """Raises ModelError when a judge cannot work as it is configured, and when no call to a model came through."""
        if self.failure is not None:
            raise ModelError(f"{self.failure} (nothing is lost: what it was to judge waits)")
        if self.unanswered and not self.answered:
            [(detail, _)] = self.unanswered.most_common(1)
            raise ModelError(
                f"no model call came through: {detail} (nothing is lost: what is open is tried again)"
            )

    def to_json(self) -> dict[str, Any]:
        """The object of `once --json` and `eval --json`."""
        return {
            "run_id": self.run_id,
            "traces": self.traces,
            "sessions": self.sessions,
            "results": self.results,
            "reused": self.reused,
            "passed": sum(scorer.passed for scorer in self.scorers.values()),
            "failed": sum(scorer.failed for scorer in self.scorers.values()),
            "unscored": sum(scorer.unscored.total() for scorer in self.scorers.values()),
            "deferred": self.deferred,
            "skipped": self.skipped.total() + self.waiting,
            "waiting": self.waiting,
            "calls": self.calls,
            "cached": self.cached,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": None if self.cost_unknown and not self.cost_usd else round(self.cost_usd, 9),
            "cost_unknown": self.cost_unknown,
            "seconds": round(self.seconds, 3),
            "cursor": self.cursor,
            "scorers": {name: self.scorers[name].to_json() for name in sorted(self.scorers)},
            "notes": self.notes,
        }
