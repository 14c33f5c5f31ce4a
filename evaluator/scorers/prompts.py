"""The prompts of judges: templates compiled once, a user's own in place of the shipped ones."""

import hashlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import (
    ChoiceLoader,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    meta,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

import evaluator
from evaluator.errors import ConfigurationError
from evaluator.guidelines.definitions import UNSURE, Categories, NumberRange, TargetKind, Values, YesNo
from evaluator.scorers.fence import fence_code
from evaluator.scorers.view import Block, Part, View

NAMES = ("common", "material", "guidelines", "instructions", "reply", "repair", "joint", "again")
_PARTS: Mapping[str, Part] = {
    "inputs": "inputs",
    "outputs": "outputs",
    "expectations": "expectations",
    "trace": "trace",
    "conversation": "trace",
}
_SAID = {
    "inputs": 'the material "request"',
    "outputs": 'the material "response"',
    "expectations": 'the material "expectations"',
    "trace": "the material",
    "conversation": "the material",
}
_SAID_OF_SPANS = {
    **_SAID,
    "inputs": 'the material "span: input"',
    "outputs": 'the material "span: output"',
}
_SAID_OF_SESSIONS = {
    **_SAID,
    "inputs": "the requests of all turns in the material",
    "outputs": "the responses of all turns in the material",
}
_WORK: Mapping[TargetKind, str] = {
    "trace": "the agent's work",
    "session": "the agent's work over the whole conversation",
    "span": 'the step "span"',
}
"""What is judged, as the templates call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a judge wants to know: whether guidelines hold, or what free instructions ask."""

    guidelines: tuple[str, ...] = ()
    instructions: str | None = None
    values: Values = YesNo()  # noqa: RUF009 -- a frozen value
    target: TargetKind = "trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The beginning of all prompts about one trace; `code` is that of its fence."""

    code: str
    rules: str
    text: str

    def messages(self, task: str) -> list[dict[str, Any]]:
        """The messages of one call: the same for every call up to the task."""
        return [
            {"role": "system", "content": self.rules},
            {"role": "user", "content": f"{self.text}\n\n{task}"},
        ]


class Prompts:
    """Renders what a judge is asked. `folder` holds templates that replace shipped ones of the same file name.

    Raises ConfigurationError, with file and line, for a template that does not compile or render.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"prompts: {folder} is not a folder")
        folders = [folder, shipped_prompts()] if folder else [shipped_prompts()]
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([FileSystemLoader(place) for place in folders]),
            undefined=StrictUndefined,
            # A prompt is no HTML: judged text is fenced off by a code instead.
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates = {name: self._compiled(name) for name in NAMES}
        self._rehearse()

    def material(
        self, key: bytes, view: View, *, incomplete: bool = False, subject: str = "trace"
    ) -> Material:
        """What all judges of a trace, of a span of it, or of a session have in common: the rules, and that in its fence."""
        code = fence_code(key, [block.text for block in view.blocks])
        text = self._render(
            "material",
            code=code,
            # The sandbox looks at each attribute of an object that a template names; a mapping is read as it is.
            blocks=[{"name": block.name, "text": block.text} for block in view.blocks],
            left_out=view.left_out,
            incomplete=incomplete,
            subject=subject,
        )
        return Material(code=code, rules=self._common, text=text.strip())

    def task(self, code: str, question: Question, *, unsure: bool = False) -> str:
        """What one judge asks about the material of that code; `unsure`: it may say so instead of an answer."""
        answer, work = _answer(question.values, unsure), _WORK[question.target]
        if question.instructions is None:
            return self._render(
                "guidelines", code=code, work=work, guidelines=question.guidelines, **answer
            ).strip()
        said = self._said(question.instructions, question.target)
        return self._render("instructions", code=code, work=work, instructions=said, **answer).strip()

    def joint_task(self, code: str, questions: Mapping[str, Question]) -> str:
        """What several judges ask about the material of that code in one call, by their names."""
        judges = [
            {
                "name": name,
                "guidelines": question.guidelines,
                "work": _WORK[question.target],
                "instructions": None
                if question.instructions is None
                else self._said(question.instructions, question.target),
                **_answer(question.values),
            }
            for name, question in questions.items()
        ]
        return self._render("joint", code=code, judges=judges).strip()

    def again(self, questions: Mapping[str, Question], problem: str | None = None) -> str:
        """What is said at the end of a group's prompt to have these judges only, or all of them once more."""
        judges = [{"name": name, **_answer(question.values)} for name, question in questions.items()]
        return self._render("again", judges=judges, problem=problem).strip()

    def messages(
        self,
        key: bytes,
        view: View,
        *,
        guidelines: tuple[str, ...] = (),
        instructions: str | None = None,
        values: Values = YesNo(),  # noqa: B008 -- a frozen value
        incomplete: bool = False,
    ) -> list[dict[str, Any]]:
        """The messages to send: what is common to all calls first, then the trace, then the judge."""
        material = self.material(key, view, incomplete=incomplete)
        question = Question(guidelines=guidelines, instructions=instructions, values=values)
        return material.messages(self.task(material.code, question))

    def repair(self, problem: str, values: Values, *, unsure: bool = False) -> str:
        """What is said to a reply that could not be read."""
        return self._render("repair", problem=problem, **_answer(values, unsure)).strip()

    def parts_named(self, instructions: str) -> frozenset[Part]:
        """What of a record free instructions speak of; all of it where they name nothing.

        Raises ConfigurationError for a template that does not compile or names something else.
        """
        names = meta.find_undeclared_variables(self._parsed(instructions))
        if unknown := sorted(names - _PARTS.keys()):
            raise ConfigurationError(
                f"instructions name {{{{ {unknown[0]} }}}}: there are {', '.join(f'{{{{ {name} }}}}' for name in _PARTS)}"
            )
        try:
            self._said(instructions)
        except Exception as error:  # what a user's template raises
            raise ConfigurationError(f"instructions do not render: {error}") from error
        return frozenset(_PARTS[name] for name in names) or frozenset({"trace"})

    def fingerprints(self, kind: str) -> Mapping[str, str]:
        """A hash of each template that has a part in the prompts of `guidelines`, `instructions` or `joint` judges."""
        own = ("joint", "again") if kind == "joint" else (kind, "reply", "repair")
        return {name: self._hashes[name] for name in ("common", "material", *own)}

    @cached_property
    def _common(self) -> str:
        return self._render("common").strip()

    @cached_property
    def _hashes(self) -> Mapping[str, str]:
        return {name: self._hash(name, frozenset()) for name in NAMES}

    def _hash(self, name: str, above: frozenset[str]) -> str:
        """Of the source and of all that it includes."""
        source = self._source(name)
        referenced = meta.find_referenced_templates(self._environment.parse(source))
        children = sorted({child for child in referenced if child} - above)
        inner = [self._hash(child.removesuffix(".jinja"), above | {child}) for child in children]
        return hashlib.sha256("\n".join([source, *inner]).encode()).hexdigest()[:12]

    def _source(self, name: str) -> str:
        loader = self._environment.loader
        assert loader is not None
        return loader.get_source(self._environment, f"{name}.jinja")[0]

    def _compiled(self, name: str) -> Template:
        try:
            return self._environment.get_template(f"{name}.jinja")
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"{error.filename}:{error.lineno}: {error.message}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"prompts: {name}.jinja is not UTF-8 text") from error

    def _render(self, name: str, **context: Any) -> str:
        template = self._templates[name]
        try:
            return template.render(context)
        except Exception as error:  # a user's template is foreign code
            frames = traceback.extract_tb(error.__traceback__)
            frame = next((frame for frame in reversed(frames) if frame.filename.endswith(".jinja")), None)
            place = f"{frame.filename}:{frame.lineno}" if frame else f"{template.filename}:1"
            if isinstance(error, TemplateSyntaxError):
                place = f"{error.filename}:{error.lineno}"
            raise ConfigurationError(f"{place}: {error}") from error

    def _rehearse(self) -> None:
        """Render everything once, so that a mistake is met before any trace is."""
        view = View(blocks=(Block(name="request", text="text", rank=0),), left_out_characters=1)
        self.messages(b"", view, guidelines=("one", "two"), incomplete=True)
        self.messages(b"", view, instructions="text", values=Categories(values=("a", "b")))
        self.material(b"", view, subject="span")
        self.material(b"", view, subject="session")
        self.repair("it is empty", NumberRange(min=1, max=5))
        questions = {"a": Question(guidelines=("one", "two")), "b": Question(instructions="text")}
        self.joint_task("code", questions)
        self.again(questions, "it is empty")

    def _parsed(self, instructions: str) -> Any:
        try:
            return self._environment.parse(instructions)
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"instructions, line {error.lineno}: {error.message}") from error

    def _said(self, instructions: str, target: TargetKind = "trace") -> str:
        """Free instructions as they are sent: the same for every record, for they only refer to its blocks."""
        said = self._rendered_instructions.get((instructions, target))
        if said is None:
            said = self._environment.from_string(instructions).render(_references(target))
            self._rendered_instructions[instructions, target] = said
        return said

    @cached_property
    def _rendered_instructions(self) -> dict[tuple[str, TargetKind], str]:
        return {}


class _Reference:
    """How instructions speak of a part of the record: by the name of its fenced block.

    The block itself stands ahead, where all judges of a trace share it; so no instruction holds judged text.
    """

    def __init__(self, said: str) -> None:
        self._said = said

    def __str__(self) -> str:
        return self._said

    def __getitem__(self, key: str) -> "_Reference":
        return _Reference(f'the "{key}" of {self._said}')


def _references(target: TargetKind) -> dict[str, _Reference]:
    said = {"span": _SAID_OF_SPANS, "session": _SAID_OF_SESSIONS}.get(target, _SAID)
    return {name: _Reference(words) for name, words in said.items()}


def shipped_prompts() -> Path:
    """The folder of the shipped templates: inside the package when installed, beside it in a checkout."""
    package = Path(evaluator.__file__).parent
    inside = package / "shipped" / "prompts"
    return inside if inside.is_dir() else package.parent / "prompts"


def _answer(values: Values, unsure: bool = False) -> dict[str, str]:
    """How a template says which results there are, and one of them as JSON."""
    match values:
        case YesNo():
            answer, example = '"yes" or "no"', '"yes" or "no"'
        case Categories():
            quoted = ", ".join(f'"{value}"' for value in values.values)
            answer, example = f"one of {quoted}", '"..."'
        case NumberRange():
            answer, example = f"a number from {values.min:g} to {values.max:g}", "..."
    if unsure:
        answer = f'{answer}, or "{UNSURE}" where the material leaves real doubt about it'
    return {"answer": answer, "example": example}
