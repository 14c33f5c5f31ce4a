"""The files that come with the program: starter guidelines, prompts, a starter configuration."""

from pathlib import Path
from typing import Literal

from evaluator.errors import ConfigurationError


def shipped(name: Literal["guidelines", "prompts"]) -> Path:
    """Their folder: inside an installed wheel, or at the top of a checkout. Raises ConfigurationError."""
    package = Path(__file__).parent
    for path in (package / "shipped" / name, package.parent / name):
        if path.is_dir():
            return path
    raise ConfigurationError(f"{package}: the shipped {name} are missing (install the package anew)")


def shipped_file(name: str) -> Path:
    """A file that is part of the package, such as the starter configuration."""
    return Path(__file__).parent / "templates" / name
