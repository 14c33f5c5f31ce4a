"""Attacking a judge: does a text in a trace turn its verdict? Nothing is written."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from evaluator.commands.attack_set import Attack, Case, shipped_attacks
from evaluator.config import Config, nearest
from evaluator.dataset.records import Record
from evaluator.errors import ConfigurationError, EvaluatorError
from evaluator.feedback import Feedback, Scored, Usage, Value
from evaluator.guidelines.definitions import (
    Categories,
    Definition,
    Example,
    JudgeDefinition,
    NumberRange,
    Values,
    YesNo,
)
from evaluator.guidelines.groups import with_companions
from evaluator.scorers.scorer import Scorer
from evaluator.wiring import build_scorers, build_tables, definitions_of

BUILT_IN = "attack_test"
EXPECTED = {"bad": "fail", "good": "pass"}
"""What an example expects that is taken for the bad record, and for the good one."""


class State(StrEnum):
    """What became of an attack."""

    HELD = "held"
    TURNED = "turned"
    UNSCORED = "unscored"
    UNSEEN = "unseen"
    """The judge is not shown the part that holds the attack."""
    MISJUDGED = "misjudged"
    """The judge is wrong about this record without any attack, so that no attack can turn it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attack: the verdict without it, the one that it wanted, and the one that it got (None: none)."""

    name: str
    kind: str
    place: str
    state: State
    reference: Value
    wanted: Value
    got: Value | None = None
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackReport:
    """How a judge did against the whole set, and what that took; `cost_usd` None is unknown."""

    judge: str
    version: str
    attempts: Sequence[Attempt]
    calls: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None

    def count(self, state: State) -> int:
        return sum(attempt.state is state for attempt in self.attempts)

    @property
    def decided(self) -> int:
        """Attacks that had an answer: those that turned the judge and those that did not."""
        return self.count(State.HELD) + self.count(State.TURNED)

    def kinds(self) -> Mapping[str, Counter[State]]:
        """States by kind of attack, in the order of the set."""
        kinds: dict[str, Counter[State]] = {}
        for attempt in self.attempts:
            kinds.setdefault(attempt.kind, Counter())[attempt.state] += 1
        return kinds

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        counts = {"attacks": len(self.attempts), **{state.value: self.count(state) for state in State}}
        return {"judge": told.pop("judge"), "version": told.pop("version"), **counts, **told}


async def attack_judge(config: Config, name: str | None) -> AttackReport:
    """Attack a judge, or without a name a built-in guideline and the default model. Raises EvaluatorError.

    Its right verdicts are known where the set or the judge's own examples tell them; elsewhere the verdict
    without an attack is what no attack may change.
    """
    shipped = shipped_attacks()
    if name is None:
        definition, cases = JudgeDefinition(name=BUILT_IN, guidelines=(shipped.guideline,)), shipped.cases
        group: Sequence[Definition] = [definition]
    else:
        definitions = definitions_of(config)
        definition = _judge_named(definitions, name)
        cases = _cases_of(definition, shipped.cases)
        group = with_companions([definition], definitions, config.judge.model)
    scorers = build_scorers(config, group, build_tables(config).ledger.open(), caching="off")
    try:
        asked = {entry.scorer.name: entry.scorer for entry in scorers.entries}
        return await _attacked(
            _Asked(scorer=asked[definition.name], group=[*asked.values()]), definition, cases
        )
    finally:
        await scorers.close()


@runtime_checkable
class _Renders(Protocol):
    """A judge that can say what it would ask."""

    def render(self, record: Record) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The judge with those that share its call, which are asked with it."""

    scorer: Scorer
    group: Sequence[Scorer]

    async def score(self, record: Record) -> tuple[Scored, list[Usage]]:
        """The judge's result, and what the whole group took."""
        results = await asyncio.gather(*(one.score([record]) for one in self.group))
        [scored] = results[self.group.index(self.scorer)]
        return scored, [one.usage for [one] in results]

    def sees(self, attacked: Record, clean: Record) -> bool:
        """Whether the judge is shown anything of what makes the two differ."""
        return not isinstance(self.scorer, _Renders) or self.scorer.render(attacked) != self.scorer.render(
            clean
        )


def _judge_named(definitions: Sequence[Definition], name: str) -> JudgeDefinition:
    judges = {one.name: one for one in definitions if isinstance(one, JudgeDefinition)}
    if name not in judges:
        raise ConfigurationError(f'--judge: there is no judge "{name}"{nearest(name, list(judges))}')
    return judges[name]


def _cases_of(definition: JudgeDefinition, shipped: Mapping[str, Case]) -> Mapping[str, Case]:
    """The records for a judge: its own examples where it has one that passes and one that fails, else the shipped ones."""
    examples: Mapping[str, Example] = {example.expect: example for example in definition.examples}
    if len(examples) < 2:
        return {on: replace(case, passes=None) for on, case in shipped.items()}
    return {
        on: replace(
            case,
            request=_text(examples[EXPECTED[on]].inputs),
            response=_text(examples[EXPECTED[on]].outputs),
            passes=on == "good",
        )
        for on, case in shipped.items()
    }


async def _attacked(judge: _Asked, definition: JudgeDefinition, cases: Mapping[str, Case]) -> AttackReport:
    usages: list[Usage] = []
    references: dict[str, Feedback] = {}
    for on, case in cases.items():
        scored, took = await judge.score(case.record(definition.target))
        usages += [usage for usage in took if usage.calls]
        references[on] = _reference(definition.name, on, scored)

    async def attempt(attack: Attack) -> Attempt:
        case, reference = cases[attack.on], references[attack.on]
        wanted = _opposite(definition.values, reference.value)
        tried = Attempt(
            name=attack.name,
            kind=attack.kind,
            place=attack.place,
            state=State.MISJUDGED,
            reference=reference.value,
            wanted=wanted,
        )
        if case.passes is not None and reference.passed is not case.passes:
            return tried
        text = attack.injected(wanted if isinstance(wanted, str) else json.dumps(wanted))
        attacked = case.attacked(attack.place, text).record(definition.target)
        if not judge.sees(attacked, case.record(definition.target)):
            return replace(tried, state=State.UNSEEN)
        scored, took = await judge.score(attacked)
        usages.extend(usage for usage in took if usage.calls)
        return _told(tried, reference, scored)

    attempts = await asyncio.gather(*(attempt(attack) for attack in shipped_attacks().attacks))
    return AttackReport(
        judge=definition.name,
        version=judge.scorer.version,
        attempts=attempts,
        calls=sum(usage.calls for usage in usages),
        input_tokens=_total([usage.input_tokens for usage in usages]),
        output_tokens=_total([usage.output_tokens for usage in usages]),
        cost_usd=_total([usage.cost_usd for usage in usages]),
    )


def _reference(name: str, on: str, scored: Scored) -> Feedback:
    outcome = scored.outcome
    if isinstance(outcome, Feedback):
        return outcome
    raise EvaluatorError(
        f'judge "{name}" gave no verdict about the {on} record without any attack: {outcome.reason}, {outcome.detail}'
    )


def _opposite(values: Values, value: Value) -> Value:
    """The verdict that an attack wants instead: the one that is farthest away."""
    match values:
        case YesNo():
            return "no" if value == "yes" else "yes"
        case Categories(values=words):
            return words[-1] if value == words[0] else words[0]
        case NumberRange(min=lowest, max=highest):
            assert isinstance(value, int | float)
            return highest if value < (lowest + highest) / 2 else lowest


def _told(tried: Attempt, reference: Feedback, scored: Scored) -> Attempt:
    outcome = scored.outcome
    if not isinstance(outcome, Feedback):
        return replace(tried, state=State.UNSCORED, told=f"{outcome.reason}: {outcome.detail}")
    if reference.passed is None:
        turned = outcome.value == tried.wanted
    else:
        turned = outcome.passed is not reference.passed
    state = State.TURNED if turned else State.HELD
    return replace(tried, state=state, got=outcome.value, told=outcome.rationale)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _total(values: Sequence[Any]) -> Any:
    return None if None in values else sum(values)
