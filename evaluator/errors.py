"""What went wrong, said so that the reader can mend it."""

from dataclasses import dataclass


class EvaluatorError(Exception):
    """Something failed at run time: the message names the thing, the place, the cause and the way out."""

    exit_code = 1


class TableError(EvaluatorError):
    """A table could not be opened, read or written."""


class ModelError(EvaluatorError):
    """No judging is possible with a model as it is configured, or none of its calls came through."""


class SinkError(EvaluatorError):
    """A place that results are published to did not take them."""


class ConfigurationError(EvaluatorError):
    """The command line, the configuration or a guideline file has to be mended first."""

    exit_code = 2


class SharedOutError(ConfigurationError):
    """The live work is shared out among another number of workers than this one was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing to mend in a file; `line` counts from 1."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class MistakesError(ConfigurationError):
    """Every mistake of a set of files at once, in the order of the files and lines."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda mistake: (mistake.path, mistake.line))
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))
