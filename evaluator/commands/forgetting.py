"""Forgetting a trace, a session or a user: everything that the evaluator knows of it."""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from evaluator.config import Config
from evaluator.errors import ConfigurationError, EvaluatorError, SinkError
from evaluator.feedback import Erased
from evaluator.lease import Held
from evaluator.publish import publish
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.sinks.sink import Behind, Sink
from evaluator.tables.annotations import erase
from evaluator.tables.delta import DeltaStore
from evaluator.tables.forgetting import Erasure, forget
from evaluator.tables.provision import DESCRIPTION
from evaluator.tables.snapshot import quoted
from evaluator.wiring import Tables, build_cache, build_lease, build_sinks, build_tables, utc_now

_TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was erased, or would be: traces and sessions, rows of the ledger and of the annotations table.

    `behind`: the sinks that erase it when they are within reach again. `files_gone`: whether the older files that
    held it are deleted already. `spans` is the table that still holds the traces themselves.
    """

    traces: Sequence[str]
    sessions: Sequence[str]
    ledger_rows: int
    annotation_rows: int
    behind: Sequence[Behind] = field(default_factory=list)
    files_gone: bool = False
    held_by: str | None = None
    spans: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "traces": list(self.traces),
            "sessions": list(self.sessions),
            "ledger_rows": self.ledger_rows,
            "annotation_rows": self.annotation_rows,
            "behind": [one.sink for one in self.behind],
            "files_gone": self.files_gone,
        }


async def forget_targets(
    config: Config,
    *,
    trace_id: str | None = None,
    user: str | None = None,
    session: str | None = None,
    dry_run: bool = False,
    clock: Callable[[], datetime] = utc_now,
) -> Forgotten:
    """Erase what is known of one trace, or of the traces of a user or a session; a later tick leaves them alone.

    Again, it finds nothing more to do. The spans themselves are the team's and stay. Raises EvaluatorError.
    """
    tables = build_tables(config, clock)
    traces = await asyncio.to_thread(_traces, tables, trace_id, user, session)
    sessions = [session] if session is not None else []
    erasure = await asyncio.to_thread(forget, tables.ledger, traces, sessions, dry_run=dry_run)
    annotations = 0
    if await asyncio.to_thread(tables.annotations.exists):
        annotations = await asyncio.to_thread(erase, tables.annotations, erasure.erased, dry_run=True)
    behind: Sequence[Behind] = ()
    held_by: str | None = None
    if not dry_run:
        try:
            await asyncio.to_thread(build_cache(config, clock).forget, traces)
        except sqlite3.Error as error:
            raise EvaluatorError(
                f"forget: the cache in {config.path(config.state)} cannot be changed: {error} (once more when it can)"
            ) from error
        behind = await _forget_published(config, tables, erasure)
        held_by = await _delete_old_files(config, tables, clock)
    return Forgotten(
        traces=traces,
        sessions=sorted({one.target.target_id for one in erasure.erased if one.target.type == "SESSION"}),
        ledger_rows=erasure.rows,
        annotation_rows=annotations,
        behind=behind,
        files_gone=not dry_run and held_by is None,
        held_by=held_by,
        spans=tables.spans.store.uri,
    )


def _traces(tables: Tables, trace_id: str | None, user: str | None, session: str | None) -> list[str]:
    """The traces that are meant, by the spans table's columns; those of a session also by the ledger."""
    if [trace_id, user, session].count(None) != 2:
        raise ConfigurationError("say one thing to forget: TRACE_ID, --user ID or --session ID")
    if trace_id is not None:
        wanted = trace_id.lower().removeprefix("tr-")
        if not _TRACE_ID.fullmatch(wanted):
            raise ConfigurationError(f"forget: {trace_id!r} is no trace id: 32 hexadecimal digits")
        return [wanted]
    column = "user_id" if user is not None else "session_id"
    found = tables.views.query(f"select trace_id from traces where {column} = ?", [user or session])  # noqa: S608 -- one of two columns
    known = set(found.column("trace_id").to_pylist())
    if session is not None:
        rows = tables.ledger.open().table(f"session_id = {quoted(session)}", ["trace_id"])
        known |= {one for one in rows.column("trace_id").to_pylist() if one}
    return sorted(known)


async def _forget_published(config: Config, tables: Tables, erasure: Erasure) -> list[Behind]:
    """Have every sink pass the erasure, by which it erases; one that passed it long ago is asked once more."""
    if not erasure.erased:
        return []
    sinks: list[Sink] = await asyncio.to_thread(build_sinks, config, tables)
    behind = await publish(tables.ledger, sinks)
    if "annotations" not in config.publish and await asyncio.to_thread(tables.annotations.exists):
        ledger_id = (await asyncio.to_thread(tables.ledger.open)).table_id
        sinks = [*sinks, AnnotationsSink(tables.annotations, ledger_id)]
    late = {one.sink for one in behind}
    for sink in sinks:
        if sink.name not in late and (not erasure.committed or sink.name not in config.publish):
            behind += await _asked_once_more(sink, erasure.erased)
    return behind


async def _asked_once_more(sink: Sink, erased: Sequence[Erased]) -> list[Behind]:
    try:
        await sink.forget(erased)
    except SinkError as error:
        return [Behind(sink=sink.name, cursor=0, detail=str(error))]
    return []


async def _delete_old_files(config: Config, tables: Tables, clock: Callable[[], datetime]) -> str | None:
    """Delete the files that are no longer of our tables, which held the rows; who has the tables in use otherwise.

    Only files that the log names as removed: what others are just writing stays. No worker may read meanwhile, hence
    its lease; anybody else's query at this moment may have to be made again.
    """
    try:
        async with build_lease(config, tables, clock).held(wait=False):
            for store in (tables.ledger.store, tables.annotations):
                await asyncio.to_thread(_delete_removed, store)
    except Held as held:
        return str(held)
    return None


def _delete_removed(store: DeltaStore) -> None:
    if not store.exists() or not (snapshot := store.open()).description.startswith(DESCRIPTION):
        return
    if snapshot.vacuum(keep=timedelta(0), unknown=False, dry_run=True):
        snapshot.vacuum(keep=timedelta(0), unknown=False, dry_run=False)
