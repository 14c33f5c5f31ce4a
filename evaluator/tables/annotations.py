"""How a result stands in the annotations table, in the format of Unity Catalog's trace tables.

Append-only: a reader takes the latest row of each `annotation_id` by `updated_at` and drops deleted ones.
`value` is JSON text, and what our own columns need beyond the table's stands in `metadata` under
`evaluator.` keys.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, assert_never

import orjson
import pyarrow as pa

from evaluator.errors import TableError
from evaluator.feedback import Assessment, Erased, Feedback, Target, Unscored
from evaluator.portions import portions
from evaluator.tables.delta import DeltaStore
from evaluator.tables.provision import DESCRIPTION
from evaluator.tables.schemas import ANNOTATIONS
from evaluator.tables.snapshot import CommitConflict, Snapshot, quoted

AUTHOR = "evaluator"
TARGETS_A_COMMIT = 1_000


def annotation_id(target: Target, name: str, version: str) -> str:
    """The same for every revision of a result, another for every version: 32 hex digits."""
    parts = "\x1f".join((target.type, target.target_id, name, version))
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def open_annotations(store: DeltaStore) -> Snapshot:
    """The annotations table as it is now. Raises TableError: missing, unreadable, or another table."""
    snapshot = store.open()
    missing = [name for name in ANNOTATIONS.names if name not in snapshot.schema.names]
    if missing:
        raise TableError(
            f"{store.uri}: this is not an annotations table (it has no column {', '.join(missing)}); "
            "`annotations` or `prefix` in evaluator.yaml must name the right one"
        )
    return snapshot


def annotation_rows(assessments: Iterable[Assessment]) -> pa.Table:
    """Results as rows to append."""
    return pa.Table.from_pylist([_row(assessment) for assessment in assessments], schema=ANNOTATIONS)


def erase(store: DeltaStore, erased: Sequence[Erased], *, dry_run: bool = False) -> int:
    """Delete what the table says about some traces, and the results of some sessions; how many rows that were.

    In a table of our own all of it, elsewhere what we wrote. The rows stay in older files until a vacuum. Raises
    TableError.
    """
    return sum(_erase(store, portion, dry_run) for portion in portions(erased, TARGETS_A_COMMIT))


def _erase(store: DeltaStore, erased: Sequence[Erased], dry_run: bool) -> int:
    sessions = {one.target.target_id: one.revision for one in erased if one.target.type == "SESSION"}
    traces = {one.target.target_id for one in erased if one.target.type == "TRACE"}
    while True:
        snapshot = open_annotations(store)
        whole, parts = _of_sessions(snapshot, sessions)
        where = _of_traces(traces, ours=snapshot.description.startswith(DESCRIPTION))
        where += f" or annotation_id in ({', '.join(map(quoted, sorted(whole)))})" if whole else ""
        for annotation, last in parts.items():
            where += (
                f" or (annotation_id = {quoted(annotation)} and updated_at <= {quoted(last.isoformat())})"
            )
        found: int = snapshot.query(f"select annotation_id from t where {where}").num_rows
        try:
            if found and not dry_run:
                snapshot.replace(where, snapshot.empty())
        except CommitConflict:
            continue
        return found


def _of_traces(traces: Collection[str], *, ours: bool) -> str:
    """The condition for rows about traces and their spans."""
    if not traces:
        return "false"
    ids = ", ".join(map(quoted, sorted(traces)))
    where = f"lower(split_part(target_id, ':', 1)) in ({ids})"
    return where if ours else f"({where} and strpos(metadata, '\"evaluator.') > 0)"


def _of_sessions(snapshot: Snapshot, sessions: Mapping[str, int]) -> tuple[set[str], dict[str, datetime]]:
    """The ids of the results of some sessions up to a revision each, and those of which there are newer ones too, with the
    time of the last that is not newer.

    The hash that made an id tells it from those of the session's traces.
    """
    upto: dict[str, datetime] = {}
    newer: set[str] = set()
    for session, revision in sessions.items():
        told = f'"evaluator.session_id":{orjson.dumps(session).decode()}'
        rows = snapshot.query(
            f"select annotation_id, name, metadata, updated_at from t where strpos(metadata, {quoted(told)}) > 0"
        )
        target = Target(type="SESSION", target_id=session, trace_id="", session_id=session)
        for row in rows.to_pylist():
            own, annotation = orjson.loads(row["metadata"]), row["annotation_id"]
            if annotation != annotation_id(target, row["name"], own.get("evaluator.version", "")):
                continue
            if own.get("evaluator.revision", 0) > revision:
                newer.add(annotation)
            else:
                upto[annotation] = max(row["updated_at"], upto.get(annotation, row["updated_at"]))
    return upto.keys() - newer, {annotation: upto[annotation] for annotation in upto.keys() & newer}


def _row(assessment: Assessment) -> dict[str, Any]:
    target, usage = assessment.target, assessment.scored.usage
    outcome = assessment.scored.outcome
    value: str | None = None
    comment: str | None = None
    own: dict[str, Any] = {
        "version": assessment.version,
        "revision": assessment.revision,
        "source_type": assessment.source_type,
        "source_id": usage.model or assessment.name,
        "run_id": assessment.run_id,
        "session_id": target.session_id,
        "target": "session" if target.type == "SESSION" else None,
        "model": usage.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": usage.cost_usd,
        "latency_ms": usage.latency_ms,
    }
    match outcome:
        case Feedback():
            value = orjson.dumps(outcome.value).decode()
            comment = outcome.rationale
            own["passed"] = outcome.passed
        case Unscored():
            own["error"] = f"{outcome.reason}: {outcome.detail}"
        case _:
            assert_never(outcome)
    metadata = {f"evaluator.{key}": item for key, item in own.items() if item is not None}
    metadata |= {f"evaluator.{key}": item for key, item in assessment.scored.metadata.items()}
    return {
        "annotation_id": annotation_id(target, assessment.name, assessment.version),
        "target_type": "SPAN" if target.type == "SPAN" else "TRACE",
        "target_id": target.target_id if target.type == "SPAN" else target.trace_id,
        "annotation_type": "FEEDBACK",
        "name": assessment.name,
        "value": value,
        "comment": comment,
        "metadata": orjson.dumps(metadata).decode(),
        "created_at": assessment.at,
        "created_by": AUTHOR,
        "updated_at": assessment.at,
        "updated_by": AUTHOR,
        "deleted_at": None,
        "deleted_by": None,
    }


ASSESSMENTS_SQL = """
with newest as (
    select *,
        case when metadata is not null and json_valid(metadata) then metadata::json end as meta,
        case when value is null or value = 'null' then null
             when json_valid(value) and json_type(value) <> 'NULL' then value::json ->> '$'
             else value end as plain
    from annotations
    where annotation_type = 'FEEDBACK'
    qualify row_number() over (partition by annotation_id order by updated_at desc, created_at desc) = 1
), told as (
    select
        annotation_id as assessment_id,
        lower(case when target_type = 'SPAN' then split_part(target_id, ':', 1) else target_id end) as trace_id,
        case when target_type = 'SPAN' then lower(split_part(target_id, ':', 2)) end as span_id,
        meta ->> '$."evaluator.session_id"' as session_id,
        meta ->> '$."evaluator.target"' as target,
        name,
        meta ->> '$."evaluator.version"' as version,
        coalesce(try_cast(meta ->> '$."evaluator.revision"' as integer), 0) as revision,
        plain as value,
        case when meta ->> '$."evaluator.version"' is not null
             then try_cast(meta ->> '$."evaluator.passed"' as boolean)
             when lower(plain) in ('yes', 'true', 'pass') then true
             when lower(plain) in ('no', 'false', 'fail') then false end as passed,
        comment as rationale,
        coalesce(meta ->> '$."evaluator.source_type"', meta ->> '$."mlflow.assessment.sourceType"',
                 meta ->> '$.source.source_type') as source_type,
        coalesce(meta ->> '$."evaluator.source_id"', meta ->> '$.source.source_id', created_by) as source_id,
        meta ->> '$."evaluator.model"' as model,
        try_cast(meta ->> '$."evaluator.input_tokens"' as bigint) as input_tokens,
        try_cast(meta ->> '$."evaluator.output_tokens"' as bigint) as output_tokens,
        try_cast(meta ->> '$."evaluator.cost_usd"' as double) as cost_usd,
        try_cast(meta ->> '$."evaluator.latency_ms"' as double) as latency_ms,
        meta ->> '$."evaluator.run_id"' as run_id,
        meta ->> '$."evaluator.error"' as error,
        created_at,
        updated_at
    from newest
    where deleted_at is null
)
select * exclude (target),
    row_number() over (
        partition by coalesce(span_id, ''), target, if(target = 'session', session_id, trace_id), name,
                     coalesce(source_type, '') = 'HUMAN', version is null
        order by updated_at desc, assessment_id
    ) = 1 as is_current
from told
"""
"""The view `assessments` over a DuckDB relation `annotations`: MLflow's own reading rules, then our columns."""
