"""The mistakes in the files: configuration, prompts and guidelines, found without running or reaching anything."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from evaluator.config import DEFAULT_FILE, Config, RedactionPattern
from evaluator.errors import ConfigurationError, Mistake, MistakesError
from evaluator.guidelines.definitions import Definition, JudgeDefinition
from evaluator.guidelines.files import configured_guidelines, guideline_paths, shown_path
from evaluator.guidelines.groups import group_notes
from evaluator.models.build import check_model, price_missing
from evaluator.models.prices import prices_of
from evaluator.redaction import compile_pattern
from evaluator.schedule import trigger_of
from evaluator.yamlfile import Keys, YamlFile, load_yaml


def check_configuration(config: Config, file: Path | None = None) -> tuple[list[Mistake], list[Mistake]]:
    """All mistakes, and the warnings. `file` is the configuration's file (default: the usual one in its folder)."""
    settings = _settings(file or config.home / DEFAULT_FILE)
    mistakes = [
        Mistake(path=settings.path, line=settings.line(keys), message=message)
        for keys, message in _setting_mistakes(config)
    ]
    warnings = []
    folder = config.path(config.guidelines)
    try:
        found = configured_guidelines(config)
        mistakes += _price_mistakes(config, settings, found.definitions)
        for judge, note in group_notes(found.definitions, config.judge.model):
            warnings.append(
                Mistake(path=judge.path, line=judge.line, message=f'judge "{judge.name}": {note}')
            )
        if not found.definitions:
            files = guideline_paths(folder)
            cause = f"nothing enabled in {len(files)} files" if files else "no guideline file"
            warnings.append(
                Mistake(path=shown_path(folder), line=1, message=f"{cause}: there is nothing to judge with")
            )
    except MistakesError as error:
        mistakes += error.mistakes
    return mistakes, warnings


def check_guidelines(config: Config) -> list[Mistake]:
    """The mistakes in the guideline files alone, beside a configuration some of whose settings are wrong."""
    try:
        configured_guidelines(config)
    except MistakesError as error:
        return list(error.mistakes)
    return []


def _price_mistakes(
    config: Config, settings: YamlFile, definitions: Iterable[Definition]
) -> Iterator[Mistake]:
    """Models that judges name and nobody knows the price of, under a cap in USD."""
    told, prices = set(), prices_of(config)
    for judge in definitions:
        if not isinstance(judge, JudgeDefinition):
            continue
        for name in named_models(judge):
            try:
                message = price_missing(name or config.judge.model, config.judge, prices, judge.budget)
            except ConfigurationError:
                continue  # a name that is none is told of where it stands
            if message is None or (name is None and message in told):
                continue
            told.add(message)
            if name is None and judge.budget is None:
                yield Mistake(
                    path=settings.path,
                    line=settings.line(("judge", "model")),
                    message=f"judge.model: {message}",
                )
            else:
                yield Mistake(path=judge.path, line=judge.line, message=f'judge "{judge.name}": {message}')


def named_models(judge: JudgeDefinition) -> tuple[str | None, ...]:
    """The models that a judge asks; None is the configuration's."""
    return (*(judge.models or (judge.model,)), *((judge.escalate_to,) if judge.escalate_to else ()))


def _settings(file: Path) -> YamlFile:
    """The configuration's lines; where there is no file, everything comes from its line 1."""
    shown = Path(shown_path(file))
    return load_yaml(shown) if file.is_file() else YamlFile(path=str(shown), data={}, lines={})


def _setting_mistakes(config: Config) -> Iterator[tuple[Keys, str]]:
    """What the types of the configuration do not see."""
    for index, rule in enumerate(config.redact):
        if isinstance(rule, RedactionPattern):
            try:
                compile_pattern(rule.pattern)
            except ValueError as error:
                yield (
                    ("redact", str(index), "pattern"),
                    f"redact.{index}.pattern: RE2 does not take it: {error}",
                )
    try:
        trigger_of(config)
    except ConfigurationError as error:
        yield ("cron",), str(error)
    try:
        check_model(config.judge.model, config.judge)
    except ConfigurationError as error:
        yield ("judge", "model"), f"judge: {error}"
    if config.prompts is not None:
        yield from ((("prompts",), message) for message in _prompt_mistakes(config.path(config.prompts)))


def _prompt_mistakes(folder: Path) -> Iterator[str]:
    from evaluator.scorers.prompts import Prompts

    try:
        Prompts(folder)
    except ConfigurationError as error:
        yield str(error)
