"""The prompts of judges: templates compiled once, a user's own in place of the shipped ones."""

import hashlib
import traceback
from collections.abc import Mapping
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
from evaluator.guidelines.definitions import Categories, NumberRange, Values, YesNo
from evaluator.scorers.fence import fence_code
from evaluator.scorers.view import Block, Part, View

NAMES = ("common", "material", "guidelines", "instructions", "reply", "repair")
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
        code = fence_code(key, [block.text for block in view.blocks])
        material = self._render(
            "material", code=code, blocks=view.blocks, left_out=view.left_out, incomplete=incomplete
        )
        if instructions is None:
            task = self._render("guidelines", code=code, guidelines=guidelines, **_answer(values))
        else:
            text = self._instructions(instructions).render(_references())
            task = self._render("instructions", code=code, instructions=text, **_answer(values))
        return [
            {"role": "system", "content": self._common},
            {"role": "user", "content": f"{material.strip()}\n\n{task.strip()}"},
        ]

    def repair(self, problem: str, values: Values) -> str:
        """What is said to a reply that could not be read."""
        return self._render("repair", problem=problem, **_answer(values)).strip()

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
            self._instructions(instructions).render(_references())
        except Exception as error:  # what a user's template raises
            raise ConfigurationError(f"instructions do not render: {error}") from error
        return frozenset(_PARTS[name] for name in names) or frozenset({"trace"})

    def fingerprints(self, kind: str) -> Mapping[str, str]:
        """A hash of each template that has a part in the prompts of `guidelines` or `instructions` judges."""
        return {name: self._hashes[name] for name in ("common", "material", kind, "reply", "repair")}

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
        self.repair("it is empty", NumberRange(min=1, max=5))

    def _parsed(self, instructions: str) -> Any:
        try:
            return self._environment.parse(instructions)
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"instructions, line {error.lineno}: {error.message}") from error

    def _instructions(self, instructions: str) -> Template:
        compiled = self._compiled_instructions.get(instructions)
        if compiled is None:
            compiled = self._environment.from_string(instructions)
            self._compiled_instructions[instructions] = compiled
        return compiled

    @cached_property
    def _compiled_instructions(self) -> dict[str, Template]:
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


def _references() -> dict[str, _Reference]:
    return {name: _Reference(said) for name, said in _SAID.items()}


def shipped_prompts() -> Path:
    """The folder of the shipped templates: inside the package when installed, beside it in a checkout."""
    package = Path(evaluator.__file__).parent
    inside = package / "shipped" / "prompts"
    return inside if inside.is_dir() else package.parent / "prompts"


def _answer(values: Values) -> dict[str, str]:
    """How a template says which results there are, and one of them as JSON."""
    match values:
        case YesNo():
            return {"answer": '"yes" or "no"', "example": '"yes" or "no"'}
        case Categories():
            quoted = ", ".join(f'"{value}"' for value in values.values)
            return {"answer": f"one of {quoted}", "example": '"..."'}
        case NumberRange():
            return {"answer": f"a number from {values.min:g} to {values.max:g}", "example": "..."}
