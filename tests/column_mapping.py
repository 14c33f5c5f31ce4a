"""A table with column mapping by name, as Databricks makes them: deltalake reads such tables and cannot make one.

Source: the Delta protocol, "Column Mapping".
"""

import json
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import Schema

from tests.databricks_tables import now_ms


def write_mapped(path: Path, table: pa.Table) -> None:
    """One commit of rows; the top columns' names in the file are not those of the table."""
    (path / "_delta_log").mkdir(parents=True)
    numbers = count(1)
    fields = json.loads(Schema.from_arrow(table.schema).to_json())["fields"]
    for field in fields:
        _map(field, f"col-{field['name'][::-1]}", numbers)
    file = path / "part-00000.parquet"
    pq.write_table(table.rename_columns([f"col-{name[::-1]}" for name in table.column_names]), file)
    features = ["columnMapping"]
    metadata = {
        "id": "0b7b9d5c-5f1e-4c55-9d0e-6f1c7f6f9a02",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": [],
        "configuration": {
            "delta.columnMapping.mode": "name",
            "delta.columnMapping.maxColumnId": str(next(numbers)),
        },
        "createdTime": now_ms(),
    }
    added = {
        "path": file.name,
        "partitionValues": {},
        "size": file.stat().st_size,
        "modificationTime": now_ms(),
        "dataChange": True,
    }
    actions = [
        {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        },
        {"metaData": metadata},
        {"add": added},
        {"commitInfo": {"timestamp": now_ms(), "operation": "WRITE"}},
    ]
    log = path / "_delta_log" / f"{0:020d}.json"
    log.write_text("\n".join(json.dumps(action) for action in actions))


def _map(field: dict[str, Any], physical: str, numbers: "count[int]") -> None:
    """Give a field, and those within it, a number and the name that it has in files."""
    field["metadata"] = {
        "delta.columnMapping.id": next(numbers),
        "delta.columnMapping.physicalName": physical,
    }
    kind = field["type"]
    while isinstance(kind, dict) and kind["type"] == "array":
        kind = kind["elementType"]
    if isinstance(kind, dict) and kind["type"] == "struct":
        for inner in kind["fields"]:
            _map(inner, inner["name"], numbers)
