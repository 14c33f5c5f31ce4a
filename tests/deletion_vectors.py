"""A table with deletion vectors, as Databricks makes them: deltalake reads such tables and cannot make one.

Source: the Delta protocol, "Deletion Vector Format" and "Deletion Vector Descriptor Schema"; RoaringFormatSpec.
"""

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MAGIC = 1681511377
_NO_RUNS = 12346
_B85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def enable(table: Path) -> None:
    """Give a table the feature, in a commit of its own."""
    first = [json.loads(line) for line in _log(table, 0).read_text().splitlines()]
    features = next((action["protocol"] for action in first if "protocol" in action), {})
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": sorted({*(features.get("readerFeatures") or []), "deletionVectors"}),
        "writerFeatures": sorted(
            {*(features.get("writerFeatures") or []), "deletionVectors", "appendOnly", "invariants"}
        ),
    }
    _commit(table, [{"protocol": protocol}])


def delete_rows(table: Path, version: int, positions: Sequence[int]) -> None:
    """Mark rows of the one file that a commit added as deleted: the file stays, with a vector beside it."""
    actions = [json.loads(line) for line in _log(table, version).read_text().splitlines()]
    [add] = [action["add"] for action in actions if "add" in action]
    removed = {key: add.get(key) for key in ("path", "partitionValues", "size")}
    vector = _vector(positions)
    descriptor = {
        "storageType": "i",
        "pathOrInlineDv": base64.b85encode(vector).translate(bytes.maketrans(_B85, _Z85)).decode(),
        "sizeInBytes": len(vector),
        "cardinality": len(positions),
    }
    _commit(
        table,
        [
            {"remove": {**removed, "deletionTimestamp": 1, "dataChange": True, "extendedFileMetadata": True}},
            {"add": {**add, "dataChange": True, "deletionVector": descriptor}},
        ],
    )


def _vector(positions: Sequence[int]) -> bytes:
    """A bitmap array of one bitmap with one array container; padded to whole groups of four bytes for Z85."""
    values = sorted(positions)
    container = struct.pack(f"<{len(values)}H", *values)
    bitmap = struct.pack("<IIHHI", _NO_RUNS, 1, 0, len(values) - 1, 16) + container
    vector = struct.pack("<iqI", _MAGIC, 1, 0) + bitmap
    return vector + b"\0" * (-len(vector) % 4)


def _commit(table: Path, actions: Sequence[dict[str, Any]]) -> None:
    version = len(list((table / "_delta_log").glob("*.json")))
    info = {
        "commitInfo": {
            "timestamp": int(_log(table, version - 1).stat().st_mtime * 1000),
            "operation": "DELETE",
        }
    }
    _log(table, version).write_text("\n".join(json.dumps(action) for action in (info, *actions)))


def _log(table: Path, version: int) -> Path:
    return table / "_delta_log" / f"{version:020d}.json"
