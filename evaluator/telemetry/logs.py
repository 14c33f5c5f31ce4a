"""Log lines: one fixed sentence plus fields, without what must not leave."""

import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import orjson

_STANDARD = set(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields that a log call gave beside its sentence, through `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class _RedactingFormatter(logging.Formatter):
    """What a log line is made of, with what must not leave taken out: a foreign error's text may hold anything."""

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        super().__init__()
        self._redact = redact

    def message(self, record: logging.LogRecord) -> str:
        return self._redact(record.getMessage())

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        return {key: self._redacted(value) for key, value in fields_of(record).items()}

    def formatException(  # noqa: N802 -- logging's own name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return self._redact(super().formatException(ei))

    def _redacted(self, value: Any) -> object:
        match value:
            case None | bool() | int() | float():
                return value
            case Mapping():
                return {key: self._redacted(inner) for key, inner in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._redacted(inner) for inner in value]
            case _:
                return self._redact(str(value))


class TextFormatter(_RedactingFormatter):
    """`12:00:01 warning  a fixed sentence  field=value`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = "".join(f"  {key}={value}" for key, value in self.fields(record).items())
        line = f"{moment} {record.levelname.lower():7} {self.message(record)}{told}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(_RedactingFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "message": self.message(record),
            **self.fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def start_logging(
    form: Literal["text", "json"], level: int = logging.INFO, redact: Callable[[str], str] = str
) -> None:
    """Log to stderr: our own lines from `level` on, other libraries' warnings; each text passes `redact`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(redact) if form == "text" else JsonFormatter(redact))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("apscheduler").setLevel(
        logging.ERROR
    )  # a tick that takes longer than `every` is no event
    logging.getLogger("evaluator").setLevel(level)
