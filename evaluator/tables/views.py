"""Read-only SQL over what the tables hold: traces, spans, assessments, ledger, scorers."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from evaluator.errors import ConfigurationError
from evaluator.tables.annotations import ASSESSMENTS_SQL, open_annotations
from evaluator.tables.decoding import identified, spans_of
from evaluator.tables.delta import DeltaStore
from evaluator.tables.jsontext import json_columns
from evaluator.tables.ledger import SCORER_NOTE, Ledger
from evaluator.tables.reading import CONTROL
from evaluator.tables.rows import COLUMNS
from evaluator.tables.schemas import ANNOTATIONS
from evaluator.tables.spans import SpansTable
from evaluator.traces.assembly import assemble, gather, has_ended_root
from evaluator.traces.columns import step_columns, traces_table
from evaluator.traces.conventions import step_of

if TYPE_CHECKING:
    import duckdb

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}
_LEDGER_SQL = f"""
select * exclude (target_type), target_type
from rows
where target_type <> '{CONTROL}'
qualify row_number() over (
    partition by target_type, target_id, scorer, version, revision order by seq desc
) = 1
"""
_SCORERS_SQL = f"""
select
    note.metadata ->> '$.name' as name,
    note.metadata ->> '$.version' as version,
    (note.metadata -> '$.definition')::varchar as definition,
    note.at as first_seen,
    greatest(note.at, (
        select max(result.at) from rows result
        where result.scorer = note.metadata ->> '$.name' and result.version = note.metadata ->> '$.version'
    )) as last_seen
from rows note
where note.target_type = '{CONTROL}' and starts_with(note.target_id, '{SCORER_NOTE}')
qualify row_number() over (partition by note.target_id order by note.seq) = 1
"""


class Views:
    """Answers queries. A view is read from its table only when a query names it."""

    def __init__(self, spans: SpansTable, annotations: DeltaStore, ledger: Ledger) -> None:
        self._spans = spans
        self._annotations = annotations
        self._ledger = ledger
        self._builders: dict[str, Callable[[Any], None]] = {
            "traces": self._add_traces,
            "spans": self._add_spans,
            "assessments": self._add_assessments,
            "ledger": self._add_ledger,
            "scorers": self._add_scorers,
        }

    def query(self, sql: str, parameters: list[Any] | None = None) -> pa.Table:
        """The rows of one SELECT, as Arrow. It cannot write, attach, or reach a file.

        Raises ConfigurationError when it is not one query or DuckDB does not take it, TableError when a
        table that it names cannot be read.
        """
        import duckdb

        database = duckdb.connect(":memory:", config=_LOCKED)
        try:
            database.execute("set global TimeZone = 'UTC'")
            statements = duckdb.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in (
                duckdb.StatementType.SELECT,
                duckdb.StatementType.EXPLAIN,
            ):
                raise ConfigurationError("sql: write one SELECT; nothing else runs here")
            for name, build in self._builders.items():
                if re.search(rf"\b{name}\b", sql, re.IGNORECASE):
                    build(database)
            database.execute("set global lock_configuration = true")
            return database.sql(sql, params=parameters).to_arrow_table()
        except duckdb.Error as error:
            raise ConfigurationError(f"sql: {error}") from error
        finally:
            database.close()

    def _add_traces(self, database: "duckdb.DuckDBPyConnection") -> None:
        found = gather(self._spans.open().around(None, None))
        traces = [
            assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))
            for pending in found.values()
        ]
        database.register("traces", traces_table(traces))

    def _add_spans(self, database: "duckdb.DuckDBPyConnection") -> None:
        table = identified(self._spans.open().everything())
        derived = step_columns([step_of(span) for span in spans_of(table)])
        table = json_columns(table)
        for name in derived.column_names:
            if name not in table.column_names:
                table = table.append_column(name, derived.column(name))
        database.register("spans", table)

    def _add_assessments(self, database: "duckdb.DuckDBPyConnection") -> None:
        snapshot = open_annotations(self._annotations)
        names = ", ".join(f'"{name}"' for name in ANNOTATIONS.names)
        rows = snapshot.query(f"select {names} from t where annotation_type = 'FEEDBACK'")
        database.register("annotations", json_columns(rows))
        database.execute(f"create view assessments as {ASSESSMENTS_SQL}")

    def _add_ledger(self, database: "duckdb.DuckDBPyConnection") -> None:
        self._register_rows(database)
        database.execute(f"create view ledger as {_LEDGER_SQL}")

    def _add_scorers(self, database: "duckdb.DuckDBPyConnection") -> None:
        self._register_rows(database)
        database.execute(f"create view scorers as {_SCORERS_SQL}")

    def _register_rows(self, database: "duckdb.DuckDBPyConnection") -> None:
        database.register("rows", self._ledger.open().table("true", COLUMNS))
