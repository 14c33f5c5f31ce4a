"""`eval --compare-batch`: the same traces judged by each judge alone and by all in one call, and where the two differ."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evaluator.chunk import EvaluationParts, Range
from evaluator.commands.evaluations import OfflineRequest, wanted_definitions
from evaluator.config import Config
from evaluator.errors import ConfigurationError
from evaluator.feedback import Scored, Unscored
from evaluator.guidelines.definitions import Definition, JudgeDefinition
from evaluator.guidelines.groups import SHARED, GroupKey, group_key
from evaluator.offline import pending_work
from evaluator.score import Active, Assignment, score
from evaluator.wiring import build_scorers, build_tables, utc_now

SAMPLE = 50
"""Traces, where --limit says no other number: each is judged twice by every judge."""


@dataclass(slots=True, kw_only=True)
class Spent:
    """What one way of asking took."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0

    def add(self, scored: Scored) -> None:
        usage = scored.usage
        self.calls += usage.calls
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        if usage.cost_usd is not None and self.cost_usd is not None:
            self.cost_usd += usage.cost_usd
        elif usage.input_tokens is not None:
            self.cost_usd = None

    def to_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A trace (or a span, `trace:span`) on which a judge said something else in the group than alone."""

    trace_id: str
    single: str
    joint: str
    single_rationale: str
    joint_rationale: str


@dataclass(slots=True, kw_only=True)
class Compared:
    """One judge, asked in both ways. `both` counts the traces with a result in each of them."""

    name: str
    group: Sequence[str]
    both: int = 0
    same: int = 0
    single_passed: int = 0
    joint_passed: int = 0
    single_unscored: int = 0
    joint_unscored: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, trace_id: str, single: Scored, joint: Scored) -> None:
        alone, together = single.outcome, joint.outcome
        self.single_unscored += isinstance(alone, Unscored)
        self.joint_unscored += isinstance(together, Unscored)
        if isinstance(alone, Unscored) or isinstance(together, Unscored):
            return
        self.both += 1
        self.single_passed += alone.passed is True
        self.joint_passed += together.passed is True
        if alone.value == together.value:
            self.same += 1
            return
        self.differences.append(
            Difference(
                trace_id=trace_id,
                single=str(alone.value),
                joint=str(together.value),
                single_rationale=alone.rationale,
                joint_rationale=together.rationale,
            )
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "group": list(self.group),
            "both": self.both,
            "same": self.same,
            "agreement": self.same / self.both if self.both else None,
            "single": {"passed": self.single_passed, "unscored": self.single_unscored},
            "joint": {"passed": self.joint_passed, "unscored": self.joint_unscored},
            "differences": [
                {
                    "trace_id": one.trace_id,
                    "single": one.single,
                    "joint": one.joint,
                    "single_rationale": one.single_rationale,
                    "joint_rationale": one.joint_rationale,
                }
                for one in self.differences
            ],
        }


@dataclass(slots=True, kw_only=True)
class Comparison:
    """How single and joint calls compare over some traces; `alone` are judges that nobody rides with."""

    traces: int = 0
    single: Spent = field(default_factory=Spent)
    joint: Spent = field(default_factory=Spent)
    judges: dict[str, Compared] = field(default_factory=dict)
    alone: Sequence[str] = ()
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "traces": self.traces,
            "single": self.single.to_json(),
            "joint": self.joint.to_json(),
            "judges": {name: compared.to_json() for name, compared in self.judges.items()},
            "alone": list(self.alone),
        }


async def compare_batch(config: Config, request: OfflineRequest) -> Comparison:
    """Judge a sample both ways; nothing is written. Raises EvaluatorError."""
    tables = build_tables(config)
    settings, wanted, _ = await asyncio.to_thread(wanted_definitions, config, request)
    groups = _groups(wanted, config.judge.model)
    if not groups:
        raise ConfigurationError(
            "--compare-batch: no two judges can ride in one call: they need the same model and target, and the same "
            f"{', '.join(SHARED[:3])}"
        )
    grouped = [judge for group in groups for judge in group]
    comparison = Comparison(
        judges={
            judge.name: Compared(name=judge.name, group=[one.name for one in group])
            for group in groups
            for judge in group
        },
        alone=[one.name for one in wanted if isinstance(one, JudgeDefinition) and one not in grouped],
    )
    ways: list[Definition] = [replace(one, batch=batch) for batch in ("single", "joint") for one in grouped]
    scorers = build_scorers(settings, ways, await asyncio.to_thread(tables.ledger.open), caching="off")
    single, joint = scorers.entries[: len(grouped)], scorers.entries[len(grouped) :]
    in_group = {entry.scorer.name: entry.scorer for entry in joint}
    parts = EvaluationParts(
        spans=tables.spans,
        ledger=tables.ledger,
        active=[Active(scorer=entry.scorer, rule=entry.rule) for entry in single],
        clock=utc_now,
        settle=config.settle,
        max_wait=config.max_wait,
        rescore=True,
        write=False,
    )
    within = Range(start=request.start, end=request.end, limit=request.limit or SAMPLE)
    try:
        async for evaluation, assignments in pending_work(parts, within, "compare"):
            comparison.traces = evaluation.summary.traces
            others = [replace(one, scorer=in_group[one.scorer.name]) for one in assignments]
            await _compare(comparison, assignments, others)
    finally:
        await scorers.close()
    return comparison


async def _compare(comparison: Comparison, single: Sequence[Assignment], joint: Sequence[Assignment]) -> None:
    alone, together = await score(single), await score(joint)
    failure = alone.failure or together.failure
    comparison.failure = comparison.failure or (str(failure) if failure else None)
    for assignment, one, other in zip(single, alone.results, together.results, strict=True):
        comparison.single.add(one)
        comparison.joint.add(other)
        comparison.judges[assignment.scorer.name].add(assignment.record.target.target_id, one, other)


def _groups(definitions: Iterable[Definition], model: str) -> list[list[JudgeDefinition]]:
    """The judges that could ride together, whatever their `batch` says now, two and more."""
    judges = [one for one in definitions if isinstance(one, JudgeDefinition) and not one.models]
    groups: dict[GroupKey, list[JudgeDefinition]] = {}
    for judge in judges:
        if judge.escalate_to is None:
            groups.setdefault(group_key(judge, model), []).append(judge)
    return [group for group in groups.values() if len(group) > 1]
