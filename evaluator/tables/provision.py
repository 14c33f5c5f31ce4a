"""The one-time making of the four trace tables.

None of them is partitioned. Spans arrive roughly in the order of their times, so that the bounds which each
file's statistics hold already tell a range of days from the rest, while the day of a span is its sender's
claim: a clock that runs wild would make a folder and a small file for every day it names.
"""

import pyarrow as pa

from evaluator.config import Config
from evaluator.tables import schemas
from evaluator.tables.stores import Stores

DESCRIPTION = "Provisioned by evaluator"
"""What the descriptions of our own tables begin with; a reader knows them by it."""

TRACE_TABLES: dict[str, pa.Schema] = {
    "otel_spans": schemas.SPANS,
    "otel_logs": schemas.LOGS,
    "otel_metrics": schemas.METRICS,
    "otel_annotations": schemas.ANNOTATIONS,
}

_COLLECTED = {"delta.checkpointInterval": "20"}
"""Many small appends: with a checkpoint every 100 commits an append took 25 to 32 ms, so 12 to 15 (deltalake
1.6.6, 500 spans, together with fewer statistics)."""

_STATISTICS = {
    "otel_spans": "time,date,service_name,start_time_unix_nano",
    "otel_logs": "time,date,service_name,time_unix_nano",
    "otel_metrics": "time,date,service_name,time_unix_nano",
    "otel_annotations": "created_at,updated_at",
}
"""The columns that files are skipped by. Bounds of ids and texts skip nothing, make every reading of the log
slower, and would copy the beginnings of texts into it."""


def provision(config: Config) -> list[str]:
    """Create those of the trace tables that are not there; the URIs of what was made.

    Raises TableError, also when results are to be published to an annotations table that cannot be written.

    The ledger is not among them: its own module knows how it has to be made.
    """
    made = []
    stores = Stores(config)
    for table, schema in TRACE_TABLES.items():
        store = stores.of(table)
        if store.create(schema, description=f"{DESCRIPTION}: {table}", configuration=table_properties(table)):
            made.append(store.uri)
    if "annotations" in config.publish:
        stores.of("otel_annotations").check_writable()
    return made


def table_properties(table: str) -> dict[str, str]:
    """The properties of a trace table of ours."""
    statistics = {"delta.dataSkippingStatsColumns": _STATISTICS[table]}
    return statistics if table == "otel_annotations" else {**_COLLECTED, **statistics}
