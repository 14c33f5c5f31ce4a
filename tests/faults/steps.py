"""The steps of a worker as they can be seen from outside: by the files and commits that appear, and by the calls."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import orjson

from tests.s3 import REGION, ROOT_KEY, S3
from tests.stub_provider import StubProvider
from tests.traffic import NOON

LEDGER, ANNOTATIONS = "agent_eval_ledger", "agent_otel_annotations"
STEPS = (
    "lease asked for", "lease taken", "spending noted", "call came", "results staged", "results committed",
    "cursor moved", "annotations staged", "annotations committed", "annotations' cursor moved", "lease given back",
)  # fmt: skip
"""In the order in which they come for the first time."""
_COMMIT = re.compile(r"/_delta_log/\d{20}\.json$")


class Place(Protocol):
    """Where the tables lie, and how many seconds there are between two looks at it."""

    every: float

    def new_files(self) -> list[str]:
        """The files that were written since the last look, by their paths from the tables' folder."""

    def read(self, path: str) -> bytes:
        """What is in a file, nothing when it is gone by now."""


class Folder:
    """Tables in a folder."""

    every = 0.001

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()

    def new_files(self) -> list[str]:
        found = {
            f"{part}/{name}"
            for table in (LEDGER, ANNOTATIONS)
            for part in (table, *self._parts(table))
            for name in os.listdir(self._folder / part)
        }
        new, self._seen = found - self._seen, found
        return sorted(new)

    def read(self, path: str) -> bytes:
        try:
            return (self._folder / path).read_bytes()
        except FileNotFoundError:
            return b""

    def _parts(self, table: str) -> Iterator[str]:
        with os.scandir(self._folder / table) as entries:
            yield from (f"{table}/{entry.name}" for entry in entries if entry.is_dir())


class Bucket:
    """Tables in a folder of a bucket."""

    every = 0.02

    def __init__(self, s3: S3, folder: str) -> None:
        self._s3 = s3
        self._root = "/" + folder.removeprefix("s3://") + "/"
        self._sent: set[str] = set()

    def new_files(self) -> list[str]:
        """Data files count from when they are sent, commits from when they are there."""
        put = [
            asked.path for asked in self._s3.requests() if asked.method == "PUT" and asked.status in (0, 200)
        ]
        self._sent |= {path.removeprefix(self._root) for path in put if path.startswith(self._root)}
        new = sorted(path for path in self._sent if not _COMMIT.search(path) or self.read(path))
        self._sent.difference_update(new)
        return new

    def read(self, path: str) -> bytes:
        key = f"AWS4-HMAC-SHA256 Credential={ROOT_KEY}/20261122/{REGION}/s3/aws4_request"
        try:
            with urlopen(
                Request(self._s3.endpoint + self._root + path, headers={"Authorization": key})
            ) as told:
                content: bytes = told.read()
                return content
        except HTTPError as error:
            with error:
                return b""


class Steps:
    """Tells which steps were taken since the last look."""

    def __init__(self, place: Place, state: Path, stub: StubProvider) -> None:
        self._place = place
        self.every = place.every
        self._leases = state / "leases"
        self._stub = stub
        self._locks: set[str] = set()
        self._calls = 0
        self.look()

    def look(self) -> list[str]:
        """The steps since the last look."""
        return [*self._leased(), *self._called(), *self._written()]

    def _leased(self) -> Iterator[str]:
        locks = set(os.listdir(self._leases)) if self._leases.exists() else set()
        if locks - self._locks:
            yield "lease asked for"
        self._locks = locks

    def _called(self) -> Iterator[str]:
        calls = len(self._stub.requests)
        yield from ["call came"] * (calls - self._calls)
        self._calls = calls

    def _written(self) -> Iterator[str]:
        """A data file counts as staged while no commit names it."""
        new = self._place.new_files()
        commits = {
            path: [orjson.loads(line) for line in self._place.read(path).splitlines()]
            for path in new
            if _COMMIT.search(path)
        }
        tables = {path: path.partition("/")[0] for path in new}
        named = {f"{tables[path]}/{added}" for path, actions in commits.items() for added in _added(actions)}
        staged = (_staged(path) for path in new if path not in named)
        committed = (step_of(tables[path], actions) for path, actions in commits.items())
        yield from filter(None, (*staged, *committed))


def step_of(table: str, actions: list[Mapping[str, Any]]) -> str:
    """What a commit is for; nothing for one of maintenance."""
    marks = transactions_of(actions)
    adds = _added(actions)
    if table == ANNOTATIONS:
        return ("annotations committed" if adds else "annotations' cursor moved") if marks else ""
    if any(name.startswith("lease/") for name in marks):
        return "lease taken" if all(marks.values()) else "lease given back"
    if any(_is_of_results(path) for path in adds):
        return "results committed" if marks else ""
    if any(name.startswith("live/") for name in marks):
        return "cursor moved"
    return "spending noted" if marks else ""


def transactions_of(actions: list[Mapping[str, Any]]) -> dict[str, int]:
    """The application transactions of a commit."""
    told = [action["txn"] for action in actions if "txn" in action]
    return {one["appId"]: one["version"] for one in told}


def _added(actions: list[Mapping[str, Any]]) -> list[str]:
    return [action["add"]["path"] for action in actions if "add" in action]


def _staged(path: str) -> str:
    if "_delta_log" in path or not path.endswith(".parquet"):
        return ""
    if path.startswith(ANNOTATIONS):
        return "annotations staged"
    return "results staged" if _is_of_results(path) else ""


def _is_of_results(path: str) -> bool:
    """Whether a file of the ledger lies in the day of the traces; its notes lie elsewhere."""
    return f"day={NOON.date()}" in path
