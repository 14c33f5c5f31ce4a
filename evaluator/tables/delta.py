"""A Delta table: opened as a snapshot, appended to with transactions, read by commit or by query.

The only file that imports the Delta library.
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    QueryBuilder,
    Schema,
    Transaction,
)
from deltalake import write_deltalake as _append
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler

from evaluator.errors import TableError

COMMIT_RETRIES = 100
"""With 8 writers the library's default of 15 failed 9 of 200 appends; 100 lost none (deltalake 1.6.6)."""

_RAW_READABLE = {
    "deletionVectors",
    "timestampNtz",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "variantShredding",
    "variantShredding-preview",
    "variantType",
    "variantType-preview",
}
"""Reader features with which a data file still is what the table holds; others rewrite what a file means."""


class CommitConflict(Exception):  # noqa: N818 -- not a failure: somebody else was first, plan again
    """Another commit came between the opening of the snapshot and the append, or the reply was lost."""


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
    """What a commit of the log added to the table's content; compactions added nothing."""

    version: int
    at: datetime | None
    added: tuple[DataFile, ...]


class DeltaStore:
    """Where a table lies, and the key to it. Cheap to make; every `open` reads the log."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options or {})

    def exists(self) -> bool:
        """Whether there is a Delta table. Raises TableError when the store cannot be asked."""
        try:
            return DeltaTable.is_deltatable(self.uri, self.storage_options)
        except (DeltaError, OSError) as error:
            raise TableError(f"{self.uri}: cannot be reached: {_cause(error)}") from error

    def create(
        self,
        schema: pa.Schema,
        *,
        partition_by: Sequence[str] = (),
        description: str = "",
        configuration: Mapping[str, str] | None = None,
    ) -> bool:
        """Create the table if there is none; True when this call made it. Raises TableError.

        `configuration` holds table properties that Delta knows (`delta.…`); it refuses others.
        """
        if self.exists():
            return False
        try:
            DeltaTable.create(
                self.uri,
                Schema.from_arrow(schema),
                mode="error",
                partition_by=list(partition_by),
                description=description,
                configuration={"delta.checkpointInterval": "100", **(configuration or {})},
                storage_options=self.storage_options,
            )
        except (DeltaError, OSError) as error:
            if self.exists():  # another process was first
                return False
            raise TableError(f"{self.uri}: cannot be created: {_cause(error)}") from error
        return True

    def open(self) -> "Snapshot":
        """The newest snapshot. Raises TableError: missing, foreign, unreadable, or out of reach."""
        try:
            return Snapshot(self, DeltaTable(self.uri, storage_options=self.storage_options))
        except TableNotFoundError as error:
            raise TableError(
                f"{self.uri}: there is no Delta table here (`evaluator init` makes the tables; "
                "`tables`, `spans` and `prefix` in evaluator.yaml say where they are)"
            ) from error
        except (DeltaError, OSError, ValueError) as error:
            cause = _cause(error)
            if "catalogManaged" in cause or "max_catalog_version" in cause:
                raise TableError(
                    f"{self.uri}: the table is catalog-managed, which this Delta library cannot open; "
                    "write the spans to an external table, or drop the feature with "
                    "ALTER TABLE … DROP FEATURE catalogManaged"
                ) from error
            if "feature" in cause.lower():
                raise TableError(
                    f"{self.uri}: the table uses a feature that this Delta library cannot read: {cause} "
                    "(ALTER TABLE … DROP FEATURE takes it off, or write the spans to a table without it)"
                ) from error
            raise TableError(f"{self.uri}: cannot be opened: {cause}") from error


class Snapshot:
    """A table as of one version. Appending goes through this object, so that its transactions are guarded."""

    def __init__(self, store: DeltaStore, table: DeltaTable) -> None:
        self.store = store
        self._table = table
        self.version: int = table.version()

    @cached_property
    def table_id(self) -> str:
        return str(self._table.metadata().id)

    @cached_property
    def description(self) -> str:
        return self._table.metadata().description or ""

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema(self._table.schema().to_arrow())

    def empty(self) -> pa.Table:
        """A table of no rows with this one's columns."""
        return plain(self.schema.empty_table())

    @cached_property
    def partition_columns(self) -> list[str]:
        return list(self._table.metadata().partition_columns)

    @cached_property
    def raw_readable(self) -> bool:
        """Whether data files can be read one by one: no column mapping, no feature that is unknown here."""
        features = set(self._table.protocol().reader_features or [])
        mapping = self._table.metadata().configuration.get("delta.columnMapping.mode", "none")
        return features <= _RAW_READABLE and mapping == "none"

    @cached_property
    def _kept_rows(self) -> Mapping[str, pa.Array]:
        """Which rows are not deleted, of the files of this snapshot that have a deletion vector, by path."""
        if "deletionVectors" not in (self._table.protocol().reader_features or []):
            return {}
        try:
            vectors = pa.table(self._table.deletion_vectors().read_all())
        except Exception as error:  # the engine raises bare Exception
            raise TableError(
                f"{self.store.uri}: its deletion vectors cannot be read: {_cause(error)}"
            ) from error
        root = unquote(self._table.table_uri).rstrip("/")
        kept = {}
        for uri, mask in zip(vectors["filepath"], vectors["selection_vector"], strict=True):
            path = unquote(uri.as_py()).removeprefix("file://").removeprefix(root.removeprefix("file://"))
            kept[path.lstrip("/")] = mask.values
        return kept

    def transaction(self, app_id: str) -> int | None:
        """The version that an application transaction stands at, None when it never was set."""
        return self._table.transaction_version(app_id)

    def append(self, data: pa.Table, transactions: Mapping[str, int] | None = None) -> int:
        """Append rows and set transactions in one commit; the new version.

        Raises CommitConflict when another commit set one of the transactions since this snapshot was
        opened, or when nobody can say whether the commit was made: open again and look. Raises TableError
        when the table cannot be written.
        """
        properties = CommitProperties(
            max_commit_retries=COMMIT_RETRIES,
            app_transactions=[Transaction(app_id, value) for app_id, value in (transactions or {}).items()],
        )
        hooks = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
        try:
            if data.num_rows:
                _append(
                    self._table,
                    data,
                    mode="append",
                    commit_properties=properties,
                    post_commithook_properties=hooks,
                )
            else:
                self._table.create_write_transaction(
                    [],
                    mode="append",
                    schema=self._table.schema(),
                    commit_properties=properties,
                    post_commithook_properties=hooks,
                )
                self._table.update_incremental()
        except CommitFailedError as error:
            if self.store.open().version == self.version:  # nobody came between: the table does not take it
                raise TableError(f"{self.store.uri}: cannot be appended to: {_cause(error)}") from error
            raise CommitConflict(_cause(error)) from error
        except (DeltaError, OSError, ValueError) as error:
            raise TableError(f"{self.store.uri}: cannot be written: {_cause(error)}") from error
        self.version = self._table.version()
        return self.version

    def query(self, sql: str) -> pa.Table:
        """Run a SELECT over the table, which is called `t` in it (DataFusion). Raises TableError."""
        try:
            reader = QueryBuilder().register("t", self._table).execute(sql)
            return plain(pa.table(reader.read_all()))
        except Exception as error:  # the engine raises bare Exception
            raise TableError(f"{self.store.uri}: cannot be read: {_cause(error)}") from error

    def refresh(self) -> None:
        """Move this object to the newest version by reading only the commits since."""
        try:
            self._table.update_incremental()
        except (DeltaError, OSError) as error:
            raise TableError(f"{self.store.uri}: cannot be opened: {_cause(error)}") from error
        self.version = self._table.version()

    def files(self, time_column: str) -> list[DataFile]:
        """The data files that make up this snapshot, with the bounds of a column of times (or nanoseconds)."""
        actions = pa.table(self._table.get_add_actions(flatten=True))
        partitions = [f"partition.{name}" for name in self.partition_columns]
        return [
            DataFile(
                path=unquote(row["path"]),
                size=row["size_bytes"],
                modified=_moment(row["modification_time"]),
                partition_values={
                    name.removeprefix("partition."): None if row.get(name) is None else str(row[name])
                    for name in partitions
                },
                earliest=_bound(row.get(f"min.{time_column}")),
                latest=_bound(row.get(f"max.{time_column}"), above=True),
            )
            for row in actions.to_pylist()
        ]

    def has_commit(self, version: int) -> bool:
        """Whether the log has the commit file of a version: one request to the store, no snapshot."""
        [info] = self._filesystem.get_file_info([_commit_path(version)])
        return bool(info.type != pafs.FileType.NotFound)

    def commit(self, version: int) -> Commit | None:
        """One commit of the log, None when it is no longer there (cleaned up)."""
        try:
            content = self._read(_commit_path(version))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TableError(f"{self.store.uri}: the log cannot be read: {_cause(error)}") from error
        return _parse_commit(version, content)

    def read_file(self, file: DataFile, columns: Iterable[str]) -> pa.Table:
        """The rows of one data file; partition columns are filled in, columns it lacks are left out.

        Rows that are deleted by now are left out. Only for a table that is `raw_readable`. Raises
        FileNotFoundError when the file was vacuumed, or when nobody can say any more which rows it kept.
        """
        kept = self._kept_rows.get(file.path)
        if kept is None and file.has_deleted_rows:
            raise FileNotFoundError(f"{file.path}, whose deletion vector is no longer the table's")
        wanted = [name for name in columns if name in self.schema.names]
        try:
            with self._filesystem.open_input_file(file.path) as source:
                parquet = pq.ParquetFile(source)
                present = set(parquet.schema_arrow.names)
                table = parquet.read(columns=[name for name in wanted if name in present])
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno == errno.ENOENT or "not found" in str(error).lower():
                raise FileNotFoundError(file.path) from error
            raise TableError(f"{self.store.uri}: {file.path} cannot be read: {_cause(error)}") from error
        except pa.ArrowException as error:
            raise TableError(f"{self.store.uri}: {file.path} cannot be read: {_cause(error)}") from error
        if kept is not None:  # a vector may end before the file: what it does not speak of is kept
            table = pa.concat_tables([table.slice(0, len(kept)).filter(kept), table.slice(len(kept))])
        for name in self.partition_columns:
            if name in wanted and name not in table.column_names:
                value = file.partition_values.get(name)
                text = pa.array([value] * table.num_rows, pa.string())
                table = table.append_column(name, text.cast(self.schema.field(name).type))
        return plain(table)

    @cached_property
    def _filesystem(self) -> pafs.PyFileSystem:
        handler = DeltaStorageHandler.from_table(self._table._table, self.store.storage_options)
        return pafs.PyFileSystem(handler)

    def _read(self, path: str) -> bytes:
        try:
            with self._filesystem.open_input_file(path) as source:
                return bytes(source.read())
        except OSError as error:
            if isinstance(error, FileNotFoundError) or "not found" in str(error).lower():
                raise FileNotFoundError(path) from error
            raise


def plain(table: pa.Table) -> pa.Table:
    """The same table with ordinary string, binary and list types in place of views and large ones."""
    fields = [pa.field(field.name, _plain_type(field.type), field.nullable) for field in table.schema]
    return table.cast(pa.schema(fields))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type), field.nullable) for field in kind])
    return kind


def _commit_path(version: int) -> str:
    return f"_delta_log/{version:020d}.json"


def _bound(value: Any, *, above: bool = False) -> datetime | None:
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
    return _bound(least.get("start_time_unix_nano"))


def _parse_commit(version: int, content: bytes) -> Commit:
    added: list[DataFile] = []
    at: datetime | None = None
    for line in content.splitlines():
        if not line.strip():
            continue
        action: dict[str, Any] = orjson.loads(line)
        info = action.get("commitInfo")
        if info is not None:
            at = _moment(info.get("inCommitTimestamp") or info.get("timestamp"))
        add = action.get("add")
        if add is not None and add.get("dataChange", True):
            added.append(
                DataFile(
                    path=unquote(add["path"]),
                    size=add.get("size", 0),
                    modified=_moment(add.get("modificationTime")),
                    partition_values=add.get("partitionValues") or {},
                    earliest=_earliest(add),
                    has_deleted_rows=bool(add.get("deletionVector")),
                )
            )
    return Commit(version=version, at=at, added=tuple(added))


def _moment(value: int | datetime | None) -> datetime:
    """A time of the log (milliseconds since the epoch) as UTC; one that is absurd counts as the epoch."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return datetime.fromtimestamp((value or 0) / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _cause(error: BaseException) -> str:
    """The first line of a foreign error, without the library's frame around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
