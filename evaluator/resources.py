"""The guideline files and prompts that come with the program."""

from pathlib import Path
from typing import Literal

from evaluator.errors import ConfigurationError


def shipped(kind: Literal["guidelines", "prompts"]) -> Path:
    """Their folder: inside an installed wheel, or at the top of a checkout. Raises ConfigurationError."""
    package = Path(__file__).parent
    for folder in (package / "shipped" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise ConfigurationError(f"{package}: the shipped {kind} are missing (install the package anew)")
