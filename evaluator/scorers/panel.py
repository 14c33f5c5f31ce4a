"""A judge of several models: each of them votes, and a stronger one is asked when they do not decide."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, assert_never

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Outcome, Reason, Scored, SourceType, Unscored, Value
from evaluator.guidelines.definitions import UNSURE, Decision, JudgeDefinition, NumberRange
from evaluator.scorers.judge import Expected, Judge, Judgement, check_usable, together, total
from evaluator.scorers.reply import Passes
from evaluator.scorers.scorer import fingerprint
from evaluator.scorers.watched import Watch, unwatched


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one model said."""

    model: str
    scored: Scored

    @property
    def feedback(self) -> Feedback | None:
        """Its vote; None where it gave none: it could not be read, was refused, or said that it is unsure."""
        outcome = self.scored.outcome
        return outcome if isinstance(outcome, Feedback) and outcome.value != UNSURE else None

    @property
    def missing(self) -> Unscored | None:
        """Why there is no vote, where that is a failure."""
        return self.scored.outcome if isinstance(self.scored.outcome, Unscored) else None

    @property
    def may_come(self) -> bool:
        """Whether another attempt may bring the vote that is missing."""
        reason = self.missing.reason if self.missing else None
        return reason is not None and (reason.transient or reason.held_back)

    def told(self) -> dict[str, Any]:
        """The vote as the result's metadata keeps it."""
        outcome, usage = self.scored.outcome, self.scored.usage
        if isinstance(outcome, Feedback):
            said = {"value": outcome.value, "passed": outcome.passed, "rationale": outcome.rationale}
        else:
            said = {"value": None, "passed": None, "error": f"{outcome.reason}: {outcome.detail}"}
        took = {
            "calls": usage.calls,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_usd,
            "latency_ms": usage.latency_ms,
        }
        return {"model": self.model, **said, **took, **self.scored.metadata}


class PanelJudge:
    """A scorer whose judges each ask a model of their own about the same record.

    `voters` are asked at the same time. A failed call is no vote, and is never a reason to escalate: where the votes
    that failed could still turn the result, it is unscored for their reason and tried again. `arbiter` is asked when
    the votes there are do not decide, or a judge that is alone says that it is unsure; its word is the result.
    """

    source_type: SourceType = "LLM_JUDGE"
    waits = True

    def __init__(
        self,
        definition: JudgeDefinition,
        *,
        voters: Sequence[Judge],
        arbiter: Judge | None = None,
        pass_if: Passes | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self._judge = definition
        self._watch = watch
        self._voters = voters
        self._arbiter = arbiter
        self._pass_if = pass_if
        self._definition: Mapping[str, Any] = {
            "kind": "panel",
            "voters": [voter.definition for voter in voters],
            "decide": definition.decide,
            "escalate_to": None if arbiter is None else arbiter.definition,
        }
        self._version = fingerprint(self._definition)

    @property
    def name(self) -> str:
        return self._judge.name

    @property
    def version(self) -> str:
        return self._version

    @property
    def definition(self) -> Mapping[str, Any]:
        return self._definition

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        return [(await self.judge(record)).scored for record in records]

    def render(self, record: Record) -> list[dict[str, Any]]:
        """The messages that the first of the models is asked with."""
        return self._voters[0].render(record)

    def estimate(self, record: Record) -> Expected:
        """About what the votes take; an escalation comes on top where there is one."""
        told = [voter.estimate(record) for voter in self._voters]
        return Expected(
            model=", ".join(one.model for one in told),
            calls=sum(one.calls for one in told),
            input_tokens=sum(one.input_tokens for one in told),
            output_tokens=sum(one.output_tokens for one in told),
            cost_usd=total([one.cost_usd for one in told]),
        )

    def known(self, record: Record) -> bool:
        """Whether the cache will have all the votes by the time they are asked for."""
        known = [voter.known(record) for voter in self._voters]
        return all(known)

    async def judge(self, record: Record) -> Judgement:
        """The panel's judgement. Raises ModelError when it cannot decide before a model is mended."""
        with self._watch(record) as tell:
            judgement, votes = await self._voted(record)
            tell(self.name, judgement.scored.outcome)
        for vote in votes:
            if vote.missing is judgement.scored.outcome:
                check_usable(self.name, vote.model, judgement.scored)
        return judgement

    async def _voted(self, record: Record) -> tuple[Judgement, Sequence[Vote]]:
        """What the votes come to, the arbiter's included where there was one, and the votes."""
        judgements = list(await asyncio.gather(*(voter.ask(record) for voter in self._voters)))
        votes = [
            Vote(model=voter.model, scored=judgement.scored)
            for voter, judgement in zip(self._voters, judgements, strict=True)
        ]
        outcome = decided(votes, self._judge, self._pass_if)
        if _is_split(outcome) and self._arbiter is not None:
            last = await self._arbiter.ask(record)
            judgements.append(last)
            votes.append(Vote(model=self._arbiter.model, scored=last.scored))
            outcome = last.scored.outcome
        judgement = Judgement(
            messages=judgements[0].messages,
            replies=tuple(reply for judgement in judgements for reply in judgement.replies),
            scored=self._scored(outcome, votes),
        )
        return judgement, votes

    def _scored(self, outcome: Outcome, votes: Sequence[Vote]) -> Scored:
        usage = together([vote.scored.usage for vote in votes], ", ".join(vote.model for vote in votes))
        if not usage.calls and not usage.cached:
            waiting = [vote.scored.metadata for vote in votes if vote.missing is outcome]
            return Scored(outcome=outcome, usage=usage, metadata=waiting[0] if waiting else {})
        metadata: dict[str, Any] = {"votes": [vote.told() for vote in votes]}
        if len(votes) > len(self._voters):
            metadata["escalated_to"] = votes[-1].model
        return Scored(outcome=outcome, usage=usage, metadata=metadata)


def decided(votes: Sequence[Vote], judge: JudgeDefinition, passes: Passes | None = None) -> Outcome:
    """What the votes come to; UNDECIDED where they are split.

    A failure instead, where no vote was given at all, or where another attempt at it could still decide.

    majority: what more than half of all models say, and of numbers the median of the votes, once more than half of them
    voted. unanimous: what all of them say. any_fail: one that does not pass is enough, and all have to pass otherwise.
    """
    feedbacks = [vote.feedback for vote in votes if vote.feedback is not None]
    absent = sum(vote.may_come for vote in votes)
    found = _found(feedbacks, len(votes), judge.decide, isinstance(judge.values, NumberRange))
    failures = sorted((vote for vote in votes if vote.missing), key=_comes_first)
    none_given = len(failures) == len(votes)
    if found is None and (none_given or (absent and _open(feedbacks, absent, len(votes), judge))):
        assert failures[0].missing is not None
        return failures[0].missing
    if found is None:
        return Unscored(reason=Reason.UNDECIDED, detail=_how_split(votes))
    if len(votes) == 1:
        return found
    agreeing = sum(feedback.value == found.value for feedback in feedbacks)
    said = f"{agreeing} of {len(votes)} models say {found.value}"
    if isinstance(judge.values, NumberRange) and judge.decide == "majority":
        said = f"{found.value} is the median of {', '.join(str(one.value) for one in feedbacks)}"
    return _with_rationale(found, said, passes)


def _found(votes: Sequence[Feedback], models: int, decide: Decision, numbers: bool) -> Feedback | None:
    """The vote that the panel makes its own; None where the votes decide nothing."""
    match decide:
        case "majority" if numbers:
            return _median(votes) if len(votes) * 2 > models else None
        case "majority":
            return _common(votes, more_than=models / 2)
        case "unanimous":
            return _common(votes, more_than=models - 1)
        case "any_fail":
            failing = [vote for vote in votes if vote.passed is False]
            if failing:
                return _low(failing) if numbers else _common(failing, more_than=0)
            if len(votes) < models:
                return None
            return _median(votes) if numbers else _common(votes, more_than=0)
        case _:
            assert_never(decide)


def _open(votes: Sequence[Feedback], absent: int, models: int, judge: JudgeDefinition) -> bool:
    """Whether votes that failed could still bring a decision."""
    if judge.decide == "any_fail":
        return True
    if isinstance(judge.values, NumberRange) and judge.decide == "majority":
        return (len(votes) + absent) * 2 > models
    most = max(Counter(vote.value for vote in votes).values(), default=0)
    return most + absent > (models - 1 if judge.decide == "unanimous" else models / 2)


def _common(votes: Sequence[Feedback], *, more_than: float) -> Feedback | None:
    """The first vote of the value that most gave, if more than so many did."""
    counted = Counter(vote.value for vote in votes).most_common(1)
    if not counted or counted[0][1] <= more_than:
        return None
    return next(vote for vote in votes if vote.value == counted[0][0])


def _median(votes: Sequence[Feedback]) -> Feedback:
    """The median of the numbers, with the rationale of the vote next to it."""
    middle = median([float(vote.value) for vote in votes])
    nearest = min(votes, key=lambda vote: abs(float(vote.value) - middle))
    value: Value = int(middle) if middle.is_integer() else middle
    return Feedback(value=value, passed=nearest.passed, rationale=nearest.rationale)


def _low(votes: Sequence[Feedback]) -> Feedback:
    """The middle one of the votes themselves: what lies between two that fail may pass."""
    return sorted(votes, key=lambda vote: float(vote.value))[(len(votes) - 1) // 2]


def _with_rationale(found: Feedback, said: str, passes: Passes | None) -> Feedback:
    passed = found.passed if passes is None else passes(found.value)
    return Feedback(value=found.value, passed=passed, rationale=f"{said}. {found.rationale}".strip())


def _comes_first(vote: Vote) -> tuple[bool, bool]:
    """What the whole result waits for: first what the operator has to mend, then what may pass by itself."""
    return not (vote.missing and vote.missing.reason.configuration), not vote.may_come


def _is_split(outcome: Outcome) -> bool:
    return isinstance(outcome, Unscored) and outcome.reason is Reason.UNDECIDED


def _how_split(votes: Sequence[Vote]) -> str:
    """The votes by model, without what they say of the trace."""
    said = [
        f"{vote.model}: {vote.feedback.value if vote.feedback else vote.missing.reason if vote.missing else UNSURE}"
        for vote in votes
    ]
    return f"the votes do not decide ({', '.join(said)}; escalate_to names a model that is asked then)"
