"""A judge: asks a model about one record and reads its reply."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import orjson

from evaluator.dataset.records import Record
from evaluator.errors import ConfigurationError
from evaluator.feedback import Feedback, Outcome, Reason, Scored, SourceType, Unscored, Usage
from evaluator.guidelines.definitions import UNSURE, Categories, JudgeDefinition, NumberRange, Values, YesNo
from evaluator.models.account import Amount
from evaluator.models.budget import NoRoom
from evaluator.models.cache import Cache, cache_key
from evaluator.models.client import Model
from evaluator.models.endpoint import Completion, Messages, ModelFailure
from evaluator.scorers.materials import Materials, Shown, sight_of
from evaluator.scorers.prompts import Prompts, Question
from evaluator.scorers.reply import RATIONALES, Passes, read_reply, reply_schema
from evaluator.scorers.scorer import Scorer, UnusableModelError, about, fingerprint
from evaluator.scorers.view import Part
from evaluator.scorers.watched import Watch, unwatched

WANTED = "wanted"
"""The metadata of what waits for the budget: the USD and the tokens that it had no room for, and who was to pay."""
LONGEST_QUOTED_REPLY = 4_000
RATIONALE_TOKENS = 38
"""A guess: two sentences, where the prompts ask for two or three. A model that reasons takes more."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All of one judging: what was sent, the raw replies (further ones after a repair), the result."""

    messages: Messages
    replies: tuple[str, ...]
    scored: Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """About what judging one record will take. `cost_usd` None is unknown."""

    model: str
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0


@runtime_checkable
class ModelScorer(Scorer, Protocol):
    """A scorer that asks models, alone, in a group or as a panel."""

    async def judge(self, record: Record) -> Judgement:
        """Judge one record. Raises ModelError when a model has to be mended before anything can be judged."""
        ...

    def estimate(self, record: Record) -> Expected:
        """About what judging a record will take; no call is made."""
        ...

    def known(self, record: Record) -> bool:
        """Whether the cache will have the result by the time it is asked for."""
        ...


@dataclass(slots=True)
class Calls:
    """The calls to one model that a judging takes, failed ones included; `judges` pay for them.

    `wanted` is what the budget had no room for.
    """

    model: Model
    judges: Sequence[str] = ()
    replies: list[Completion] = field(default_factory=list)
    failed: int = 0
    wanted: Amount | None = None

    async def ask(self, messages: Messages, schema: Mapping[str, Any], shared: int) -> Completion:
        """The next reply. Raises ModelFailure."""
        try:
            self.replies.append(
                await self.model.complete(messages, schema, shared=shared, judges=self.judges)
            )
        except ModelFailure as failure:
            self.failed += failure.calls
            self.wanted = failure.wanted if isinstance(failure, NoRoom) else None
            raise
        return self.replies[-1]

    @property
    def usage(self) -> Usage:
        """What they took; unknown where one of the replies does not say."""
        return Usage(
            model=self.model.name,
            calls=sum(reply.calls for reply in self.replies) + self.failed,
            input_tokens=total([reply.input_tokens for reply in self.replies]),
            output_tokens=total([reply.output_tokens for reply in self.replies]),
            cost_usd=total([reply.cost_usd for reply in self.replies]),
            latency_ms=total([reply.latency_ms for reply in self.replies]),
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What a result that waits for the budget remembers."""
        if self.wanted is None:
            return {}
        return {WANTED: {"usd": self.wanted.usd, "tokens": self.wanted.tokens, "judges": list(self.judges)}}

    def failure(self, failure: ModelFailure) -> Unscored:
        return Unscored(reason=failure.reason, detail=f"{self.model.name}: {failure.detail}")


class Judge:
    """A scorer that waits on a model: one question a record, and one repair of a reply that cannot be read.

    `pass_if` tells of a value whether it passes; `unsure`: the model may also answer UNSURE, which neither passes
    nor fails; `watch` goes around each judging. Raises ConfigurationError for instructions that do not compile.
    """

    source_type: SourceType = "LLM_JUDGE"
    waits = True

    def __init__(
        self,
        definition: JudgeDefinition,
        *,
        model: Model,
        materials: Materials,
        pass_if: Passes | None = None,
        unsure: bool = False,
        cache: Cache | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self._judge = definition
        self._cache = cache
        self._watch = watch
        self._model = model
        self._materials = materials
        self._prompts = materials.prompts
        self._pass_if = pass_if
        self._unsure = unsure
        self._question = question_of(definition)
        self._schema = unsure_schema(definition.values) if unsure else reply_schema(definition.values)
        self._parts = parts_of(definition, materials.prompts)
        self._sight = sight_of(model, self._parts, definition.trace_view)
        self._definition = self._defined()
        self._version = fingerprint(self._definition)
        model.prefixes.expect(self._sight)

    @property
    def name(self) -> str:
        return self._judge.name

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return self._model.name

    @property
    def version(self) -> str:
        return self._version

    @property
    def definition(self) -> Mapping[str, Any]:
        return self._definition

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        return [(await self.judge(record)).scored for record in records]

    def render(self, record: Record) -> list[dict[str, Any]]:
        """The messages that the model is asked with."""
        return self._messages(self._shown(record))

    def estimate(self, record: Record) -> Expected:
        """About what judging a record will take; no call is made."""
        shown = self._shown(record)
        return (
            expected(self._model, self._messages(shown), self._schema)
            if shown.view.blocks
            else Expected(model=self.model)
        )

    def known(self, record: Record) -> bool:
        """Whether the cache will have the result by the time it is asked for."""
        return self._cache is not None and self._cache.expects(cache_key(self._version, self.render(record)))

    async def judge(self, record: Record) -> Judgement:
        """Judge one record. Raises ModelError when the model has to be mended before anything can be judged."""
        with self._watch(record) as tell:
            judgement = await self.ask(record)
            tell(self.name, judgement.scored.outcome)
        check_usable(self.name, self.model, judgement.scored)
        return judgement

    async def ask(self, record: Record) -> Judgement:
        """Judge one record; that the model has to be mended is a reason like any other."""
        shown = self._shown(record)
        if not shown.view.blocks:
            return Judgement(
                messages=(), replies=(), scored=Scored(outcome=nothing_to_judge(self._parts, record))
            )
        messages = self._messages(shown)
        if self._cache is None:
            return await self._answer(messages, shown)
        key, trace_id = cache_key(self._version, messages), record.trace.trace_id
        async with self._cache.turn(key):
            known = self._cache.get(key, trace_id)
            if known is not None:
                return Judgement(messages=messages, replies=(), scored=from_cache(known, shown, self._model))
            judgement = await self._answer(messages, shown)
            if isinstance(judgement.scored.outcome, Feedback):
                self._cache.put(key, judgement.scored.outcome, trace_id)
            return judgement

    async def _answer(self, messages: Messages, shown: Shown) -> Judgement:
        """The judgement that the model gives."""
        calls = Calls(self._model, [self.name])
        try:
            outcome = await self._asked(messages, calls, shown)
        except ModelFailure as failure:
            outcome = calls.failure(failure)
        metadata = {**metadata_of(shown, self._model), **calls.metadata}
        scored = Scored(outcome=outcome, usage=calls.usage, metadata=metadata)
        return Judgement(
            messages=messages, replies=tuple(reply.text for reply in calls.replies), scored=scored
        )

    async def _asked(self, messages: Messages, calls: Calls, shown: Shown) -> Outcome:
        """Ask; and once more when the reply cannot be read, for most models mend it when told."""
        shared = shared_characters(self._model, self._sight, shown)
        reply = await calls.ask(messages, self._schema, shared)
        outcome = self._read(reply, shown)
        if is_unreadable(outcome) and reply.finish_reason != "length":
            reply = await calls.ask(self._repair(messages, reply, outcome), self._schema, shared)
            outcome = self._read(reply, shown)
        return outcome

    def _read(self, reply: Completion, shown: Shown) -> Outcome:
        outcome = read_reply(reply, self._judge.values, self._pass_if, shown.texts)
        if self._unsure and is_unreadable(outcome):
            said = read_reply(reply, Categories(values=(UNSURE,)), None, shown.texts)
            return said if isinstance(said, Feedback) else outcome
        return outcome

    def _repair(self, messages: Messages, reply: Completion, problem: Outcome) -> Messages:
        if not reply.text.strip() or not isinstance(problem, Unscored):
            return messages  # Providers refuse an empty message of an assistant.
        said = reply.text[:LONGEST_QUOTED_REPLY].encode("utf-8", "replace").decode()
        request = self._prompts.repair(problem.detail, self._judge.values, unsure=self._unsure)
        return [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": request}]

    def _shown(self, record: Record) -> Shown:
        return self._materials.of(record, self._sight)

    def _messages(self, shown: Shown) -> list[dict[str, Any]]:
        task = self._prompts.task(shown.material.code, self._question, unsure=self._unsure)
        return shown.material.messages(task)

    def _defined(self) -> Mapping[str, Any]:
        kind = "guidelines" if self._judge.instructions is None else "instructions"
        return {
            "kind": kind,
            **defined(self._question),
            "pass_if": self._judge.pass_if,
            "model": self._model.name,
            "parameters": dict(self._model.parameters),
            "prompts": dict(self._prompts.fingerprints(kind)),
            "schema": self._schema,
            "view": self._sight.definition,
            "redact": self._materials.redaction,
        }


# --- what judges of all kinds have in common


def question_of(definition: JudgeDefinition) -> Question:
    return Question(
        guidelines=definition.guidelines,
        instructions=definition.instructions,
        values=definition.values,
        target=definition.target,
    )


def defined(question: Question) -> dict[str, Any]:
    """A question in JSON values, for definitions."""
    return {
        "guidelines": list(question.guidelines),
        "instructions": question.instructions,
        "values": {type(question.values).__name__: asdict(question.values)},
        **about(question.target),
    }


def parts_of(definition: JudgeDefinition, prompts: Prompts) -> frozenset[Part]:
    """What of a record a judge looks at. Raises ConfigurationError for instructions that do not compile."""
    if definition.instructions is None:
        return frozenset({"trace"})
    try:
        return prompts.parts_named(definition.instructions)
    except ConfigurationError as error:
        place = f"{definition.path}:{definition.line}: " if definition.path else ""
        raise ConfigurationError(f'{place}judge "{definition.name}": {error}') from error


def unsure_schema(values: Values) -> dict[str, Any]:
    """The schema of a reply that may also say that the model is unsure."""
    schema = reply_schema(values)
    result = dict(schema["properties"]["result"])
    match values:
        case YesNo() | Categories():
            result["enum"] = [*result["enum"], UNSURE]
        case NumberRange():
            result = {"anyOf": [result, {"type": "string", "enum": [UNSURE]}]}
    return {**schema, "properties": {**schema["properties"], "result": result}}


def shared_characters(model: Model, sight: object, shown: Shown) -> int:
    """How much of the prompt's user message is that of other calls about the same record, too."""
    return len(shown.material.text) if model.prefixes.shared(sight) else 0


def is_unreadable(outcome: Outcome) -> bool:
    return isinstance(outcome, Unscored) and outcome.reason is Reason.BAD_REPLY


def nothing_to_judge(parts: frozenset[Part], record: Record) -> Unscored:
    if "trace" in parts and record.step is not None:
        detail = "the span holds neither an input nor an output nor an error"
    elif "trace" in parts:
        detail = "the trace holds neither a request nor a response nor any step with content"
    else:
        detail = f"the {record.subject} has no {' and no '.join(sorted(parts))}"
    return Unscored(reason=Reason.NOT_APPLICABLE, detail=detail)


def metadata_of(shown: Shown, model: Model) -> dict[str, Any]:
    metadata = {"left_out": shown.view.left_out, "note": model.note}
    return {key: value for key, value in metadata.items() if value}


def from_cache(feedback: Feedback, shown: Shown, model: Model) -> Scored:
    """A result that took no call."""
    return Scored(
        outcome=feedback, usage=cached_usage(model), metadata={**metadata_of(shown, model), "cached": True}
    )


def cached_usage(model: Model) -> Usage:
    return Usage(model=model.name, cached=True, input_tokens=0, output_tokens=0, cost_usd=0.0, latency_ms=0.0)


def check_usable(judge: str, model: str, scored: Scored) -> None:
    """Raises UnusableModelError where the operator has to mend the model first."""
    outcome = scored.outcome
    if isinstance(outcome, Unscored) and outcome.reason.configuration:
        raise UnusableModelError(
            f'judge "{judge}": model {model} cannot be used: {outcome.detail.removeprefix(f"{model}: ")} '
            "(mend its name, key, address or parameters; evaluator check --connect asks it again)",
            scored.usage,
        )


def expected(model: Model, messages: Messages, schema: Mapping[str, Any]) -> Expected:
    """About what a call takes: the prompt and the form of the reply are counted, its rationales are a guess."""
    tokens = model.tokens.count([str(message["content"]) for message in messages])
    form = orjson.dumps(_form(schema)).decode()
    output = model.tokens.count([form]) + RATIONALE_TOKENS * form.count(f'"{RATIONALES[0]}"')
    cost = model.price.cost(tokens, output) if model.price else None
    return Expected(model=model.name, calls=1, input_tokens=tokens, output_tokens=output, cost_usd=cost)


def _form(schema: Mapping[str, Any]) -> Any:
    """A reply in the form of a schema, with nothing said in it."""
    match schema:
        case {"properties": fields}:
            return {name: _form(field) for name, field in fields.items()}
        case {"anyOf": [first, *_]}:
            return _form(first)
        case {"enum": [first, *_]}:
            return first
        case {"type": "number"}:
            return 1
    return ""


def together(usages: Sequence[Usage], model: str | None = None) -> Usage:
    """What several took; unknown where one that made a call does not say."""
    asked = [usage for usage in usages if usage.calls] or list(usages[:1])
    whole = Usage(
        model=model or next((usage.model for usage in asked), None),
        calls=sum(usage.calls for usage in asked),
        input_tokens=total([usage.input_tokens for usage in asked]),
        output_tokens=total([usage.output_tokens for usage in asked]),
        cost_usd=total([usage.cost_usd for usage in asked]),
        latency_ms=total([usage.latency_ms for usage in asked]),
    )
    return replace(whole, cached=bool(usages) and all(usage.cached for usage in usages))


def total(values: Sequence[Number | None]) -> Number | None:
    """Their sum; None where one of them is unknown, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(values) else None
