"""A YAML file with the line of every key, and the mistakes that are in its form."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluator.errors import Mistake, MistakesError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 50_000

Keys = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's true and false only: `on:` is a key and `yes` a word, not the truth."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- as the base class declares it
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:bool"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlFile:
    """What a file says; `lines` maps a path of keys (list positions as text) to its line, from 1."""

    path: str
    data: Any
    lines: dict[Keys, int]

    def line(self, keys: Keys) -> int:
        """The line of the nearest key on the way to `keys` that the file has."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.lines:
                return self.lines[keys[:length]]
        return 1


def load_yaml(path: Path) -> YamlFile:
    """Read one file. Raises MistakesError: malformed, a key twice, recursive, too deep, too large, not UTF-8."""
    place = str(path)

    def mistake(line: int, message: str) -> MistakesError:
        return MistakesError([Mistake(path=place, line=line, message=message)])

    try:
        content = path.read_bytes()
    except OSError as error:
        raise mistake(1, f"cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise mistake(1, f"is larger than {MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise mistake(content[: error.start].count(b"\n") + 1, "is not UTF-8 text") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        if node is not None:
            _walk(node, (), lines, place)
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise mistake(
            mark.line + 1 if mark else 1, f"is not YAML: {error.problem or error.context}"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise mistake(1, f"is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise mistake(1, f"is nested deeper than {MAX_DEPTH} levels") from error
    return YamlFile(path=place, data=data, lines=lines)


def _walk(root: yaml.Node, keys: Keys, lines: dict[Keys, int], place: str) -> None:
    """Note every key's line; refuse what `construct_document` would let through or run away with.

    An alias is walked wherever it stands, so that a small file of aliases to aliases meets the bound on
    nodes before anything is built from it.
    """
    seen = 0

    def walk(node: yaml.Node, keys: Keys, above: tuple[int, ...]) -> None:
        nonlocal seen
        seen += 1
        line = node.start_mark.line + 1
        if id(node) in above:
            raise MistakesError([Mistake(path=place, line=line, message="refers to itself")])
        if len(above) > MAX_DEPTH:
            raise MistakesError(
                [Mistake(path=place, line=line, message=f"is nested deeper than {MAX_DEPTH} levels")]
            )
        if seen > MAX_NODES:
            raise MistakesError(
                [Mistake(path=place, line=line, message=f"holds more than {MAX_NODES:,} values")]
            )
        lines.setdefault(keys, line)
        if isinstance(node, yaml.MappingNode):
            taken: set[str] = set()
            for key, value in node.value:
                name = str(getattr(key, "value", key))
                if name in taken and name != "<<":
                    raise MistakesError(
                        [Mistake(path=place, line=key.start_mark.line + 1, message=f'"{name}" stands twice')]
                    )
                taken.add(name)
                lines[(*keys, name)] = key.start_mark.line + 1
                walk(value, (*keys, name), (*above, id(node)))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*keys, str(index)), (*above, id(node)))

    walk(root, keys, ())
