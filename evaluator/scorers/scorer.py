"""The port of everything that judges, and the fingerprint that names a version of it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

from evaluator.dataset.records import Record
from evaluator.errors import ModelError
from evaluator.feedback import Scored, SourceType, Usage
from evaluator.guidelines.definitions import TargetKind

JUDGING_REVISION = 1
"""Raised by hand when the program itself comes to judge otherwise; part of every version."""


class UnusableModelError(ModelError):
    """A model has to be mended before a scorer can judge; `usage` is what it took to find that out."""

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


class Scorer(Protocol):
    """Judges records.

    `name` is unique among the active scorers; `version` is a fingerprint of all that can change a result
    and of nothing else; `definition` is the same in JSON values, for people. `waits` says that scoring
    waits on something slow (a model): then it is called with one record at a time, many at once;
    otherwise with a whole chunk.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def source_type(self) -> SourceType: ...
    @property
    def waits(self) -> bool: ...
    @property
    def definition(self) -> Mapping[str, Any]: ...

    async def score(self, records: Sequence[Record]) -> Sequence[Scored]:
        """One `Scored` for each record, in their order.

        What could not be judged is an `Unscored` in its place. Raises only ModelError, and only when
        the configuration has to be mended before anything can be judged.
        """
        ...


def fingerprint(definition: Mapping[str, Any]) -> str:
    """The version of a definition: 12 hex digits that do not depend on the order of its keys."""
    content = orjson.dumps({"revision": JUDGING_REVISION, **definition}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:12]


def about(target: TargetKind) -> dict[str, str]:
    """What a definition says of its target: a trace goes without saying."""
    return {} if target == "trace" else {"target": target}
