"""What the log of a Delta table says, action by action: data files, commits, and the times of both."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import orjson

_INTERVAL = re.compile(r"interval (\d+) (second|minute|hour|day|week)s?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A data file of the table. `path` is relative to the table (or absolute, for a shallow clone).

    `earliest` and `latest` bound the times of its rows, where its statistics tell them. `has_deleted_rows`: the
    commit that added it marked some as deleted.
    """

    path: str
    size: int
    modified: datetime
    partition_values: Mapping[str, str | None]
    earliest: datetime | None = None
    latest: datetime | None = None
    has_deleted_rows: bool = False

    def overlaps(self, start: datetime | None, end: datetime | None) -> bool:
        """Whether it may hold rows in [start, end); a file that does not tell its times may."""
        before = end is not None and self.earliest is not None and self.earliest >= end
        after = start is not None and self.latest is not None and self.latest < start
        return not (before or after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a commit of the log added to the table's content; compactions added nothing.

    `mark` is a hash of the whole commit, in 56 bits: another copy of the table has another one there.
    """

    version: int
    at: datetime | None
    mark: int
    added: tuple[DataFile, ...]


def commit_path(version: int) -> str:
    return f"_delta_log/{version:020d}.json"


def bound(value: Any, *, above: bool = False) -> datetime | None:
    """A bound of a file's statistics as a time; statistics are cut to milliseconds, hence `above`."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, int):
        try:
            value = datetime.fromtimestamp(value / 1_000_000_000, UTC)
        except (OverflowError, ValueError, OSError):
            return None
    if not isinstance(value, datetime):
        return None
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    return moment + timedelta(milliseconds=1) if above else moment


def _earliest(add: dict[str, Any]) -> datetime | None:
    try:
        least = orjson.loads(add.get("stats") or "{}").get("minValues") or {}
    except orjson.JSONDecodeError:
        return None
    return bound(least.get("start_time_unix_nano"))


def parse_commit(version: int, content: bytes) -> Commit:
    added: list[DataFile] = []
    at: datetime | None = None
    for line in content.splitlines():
        if not line.strip():
            continue
        action: dict[str, Any] = orjson.loads(line)
        info = action.get("commitInfo")
        if info is not None:
            at = moment_of(info.get("inCommitTimestamp") or info.get("timestamp"))
        add = action.get("add")
        if add is not None and add.get("dataChange", True):
            added.append(
                DataFile(
                    path=unquote(add["path"]),
                    size=add.get("size", 0),
                    modified=moment_of(add.get("modificationTime")),
                    partition_values=add.get("partitionValues") or {},
                    earliest=_earliest(add),
                    has_deleted_rows=bool(add.get("deletionVector")),
                )
            )
    mark = int.from_bytes(hashlib.sha256(content).digest()[:7])
    return Commit(version=version, at=at, mark=mark, added=tuple(added))


def moment_of(value: int | datetime | None) -> datetime:
    """A time of the log (milliseconds since the epoch) as UTC; one that is absurd counts as the epoch."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return datetime.fromtimestamp((value or 0) / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def interval(text: str | None) -> timedelta:
    """A Delta interval, such as `interval 30 days`; zero for none."""
    found = _INTERVAL.fullmatch(text or "")
    return timedelta(**{f"{found[2].lower()}s": int(found[1])}) if found else timedelta(0)
