"""Judges that ride in one call: one question about a record for all of them, each with a part of the answer."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Outcome, Reason, Scored, SourceType, Target, Unscored, Usage
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.models.cache import Cache, cache_keys
from evaluator.models.client import Model
from evaluator.models.endpoint import Completion, Messages, ModelFailure
from evaluator.scorers.group_reply import joint_schema, keys_of, parts_of_reply
from evaluator.scorers.judge import (
    Calls,
    Expected,
    Judgement,
    cached_usage,
    check_usable,
    defined,
    expected,
    is_unreadable,
    metadata_of,
    nothing_to_judge,
    parts_of,
    question_of,
    shared_characters,
    total,
)
from evaluator.scorers.materials import Materials, Shown, sight_of
from evaluator.scorers.objects import UnreadableError
from evaluator.scorers.prompts import Question
from evaluator.scorers.reply import Passes, read_reply
from evaluator.scorers.scorer import fingerprint
from evaluator.scorers.view import Part
from evaluator.scorers.watched import Watch, unwatched

KEPT = 256
"""Answers of which some judge has not taken its part yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One judge of a group; `parts` is what of a record it looks at."""

    name: str
    question: Question
    parts: frozenset[Part]
    pass_if: Passes | None = None


@dataclass(slots=True, kw_only=True)
class _Answer:
    """What came of one call: the outcome of each judge, what all of it took, and what one judge took beside it."""

    messages: Sequence[Mapping[str, Any]] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    replies: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    alone: dict[str, Calls] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    payers: Sequence[str] = ()


@dataclass(slots=True, eq=False)
class _Underway:
    """A call about one record, and the judges that have asked for their part of it."""

    record: Record
    task: "asyncio.Task[_Answer]" = field(init=False)
    asked: list[str] = field(default_factory=list)

    def has(self, key: str, record: Record) -> bool:
        """Whether a judge's part about just this record comes of it."""
        if self.record is not record and self.record != record:
            return False
        return not self.task.done() or not is_unreadable(self.task.result().outcomes[key])


class JointCall:
    """Asks a model one question for several judges. Shared by them; each takes its part once for each record.

    Whoever asks first makes the call, the others wait for it; a failure is everybody's. What the call took is divided
    among those who were waiting when it ended, so that their sum is what it took. A judge that comes later (it was
    paused) takes its part of the answer for nothing, as long as that is remembered. A second asking is a new call.
    """

    def __init__(
        self, definitions: Sequence[JudgeDefinition], *, model: Model, materials: Materials,
        pass_if: Mapping[str, Passes | None] | None = None, cache: Cache | None = None, watch: Watch = unwatched,
    ) -> None:  # fmt: skip
        self.model = model
        self._cache = cache
        self._watch = watch
        self.materials = materials
        ordered = sorted(definitions, key=lambda definition: definition.name)
        self._keys = keys_of([definition.name for definition in ordered])
        self.members = {
            self._keys[definition.name]: Member(
                name=definition.name,
                question=question_of(definition),
                parts=parts_of(definition, materials.prompts),
                pass_if=(pass_if or {}).get(definition.name),
            )
            for definition in ordered
        }
        self.questions = {key: member.question for key, member in self.members.items()}
        parts = frozenset[Part]().union(*(member.parts for member in self.members.values()))
        self._sight = sight_of(model, parts, ordered[0].trace_view)
        self._schema = joint_schema(self.questions)
        self.definitions = {
            key: {**self.definition, "member": key, "pass_if": definition.pass_if}
            for key, definition in zip(self.members, ordered, strict=True)
        }
        self._versions = {key: fingerprint(definition) for key, definition in self.definitions.items()}
        self._underway: OrderedDict[Target, _Underway] = OrderedDict()
        model.prefixes.expect(self._sight)

    @property
    def definition(self) -> Mapping[str, Any]:
        """What every member's version is made of: the order of the files does not matter, the names do."""
        return {
            "kind": "joint",
            "group": {key: defined(question) for key, question in self.questions.items()},
            "model": self.model.name,
            "parameters": dict(self.model.parameters),
            "prompts": dict(self.materials.prompts.fingerprints("joint")),
            "schema": self._schema,
            "view": self._sight.definition,
            "redact": self.materials.redaction,
        }

    def key(self, name: str) -> str:
        """The field of the reply that is a judge's."""
        return self._keys[name]

    def render(self, record: Record) -> list[dict[str, Any]]:
        """The messages that the model is asked with."""
        return self._messages(self.materials.of(record, self._sight))

    def estimate(self, record: Record) -> Expected:
        """About what the call takes."""
        shown = self.materials.of(record, self._sight)
        if not shown.view.blocks:
            return Expected(model=self.model.name)
        return expected(self.model, self._messages(shown), self._schema)

    def known(self, record: Record) -> bool:
        """Whether the cache will have every judge's part by the time it is asked for."""
        if self._cache is None:
            return False
        keys = self._cache_keys(self.render(record))
        known = [self._cache.expects(key) for key in keys.values()]  # of all of them: each is then expected
        return all(known)

    async def part(self, key: str, record: Record) -> Judgement:
        """One judge's part of the answer about a record."""
        underway = self._for(key, record)
        underway.asked.append(key)
        try:
            answer = await asyncio.shield(underway.task)
        except asyncio.CancelledError:
            underway.asked.remove(key)
            if not underway.asked:
                underway.task.cancel()
                self._forget(underway)
            raise
        if len(underway.asked) == len(self.members):
            self._forget(underway)
        return self._judgement(key, answer)

    # --- one call for all who ask

    def _for(self, key: str, record: Record) -> _Underway:
        known = self._underway.get(record.target)
        if known is not None and key not in known.asked and known.has(key, record):
            return known
        underway = _Underway(record)
        underway.task = asyncio.create_task(self._watched(underway))
        self._underway[record.target] = underway
        return underway

    def _forget(self, underway: _Underway) -> None:
        if self._underway.get(underway.record.target) is underway:
            del self._underway[underway.record.target]

    async def _watched(self, underway: _Underway) -> _Answer:
        with self._watch(underway.record) as tell:
            answer = await self._answer(underway)
            for key in answer.payers:
                tell(self.members[key].name, answer.outcomes[key])
        return answer

    async def _answer(self, underway: _Underway) -> _Answer:
        shown = self.materials.of(underway.record, self._sight)
        answer = _Answer(metadata=metadata_of(shown, self.model))
        calls = Calls(self.model, [member.name for member in self.members.values()])
        if shown.view.blocks:
            answer.messages = self._messages(shown)
            await self._answer_all(answer, calls, shown, underway)
        for key, member in self.members.items():
            if not _applies(member.parts, underway.record, shown):
                answer.outcomes[key] = nothing_to_judge(member.parts, underway.record)
        if shown.view.blocks and not answer.usage.cached:
            answer.usage = calls.usage
        answer.replies = [reply.text for reply in calls.replies]
        answer.payers = sorted(underway.asked)
        self._drop_oldest()
        return answer

    async def _answer_all(self, answer: _Answer, calls: Calls, shown: Shown, underway: _Underway) -> None:
        """The outcomes for all: those that the cache holds of all of them, else those of a call."""
        if self._cache is None:
            await self._call(answer, calls, shown, underway)
            return
        keys = self._cache_keys(answer.messages)
        trace_id = underway.record.trace.trace_id
        async with self._cache.turn(next(iter(keys.values()))):
            known = _of_all(self._cache, keys, trace_id)
            if known is not None:
                answer.outcomes |= known
                answer.usage = cached_usage(self.model)
                answer.metadata = {**answer.metadata, "cached": True}
                return
            await self._call(answer, calls, shown, underway)
            for key, outcome in answer.outcomes.items():
                if isinstance(outcome, Feedback):
                    self._cache.put(keys[key], outcome, trace_id)

    def _cache_keys(self, messages: Messages) -> dict[str, bytes]:
        return dict(zip(self._versions, cache_keys(self._versions.values(), messages), strict=True))

    async def _call(self, answer: _Answer, calls: Calls, shown: Shown, underway: _Underway) -> None:
        try:
            answer.outcomes = await self._ask(answer, calls, shown)
            await self._ask_again(answer, calls, shown, underway.asked)
        except ModelFailure as failure:
            answer.outcomes = dict.fromkeys(self.members, calls.failure(failure))
            answer.metadata = {**answer.metadata, **calls.metadata}
            self._forget(underway)  # Who asks later asks anew.

    def _drop_oldest(self) -> None:
        while len(self._underway) > KEPT and next(iter(self._underway.values())).task.done():
            self._underway.popitem(last=False)

    async def _ask(self, answer: _Answer, calls: Calls, shown: Shown) -> dict[str, Outcome]:
        """Ask for all; and once more where nothing of the reply can be read."""
        shared = shared_characters(self.model, self._sight, shown)
        reply = await calls.ask(answer.messages, self._schema, shared)
        outcomes = self._read(reply, self.members, shown)
        problem = next(iter(outcomes.values()))
        if all(map(is_unreadable, outcomes.values())) and reply.finish_reason != "length":
            assert isinstance(problem, Unscored)
            again = self.materials.prompts.again(self.questions, problem.detail)
            reply = await calls.ask(_with(answer.messages, again), self._schema, shared)
            outcomes = self._read(reply, self.members, shown)
        return outcomes

    async def _ask_again(self, answer: _Answer, calls: Calls, shown: Shown, asked: Sequence[str]) -> None:
        """Ask for each judge that a reply misses with the group's prompt and a schema for that one."""
        cut_off = calls.replies[-1].finish_reason == "length" and len(self.members) > 1
        missing = [key for key, outcome in answer.outcomes.items() if is_unreadable(outcome) and key in asked]
        if len(missing) == len(self.members) and not cut_off:
            return  # It has been asked twice.
        answer.alone = {key: Calls(self.model, [self.members[key].name]) for key in missing}
        outcomes = await asyncio.gather(*(self._alone(key, answer, shown) for key in missing))
        answer.outcomes |= dict(zip(missing, outcomes, strict=True))

    async def _alone(self, key: str, answer: _Answer, shown: Shown) -> Outcome:
        question = {key: self.questions[key]}
        messages = _with(answer.messages, self.materials.prompts.again(question))
        shared = shared_characters(self.model, self._sight, shown)
        try:
            reply = await answer.alone[key].ask(messages, joint_schema(question), shared)
        except ModelFailure as failure:
            return answer.alone[key].failure(failure)
        return self._read(reply, question, shown)[key]

    def _read(self, reply: Completion, keys: Mapping[str, object], shown: Shown) -> dict[str, Outcome]:
        try:
            parts = parts_of_reply(reply.text, keys)
        except UnreadableError as problem:
            parts = dict.fromkeys(keys, "")
            if reply.finish_reason not in ("refusal", "content_filter", "length"):
                return dict.fromkeys(keys, Unscored(reason=Reason.BAD_REPLY, detail=str(problem)))
        return {
            key: read_reply(
                replace(reply, text=part),
                self.members[key].question.values,
                self.members[key].pass_if,
                shown.texts,
            )
            for key, part in parts.items()
        }

    def _judgement(self, key: str, answer: _Answer) -> Judgement:
        alone = answer.alone.get(key)
        if key in answer.payers:
            usage = share_of(answer.usage, len(answer.payers), answer.payers.index(key))
        else:
            usage = cached_usage(self.model)
        if alone is not None:
            usage = _added(usage, alone)
        replies = [*answer.replies, *(reply.text for reply in (alone.replies if alone else ()))]
        scored = Scored(outcome=answer.outcomes[key], usage=usage, metadata=answer.metadata)
        return Judgement(messages=answer.messages, replies=tuple(replies), scored=scored)

    def _messages(self, shown: Shown) -> list[dict[str, Any]]:
        task = self.materials.prompts.joint_task(shown.material.code, self.questions)
        return shown.material.messages(task)


class JointJudge:
    """One judge of a group, as a scorer of its own. Its version is made of the whole group."""

    source_type: SourceType = "LLM_JUDGE"
    waits = True

    def __init__(self, definition: JudgeDefinition, call: JointCall) -> None:
        self._name = definition.name
        self._call = call
        self._key = call.key(definition.name)
        self._definition = call.definitions[self._key]
        self._version = fingerprint(self._definition)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._version

    @property
    def definition(self) -> Mapping[str, Any]:
        return self._definition

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        return [(await self.judge(record)).scored for record in records]

    async def judge(self, record: Record) -> Judgement:
        """This judge's part of the group's judgement. Raises ModelError when the model has to be mended first."""
        judgement = await self._call.part(self._key, record)
        check_usable(self.name, self._call.model.name, judgement.scored)
        return judgement

    def render(self, record: Record) -> list[dict[str, Any]]:
        """The messages that the model is asked with, for the whole group."""
        return self._call.render(record)

    def estimate(self, record: Record) -> Expected:
        """About what the call takes that the whole group shares."""
        return self._call.estimate(record)

    def known(self, record: Record) -> bool:
        """Whether the cache will have the whole group's parts by the time they are asked for."""
        return self._call.known(record)


def share_of(usage: Usage, among: int, index: int) -> Usage:
    """One part of what several took together. The parts add up: counts to the whole, cost and time evenly."""
    return replace(
        usage,
        calls=_share(usage.calls, among, index),
        input_tokens=None if usage.input_tokens is None else _share(usage.input_tokens, among, index),
        output_tokens=None if usage.output_tokens is None else _share(usage.output_tokens, among, index),
        cost_usd=None if usage.cost_usd is None else usage.cost_usd / among,
        latency_ms=None if usage.latency_ms is None else usage.latency_ms / among,
    )


def _share(whole: int, among: int, index: int) -> int:
    return whole // among + (index < whole % among)


def _added(share: Usage, alone: Calls) -> Usage:
    """A share of the group's call, and what one judge took beside it."""
    own = alone.usage
    if not alone.replies:
        return replace(share, calls=share.calls + own.calls)
    return replace(
        share,
        calls=share.calls + own.calls,
        input_tokens=total([share.input_tokens, own.input_tokens]),
        output_tokens=total([share.output_tokens, own.output_tokens]),
        cost_usd=total([share.cost_usd, own.cost_usd]),
        latency_ms=total([share.latency_ms, own.latency_ms]),
    )


def _of_all(cache: Cache, keys: Mapping[str, bytes], trace_id: str) -> dict[str, Feedback] | None:
    """Every judge's part as the cache holds it; None when it lacks one, of a prompt that is new the first."""
    found: dict[str, Feedback] = {}
    for key, cached in keys.items():
        feedback = cache.get(cached, trace_id)
        if feedback is None:
            return None
        found[key] = feedback
    return found


def _applies(parts: frozenset[Part], record: Record, shown: Shown) -> bool:
    """Whether the record has anything of what a judge looks at."""
    held = {"inputs": record.inputs, "outputs": record.outputs, "expectations": record.expectations}
    return bool(shown.view.blocks) and ("trace" in parts or any(held[part] for part in parts))


def _with(messages: Sequence[Mapping[str, Any]], said: str) -> list[dict[str, Any]]:
    """The messages with something said at their very end: they begin as they did."""
    *before, last = (dict(message) for message in messages)
    return [*before, {**last, "content": f"{last['content']}\n\n{said}"}]
