"""A judge: asks a model about one record and reads its reply."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from evaluator.dataset.records import Record
from evaluator.errors import ConfigurationError, ModelError
from evaluator.feedback import Outcome, Reason, Scored, SourceType, Unscored, Usage
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.models.client import Model
from evaluator.models.endpoint import Completion, Messages, ModelFailure
from evaluator.scorers import view
from evaluator.scorers.prompts import Prompts
from evaluator.scorers.reply import Passes, read_reply, reply_schema
from evaluator.scorers.scorer import fingerprint
from evaluator.scorers.view import Part, View, view_of

LONGEST_QUOTED_REPLY = 4_000
BYTES_PER_TOKEN = 4
"""Of English prose and JSON, with the tokenizers of today's models."""
USUAL_REPLY_TOKENS = 120
"""Two or three sentences and a result; a reasoning model takes more."""
Number = TypeVar("Number", int, float)


class Redaction(Protocol):
    """One numbering of placeholders: the same address in two texts of a record is the same placeholder."""

    def redact(self, text: str) -> str: ...


class Redacts(Protocol):
    """Takes out of texts what a model must not see; `definition` is part of every judge's version."""

    @property
    def definition(self) -> Any: ...
    def begin(self) -> Redaction: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All of one judging: what was sent, the raw replies (a second one after a repair), the result."""

    messages: Messages
    replies: tuple[str, ...]
    scored: Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """About what judging one record will take. `cost_usd` None is unknown."""

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0


class Judge:
    """A scorer that waits on a model: one question a record, and one repair of a reply that cannot be read.

    `pass_if` tells of a value whether it passes. Raises ConfigurationError for instructions that do not compile.
    """

    source_type: SourceType = "LLM_JUDGE"
    waits = True

    def __init__(
        self,
        definition: JudgeDefinition,
        *,
        model: Model,
        prompts: Prompts,
        fence_key: bytes,
        redactor: Redacts,
        pass_if: Passes | None = None,
    ) -> None:
        self._judge = definition
        self._model = model
        self._prompts = prompts
        self._fence_key = fence_key
        self._redactor = redactor
        self._pass_if = pass_if
        self._schema = reply_schema(definition.values)
        self._parts = self._parts_named()
        self._characters = min(view.CHARACTERS, model.input_characters or view.CHARACTERS)
        self._definition = self._defined()
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
        """The messages that the model is asked with."""
        return self._messages(record, self._view(record))

    def estimate(self, record: Record) -> Expected:
        """About what judging a record will take; no call is made."""
        seen = self._view(record)
        if not seen.blocks:
            return Expected(model=self._model.name)
        contents = [str(message["content"]) for message in self._messages(record, seen)]
        tokens = sum(len(content.encode("utf-8", "replace")) for content in contents) // BYTES_PER_TOKEN
        price = self._model.price
        return Expected(
            model=self._model.name,
            input_tokens=tokens,
            output_tokens=USUAL_REPLY_TOKENS,
            cost_usd=price.cost(tokens, USUAL_REPLY_TOKENS) if price else None,
        )

    async def judge(self, record: Record) -> Judgement:
        """Judge one record. Raises ModelError when the model has to be mended before anything can be judged."""
        seen = self._view(record)
        if not seen.blocks:
            nothing = Unscored(reason=Reason.NOT_APPLICABLE, detail=self._nothing())
            return Judgement(messages=(), replies=(), scored=Scored(outcome=nothing))
        messages = self._messages(record, seen)
        asked: list[Completion] = []
        failed_calls = 0
        try:
            outcome = await self._asked(messages, asked)
        except ModelFailure as failure:
            if failure.reason.configuration:
                raise self._unusable(failure) from failure
            failed_calls = failure.calls
            outcome = Unscored(reason=failure.reason, detail=f"{self._model.name}: {failure.detail}")
        scored = Scored(
            outcome=outcome, usage=_usage(self._model, asked, failed_calls), metadata=self._metadata(seen)
        )
        return Judgement(messages=messages, replies=tuple(reply.text for reply in asked), scored=scored)

    async def _asked(self, messages: Messages, asked: list[Completion]) -> Outcome:
        """Ask; and once more when the reply cannot be read, for most models mend it when told."""
        asked.append(await self._model.complete(messages, self._schema))
        outcome = read_reply(asked[-1], self._judge.values, self._pass_if)
        if (
            isinstance(outcome, Unscored)
            and outcome.reason is Reason.BAD_REPLY
            and asked[-1].finish_reason != "length"
        ):
            asked.append(await self._model.complete(self._repair(messages, asked[-1], outcome), self._schema))
            outcome = read_reply(asked[-1], self._judge.values, self._pass_if)
        return outcome

    def _repair(self, messages: Messages, reply: Completion, problem: Unscored) -> Messages:
        if not reply.text.strip():
            return messages  # Providers refuse an empty message of an assistant.
        said = reply.text[:LONGEST_QUOTED_REPLY].encode("utf-8", "replace").decode()
        request = self._prompts.repair(problem.detail, self._judge.values)
        return [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": request}]

    def _view(self, record: Record) -> View:
        return view_of(record, self._parts, characters=self._characters, redact=self._redactor.begin().redact)

    def _messages(self, record: Record, seen: View) -> list[dict[str, Any]]:
        return self._prompts.messages(
            self._fence_key,
            seen,
            guidelines=self._judge.guidelines,
            instructions=self._judge.instructions,
            values=self._judge.values,
            incomplete=record.trace.incomplete,
        )

    def _parts_named(self) -> frozenset[Part]:
        if self._judge.instructions is None:
            return frozenset({"trace"})
        try:
            return self._prompts.parts_named(self._judge.instructions)
        except ConfigurationError as error:
            place = f"{self._judge.path}:{self._judge.line}: " if self._judge.path else ""
            raise ConfigurationError(f'{place}judge "{self.name}": {error}') from error

    def _defined(self) -> Mapping[str, Any]:
        free = self._judge.instructions is not None
        return {
            "kind": "instructions" if free else "guidelines",
            "guidelines": list(self._judge.guidelines),
            "instructions": self._judge.instructions,
            "values": {type(self._judge.values).__name__: asdict(self._judge.values)},
            "pass_if": self._judge.pass_if,
            "model": self._model.name,
            "parameters": dict(self._model.parameters),
            "prompts": dict(self._prompts.fingerprints("instructions" if free else "guidelines")),
            "schema": self._schema,
            "view": {"rule": view.RULE, "parts": sorted(self._parts), "characters": self._characters},
            "redact": self._redactor.definition,
        }

    def _metadata(self, seen: View) -> dict[str, Any]:
        metadata = {"left_out": seen.left_out, "note": self._model.note}
        return {key: value for key, value in metadata.items() if value}

    def _nothing(self) -> str:
        if "trace" in self._parts:
            return "the trace holds neither a request nor a response nor any step with content"
        return f"the trace has no {' and no '.join(sorted(self._parts))}"

    def _unusable(self, failure: ModelFailure) -> ModelError:
        return ModelError(
            f'judge "{self.name}": model {self._model.name} cannot be used: {failure.detail} '
            "(mend its name, key, address or parameters; evaluator check --connect asks it again)"
        )


def _usage(model: Model, asked: Sequence[Completion], failed_calls: int) -> Usage:
    """What a judging took, repairs and failed calls included; unknown where one of its replies does not say."""
    return Usage(
        model=model.name,
        calls=sum(reply.calls for reply in asked) + failed_calls,
        input_tokens=_sum([reply.input_tokens for reply in asked]),
        output_tokens=_sum([reply.output_tokens for reply in asked]),
        cost_usd=_sum([reply.cost_usd for reply in asked]),
        latency_ms=_sum([reply.latency_ms for reply in asked]),
    )


def _sum(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(values) else None
