"""Keeping a table fast and small: files put together, a checkpoint, the log and the folder cleaned up."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from evaluator.tables.actions import interval
from evaluator.tables.delta import DeltaStore
from evaluator.tables.location import is_remote
from evaluator.tables.snapshot import CommitConflict, Snapshot

log = logging.getLogger(__name__)

KEEP = timedelta(days=7)
"""How long a file outlives its removal from a table, or its being written without a commit: Delta's own default.

Our readers open anew with every commit that they make, so they need a file for minutes; others' may be a stream
that was down over a weekend.
"""
KEPT_LONGER_BY = "delta.deletedFileRetentionDuration"
STAGED_FOR = timedelta(hours=1)
COMPACTED_TO = 100 * 2**20
"""The size that the library puts small files together to, in bytes."""
TRIES = 3

_STAGING = re.compile(r"#\d+$|^_commit_.*\.json\.tmp$")
"""What a killed writer leaves on a local disk beside data files and commits; no vacuum looks at these names."""

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintained:
    """What was done for one table, or would be.

    `small_files` became `became` (0 in a dry run), `deleted` files were of no version within reach, `leftovers` are
    what killed writers left.
    """

    table: str
    small_files: int
    became: int
    deleted: int
    leftovers: int


def maintain(
    name: str, store: DeltaStore, properties: Mapping[str, str], *, now: datetime, dry_run: bool = False
) -> Maintained:
    """Maintain a table of our own, whoever reads and writes it meanwhile; what it holds stays as it is.

    `properties` are what `init` gives such a table today. Raises TableError.
    """
    leftovers = list(_leftovers(store.location().uri, now))
    small = became = 0
    if dry_run:
        small = _small_files(store.open())
    else:
        if any(store.open().configuration.get(key) != value for key, value in properties.items()):
            _retried(store, lambda snapshot: snapshot.set_properties(properties))
        small, became = _retried(store, Snapshot.compact) or (0, 0)
        snapshot = store.open()
        snapshot.checkpoint()
        snapshot.clean_log()
        for file in leftovers:
            file.unlink(missing_ok=True)
    snapshot = store.open()
    keep = max(KEEP, interval(snapshot.configuration.get(KEPT_LONGER_BY)))
    deleted = snapshot.vacuum(keep=keep, unknown=True, dry_run=True)
    if deleted and not dry_run:  # only then: a vacuum is two commits, whatever there is to delete
        deleted = snapshot.vacuum(keep=keep, unknown=True, dry_run=False)
    return Maintained(
        table=name, small_files=small, became=became, deleted=len(deleted), leftovers=len(leftovers)
    )


def _retried(store: DeltaStore, work: Callable[[Snapshot], Done]) -> Done | None:
    """Do what yields to everybody else; None when others were faster each time: the next maintenance does it."""
    for _ in range(TRIES):
        try:
            return work(store.open())
        except CommitConflict as conflict:
            cause = str(conflict)
    log.warning("maintenance gave way to other commits", extra={"table": store.uri, "cause": cause})
    return None


def _small_files(snapshot: Snapshot) -> int:
    """How many files a compaction would take: the small ones of each partition that has several."""
    small = Counter(
        tuple(sorted(file.partition_values.items()))
        for file in snapshot.files("seq")
        if file.size < COMPACTED_TO
    )
    return sum(count for count in small.values() if count > 1)


def _leftovers(uri: str, now: datetime) -> Iterator[Path]:
    """The staging files of killed writers in a table's folder, on a local disk: old ones, which nobody writes."""
    if is_remote(uri):
        return
    folder = Path(unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri)
    oldest = (now - STAGED_FOR).timestamp()
    for file in folder.rglob("*"):
        if _STAGING.search(file.name) and file.is_file() and file.stat().st_mtime < oldest:
            yield file
