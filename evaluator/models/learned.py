"""What was found out about providers, kept so that the next worker need not find it out: its loss costs only time."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import orjson

log = logging.getLogger(__name__)

BELIEVED_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a provider let through: so many calls at once, and so many a second where it refused more."""

    at_once: int
    per_second: float | None = None


class LearnedGrants:
    """The grants of each model at each address, one small file each: workers that share the folder do not wait for another."""

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        self._folder = folder / "grants"
        self._clock = clock

    def of(self, model: str, url: str) -> Grant | None:
        """What was found of late; None where nothing was, or where the file cannot be read."""
        path = self._file(model, url)
        try:
            told = orjson.loads(path.read_bytes())
            grant = Grant(at_once=max(int(told["at_once"]), 1), per_second=told["per_second"])
            age = self._clock().timestamp() - float(told["at"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("a learned rate could not be read: it is found anew", extra={"cause": str(error)})
            return None
        return grant if 0 <= age < BELIEVED_FOR.total_seconds() else None

    def keep(self, model: str, url: str, grant: Grant) -> None:
        """Keep what was found."""
        path = self._file(model, url)
        told = {"at_once": grant.at_once, "per_second": grant.per_second, "at": self._clock().timestamp()}
        fresh = path.with_suffix(".new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(orjson.dumps(told))
            fresh.replace(path)
        except OSError as error:
            log.warning("a learned rate could not be kept", extra={"cause": str(error)})

    def _file(self, model: str, url: str) -> Path:
        name = hashlib.sha256(f"{model} {url}".encode()).hexdigest()[:24]
        return self._folder / f"{name}.json"
