"""Where a user's scorer is written, found without running any of it."""

import ast
import fnmatch
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from evaluator.config import nearest


def find_module(module: str, home: Path) -> Path | None:
    """The file of a module in `home` or among the installed packages; no package on the way is imported."""
    importlib.invalidate_caches()
    places: list[str] = [str(home), *sys.path]
    origin: str | None = None
    for part in module.split("."):
        # By its last part alone and the places of its parent, as importing the parent would tell them.
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        origin = spec.origin if spec.has_location else None
        places = list(spec.submodule_search_locations or ())
    return Path(origin) if origin else None


def python_mistake(target: str, home: Path, allowed: Sequence[str]) -> str | None:
    """What is wrong with `module:name`, or None: its form, its module's permission, its place, its name."""
    module, colon, name = target.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return f'"{target}" is not module:name, such as my_team.scorers:follows_schema'
    if not any(fnmatch.fnmatchcase(module, pattern) for pattern in allowed):
        return f'module "{module}" is not among python_modules (allow it in the configuration: python_modules: [{module}])'
    path = find_module(module, home)
    if path is None:
        return f'module "{module}" is neither in {home} nor installed'
    if path.suffix != ".py":
        return None
    try:
        names = list(_defined(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f'module "{module}" is not Python{f" (line {line})" if line else ""}: {error.args[0]}'
    if name in names or "*" in names:
        return None
    return f'module "{module}" defines no "{name}"{nearest(name, names)}'


def _defined(tree: ast.AST) -> Iterator[str]:
    """The names that a module's own statements bind, also under `if` and `try`; `*` for an import of all."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Lambda():
                continue
            case _:
                yield from _defined(node)
