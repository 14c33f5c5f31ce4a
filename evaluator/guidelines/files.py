"""Guideline files in, judges and scorers out, or every mistake of every file at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from evaluator.config import Config, nearest
from evaluator.errors import Mistake, MistakesError
from evaluator.guidelines.definitions import Definition, Guidelines
from evaluator.guidelines.entries import definition_of, entry_mistakes
from evaluator.guidelines.groups import group_mistakes
from evaluator.guidelines.schema import (
    KINDS,
    BudgetEntry,
    BuiltinEntry,
    Entry,
    ExampleEntry,
    GuidelineFile,
    JudgeEntry,
    PythonEntry,
    RangeEntry,
    RegexEntry,
    ScorerEntry,
    SqlEntry,
)
from evaluator.yamlfile import Keys, YamlFile, load_yaml

SUFFIXES = (".yaml", ".yml")
_DOORS: dict[str, TypeAdapter[Entry]] = {
    "judges": TypeAdapter(JudgeEntry),
    "scorers": TypeAdapter(ScorerEntry),
}
_SINGULAR = {"judges": "judge", "scorers": "scorer"}
_BY_KIND: dict[str, type[Entry]] = {
    "sql": SqlEntry,
    "regex": RegexEntry,
    "python": PythonEntry,
    "builtin": BuiltinEntry,
}


def load_guidelines(
    path: Path, *, home: Path = Path(), python_modules: Sequence[str] = (), model: str = ""
) -> Guidelines:
    """The enabled judges and scorers of a folder's *.yaml and *.yml, or of one file, in the order of the names.

    `home` is the configuration's folder, where `python` scorers are looked for; `python_modules` are the
    patterns of the modules they may come from; `model` is that of the judges that name none. Nothing of the user's is
    imported or run. Raises MistakesError
    with every mistake of every file; a folder without a guideline file gives no judge and no scorer.
    """
    reader = _Reader(home=home, python_modules=python_modules)
    for file in guideline_paths(path):
        reader.read(file)
    for judge, message in group_mistakes(reader.definitions, model):
        said = f'judge "{judge.name}": {message}'
        reader.mistakes.append(Mistake(path=judge.path, line=judge.line, message=said))
    if reader.mistakes:
        raise MistakesError(reader.mistakes)
    return Guidelines(definitions=tuple(reader.definitions))


def configured_guidelines(config: Config, path: Path | None = None) -> Guidelines:
    """The guidelines of a configuration, or other ones (`--guidelines`) under it. Raises MistakesError."""
    folder = config.path(config.guidelines) if path is None else path
    return load_guidelines(
        folder, home=config.home, python_modules=config.python_modules, model=config.judge.model
    )


def guideline_paths(path: Path) -> list[Path]:
    """The guideline files of a folder, or the one file. Raises MistakesError when there is neither."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if path.is_file():
        return [path]
    message = "there is no such file or folder of guidelines (evaluator init makes one)"
    raise MistakesError([Mistake(path=shown_path(path), line=1, message=message)])


def shown_path(path: Path) -> str:
    """A path as messages show it: relative to the current folder where it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


@dataclass(kw_only=True)
class _Reader:
    """Reads one file after the other, and remembers the names and the mistakes of all of them."""

    home: Path
    python_modules: Sequence[str]
    definitions: list[Definition] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    _places: dict[str, str] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        try:
            document = load_yaml(Path(shown_path(path)))
        except MistakesError as error:
            self.mistakes += error.mistakes
            return
        data = {} if document.data is None else document.data
        if not isinstance(data, dict):
            self._add(document, (), "is not a mapping with judges: and scorers:")
            return
        for key in data:
            if key not in GuidelineFile.model_fields:
                known = nearest(str(key), [*GuidelineFile.model_fields])
                self._add(
                    document, (str(key),), f'unknown key "{key}"{known or "; there are judges and scorers"}'
                )
        for group in GuidelineFile.model_fields:
            entries = data.get(group) or []
            if not isinstance(entries, list):
                self._add(document, (group,), f'"{group}" should be a list')
                continue
            for index, raw in enumerate(entries):
                self._read_entry(document, group, index, raw)

    def _read_entry(self, document: YamlFile, group: str, index: int, raw: Any) -> None:
        place = (group, str(index))
        if not isinstance(raw, dict):
            self._add(document, place, f"{_SINGULAR[group]} {index + 1}: should be a mapping with a name")
            return
        label = (
            f'{_SINGULAR[group]} "{raw["name"]}"' if raw.get("name") else f"{_SINGULAR[group]} {index + 1}"
        )
        before = len(self.mistakes)

        def add(keys: Keys, message: str) -> None:
            self._add(document, (*place, *keys), f"{label}: {message}")

        entry = self._entry(group, raw, add)
        for keys, message in entry_mistakes(group, raw, self.home, self.python_modules):
            add(keys, message)
        self._claim(document, place, raw, add)
        if entry is None or len(self.mistakes) > before or not entry.enabled:
            return
        self.definitions.append(definition_of(entry, document.path, document.line(place)))

    def _entry(self, group: str, raw: dict[str, Any], add: Any) -> Entry | None:
        try:
            return _DOORS[group].validate_python(raw)
        except ValidationError as error:
            for item in error.errors():
                keys = _keys(item["loc"], raw)
                add(keys, _said(item, keys, group, raw))
            return None

    def _claim(self, document: YamlFile, place: Keys, raw: dict[str, Any], add: Any) -> None:
        name = raw.get("name")
        if not isinstance(name, str):
            return
        if name in self._places:
            add(("name",), f"the name is taken already by {self._places[name]}")
        else:
            self._places[name] = f"{document.path}:{document.line((*place, 'name'))}"

    def _add(self, document: YamlFile, keys: Keys, message: str) -> None:
        self.mistakes.append(Mistake(path=document.path, line=document.line(keys), message=message))


def _keys(loc: Sequence[int | str], raw: Any) -> Keys:
    """Where an error is, without the names of union members that pydantic puts in between."""
    keys: list[str] = []
    for position, part in enumerate(loc):
        known = part in raw if isinstance(raw, dict) else isinstance(raw, list) and isinstance(part, int)
        if known:
            raw = raw[part]
        elif position < len(loc) - 1 or str(part).startswith("<"):
            continue
        keys.append(str(part))
    return tuple(keys)


def _said(item: ErrorDetails, keys: Keys, group: str, raw: dict[str, Any]) -> str:
    """A mistake in words: what is wrong, what stands there, and the nearest right word."""
    name = ".".join(keys)
    match item["type"]:
        case "extra_forbidden":
            return f'unknown field "{name}"{nearest(keys[-1], _known_fields(keys, group, raw))}'
        case "missing":
            return f'"{name}" is missing'
        case "kinds":
            found = [kind for kind in KINDS if kind in raw]
            if found:
                return f"has {' and '.join(found)}; it has to be one of them"
            words = [str(key) for key in raw if key not in Entry.model_fields]
            close = next((hint for word in words if (hint := nearest(word, [*KINDS]))), "")
            return f"has none of {', '.join(KINDS)}; it has to be one of them{close}"
        case "literal_error":
            wanted = str(item["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
            hint = nearest(str(item["input"]), wanted.split(", "))
            return f'"{name}" is {_value(item)}, not one of {wanted}{hint}'
        case "value_error":
            return f'"{name}": {item["msg"].removeprefix("Value error, ")}'
        case "too_short" | "string_too_short" if not item["input"]:
            return f'"{name}" is empty'
    message = item["msg"].removeprefix("Input ")
    if item["type"] == "string_pattern_mismatch":
        blank = not str(item["input"]).strip()
        message = "should not be blank" if blank else "should have no / and no space at its ends"
    return f'"{name}": {message}, not {_value(item)}'


def _value(item: ErrorDetails) -> str:
    value = item["input"]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _known_fields(keys: Keys, group: str, raw: dict[str, Any]) -> list[str]:
    """The fields that there are where an unknown one stands."""
    model: type[BaseModel]
    match keys:
        case ("values", _):
            model = RangeEntry
        case ("budget", _):
            model = BudgetEntry
        case ("examples", _, _):
            model = ExampleEntry
        case _ if group == "judges":
            model = JudgeEntry
        case _:
            model = next((door for kind, door in _BY_KIND.items() if kind in raw), Entry)
    return [*model.model_fields]
