"""A Delta table as of one version: appended to with transactions, read by commit, by file or by query."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, QueryBuilder, Transaction
from deltalake import write_deltalake as _append
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler

from evaluator.errors import TableError
from evaluator.tables.actions import Commit, DataFile, bound, commit_path, moment_of, parse_commit
from evaluator.tables.ahead import read_ahead
from evaluator.tables.causes import cause, lacks_permission
from evaluator.tables.location import Location, is_remote
from evaluator.tables.plain import plain

if TYPE_CHECKING:
    from evaluator.tables.delta import DeltaStore

COMMIT_RETRIES = 100
"""With 8 writers the library's default of 15 failed 9 of 200 appends; 100 lost none (deltalake 1.6.6)."""

_HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)

LOG_ENTRY = 1024 * 1024
"""A commit is asked for as if it were so long: one request instead of two, as the store gives what there is."""

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


class Snapshot:
    """A table as of one version. Appending goes through this object, so that its transactions are guarded."""

    def __init__(self, store: DeltaStore, table: DeltaTable, at: Location | None = None) -> None:
        self.store = store
        self._opened = table
        self._at = at or store.location()
        self._renewing = threading.Lock()
        self.version: int = table.version()

    @property
    def _table(self) -> DeltaTable:
        self._renew()
        return self._opened

    @property
    def _filesystem(self) -> pafs.PyFileSystem:
        self._renew()
        return self.store.filesystem(self._at)

    def _file(self, path: str, size: int) -> pa.NativeFile:
        """A file whose size is known, so that the store is asked for its content alone.

        Where the size is not known, the library asks for it first, and holds the interpreter until the store answers
        (deltalake 1.6.6).
        """
        table, options = self._table, dict(self._at.storage_options)
        handler = DeltaStorageHandler.from_table(table._table, options, {path: size} if size else None)
        return pafs.PyFileSystem(handler).open_input_file(path)

    def _renew(self) -> None:
        """Open the same version anew when the key is about to end: the library does not renew keys."""
        with self._renewing:
            if self._at.fresh:
                return
            at = self.store.location()
            if at.uri != self._at.uri:
                raise TableError(
                    f"{self.store.uri}: the table was made anew meanwhile (the next opening finds it)"
                )
            self._opened, self._at = self.store.load(at, self.version), at

    @cached_property
    def table_id(self) -> str:
        return str(self._opened.metadata().id)

    @cached_property
    def description(self) -> str:
        return self._opened.metadata().description or ""

    @cached_property
    def configuration(self) -> dict[str, str]:
        """The table's properties."""
        return dict(self._opened.metadata().configuration)

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema(self._opened.schema().to_arrow())

    def empty(self) -> pa.Table:
        """A table of no rows with this one's columns."""
        return plain(self.schema.empty_table())

    @cached_property
    def partition_columns(self) -> list[str]:
        return list(self._opened.metadata().partition_columns)

    @cached_property
    def raw_readable(self) -> bool:
        """Whether data files can be read one by one: no column mapping, no feature that is unknown here."""
        features = set(self._opened.protocol().reader_features or [])
        mapping = self.configuration.get("delta.columnMapping.mode", "none")
        return features <= _RAW_READABLE and mapping == "none"

    @cached_property
    def _kept_rows(self) -> Mapping[str, pa.Array]:
        """Which rows are not deleted, of the files of this snapshot that have a deletion vector, by path."""
        if "deletionVectors" not in (self._opened.protocol().reader_features or []):
            return {}
        try:
            vectors = pa.table(self._table.deletion_vectors().read_all())
        except Exception as error:  # the engine raises bare Exception
            raise TableError(
                f"{self.store.uri}: its deletion vectors cannot be read: {cause(error)}"
            ) from error
        root = unquote(self._table.table_uri).rstrip("/")
        kept = {}
        for uri, mask in zip(vectors["filepath"], vectors["selection_vector"], strict=True):
            path = unquote(uri.as_py()).removeprefix("file://").removeprefix(root.removeprefix("file://"))
            kept[path.lstrip("/")] = mask.values
        return kept

    def transaction(self, app_id: str) -> int | None:
        """The version that an application transaction stands at, None when it never was set. Raises TableError."""
        try:
            return self._table.transaction_version(app_id)
        except (DeltaError, OSError) as error:
            # It is read from the log, which may have been cleaned up meanwhile.
            raise self.store.failure("cannot be read", error) from error

    def append(self, data: pa.Table, transactions: Mapping[str, int] | None = None) -> int:
        """Append rows and set transactions in one commit; the new version. Columns that the table lacks are added.

        Raises CommitConflict when another commit set one of the transactions since this snapshot was
        opened, or when nobody can say whether the commit was made: open again and look. Raises TableError
        when the table cannot be written.
        """
        properties = _properties(transactions)
        with self._committing("appended to"):
            if data.num_rows:
                _append(
                    self._table,
                    data,
                    mode="append",
                    schema_mode="merge" if set(data.column_names) - set(self.schema.names) else None,
                    commit_properties=properties,
                    post_commithook_properties=_HOOKS,
                )
            else:
                self._table.create_write_transaction(
                    [],
                    mode="append",
                    schema=self._table.schema(),
                    commit_properties=properties,
                    post_commithook_properties=_HOOKS,
                )
                self._table.update_incremental()
        return self.version

    def replace(self, where: str, data: pa.Table, transactions: Mapping[str, int] | None = None) -> int:
        """Put rows (or none) in the place of those that satisfy a condition, and set transactions, in one commit.

        The new rows have to satisfy the condition too. Returns the new version; raises what `append` raises, and
        CommitConflict also when rows were added, or files put together, since this snapshot was opened.
        """
        with self._committing("changed"):
            _append(
                self._table,
                data,
                mode="overwrite",
                predicate=where,
                commit_properties=_properties(transactions),
                post_commithook_properties=_HOOKS,
            )
        return self.version

    @contextmanager
    def _committing(self, what: str) -> Iterator[None]:
        """Around a commit: this snapshot is then as of it. Tells a conflict from a table that takes no commit."""
        if self._at.read_only is not None:
            raise TableError(f"{self.store.uri}: cannot be {what}: {self._at.read_only}")
        try:
            yield
        except (DeltaError, OSError, ValueError) as error:
            # A reply that got lost looks like a failure, too: whoever opens the table again sees what was made.
            if lacks_permission(error) or self.store.open().version == self.version:
                raise self.store.failure(f"cannot be {what}", error) from error
            raise CommitConflict(cause(error)) from error
        self.version = self._table.version()
        self.__dict__.pop("schema", None)
        self.__dict__.pop("configuration", None)

    # --- what keeps a table fast and small; none of it changes what the table holds

    def compact(self) -> tuple[int, int]:
        """Put small files together: how many became how many. Raises CommitConflict when others removed some."""
        with self._committing("compacted"):
            told = self._table.optimize.compact(
                commit_properties=_properties(None), post_commithook_properties=_HOOKS
            )
        return int(told["numFilesRemoved"]), int(told["numFilesAdded"])

    def checkpoint(self) -> None:
        """Write the state of the log into one file, from which the table is opened."""
        with self._committing("given a checkpoint"):
            self._table.create_checkpoint()

    def clean_log(self) -> None:
        """Remove what of the log is older than the table keeps it and stands in a checkpoint."""
        with self._committing("cleaned up"):
            self._table.cleanup_metadata()

    def set_properties(self, properties: Mapping[str, str]) -> None:
        with self._committing("changed"):
            self._table.alter.set_table_properties(
                dict(properties), commit_properties=_properties(None), post_commithook_properties=_HOOKS
            )

    def vacuum(self, *, keep: timedelta, unknown: bool, dry_run: bool) -> list[str]:
        """Delete the files that were removed from the table longer ago than `keep`; their paths.

        `unknown`: also those that the log never named, which includes what others are writing just now: only
        with a `keep` that outlasts any write.
        """
        with self._committing("vacuumed"):
            return self._table.vacuum(
                retention_hours=int(keep / timedelta(hours=1)),
                dry_run=dry_run,
                enforce_retention_duration=False,
                full=unknown,
                commit_properties=_properties(None),
                post_commithook_properties=_HOOKS,
            )

    def strays(self) -> set[str]:
        """The files in the table's folder that its log does not name: what writers that were overtaken or killed left,
        and what others are writing just now."""
        named = self.vacuum(keep=timedelta(0), unknown=False, dry_run=True)
        return set(self.vacuum(keep=timedelta(0), unknown=True, dry_run=True)) - set(named)

    def delete_strays(self, paths: Iterable[str]) -> None:
        """Delete such of some files as the log does not name by now either."""
        for path in self.strays().intersection(paths):
            try:
                self._filesystem.delete_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.store.failure(f"{path} cannot be deleted", error) from error

    def query(self, sql: str, keep: Callable[[pa.Table], pa.Table] | None = None) -> pa.Table:
        """Run a SELECT over the table, which is called `t` in it (DataFusion). Raises TableError.

        `keep`: what is kept of each portion of the answer, where it may be too large to be held whole.
        """
        try:
            reader = pa.RecordBatchReader.from_stream(QueryBuilder().register("t", self._table).execute(sql))
            if keep is None:
                return plain(reader.read_all())
            empty = plain(reader.schema.empty_table())
            return pa.concat_tables(
                [empty, *(keep(plain(pa.Table.from_batches([batch]))) for batch in reader)]
            )
        except Exception as error:  # the engine raises bare Exception
            if "Unsupported table features" in str(error):
                raise self.store.foreign(cause(error)) from error
            raise self.store.failure("cannot be read", error) from error

    def refresh(self) -> None:
        """Move this object to the newest version by reading only the commits since."""
        try:
            self._table.update_incremental()
        except (DeltaError, OSError) as error:
            raise self.store.failure("cannot be opened", error) from error
        self.version = self._table.version()

    def files(self, time_column: str) -> list[DataFile]:
        """The data files that make up this snapshot, with the bounds of a column of times (or nanoseconds). Raises
        TableError."""
        try:
            actions = pa.table(self._table.get_add_actions(flatten=True))
        except (DeltaError, OSError) as error:
            raise self.store.failure("cannot be read", error) from error
        partitions = [f"partition.{name}" for name in self.partition_columns]
        return [
            DataFile(
                path=unquote(row["path"]),
                size=row["size_bytes"],
                modified=moment_of(row["modification_time"]),
                partition_values={
                    name.removeprefix("partition."): None if row.get(name) is None else str(row[name])
                    for name in partitions
                },
                earliest=None
                if row.get(f"null_count.{time_column}")
                else bound(row.get(f"min.{time_column}")),
                latest=None
                if row.get(f"null_count.{time_column}")
                else bound(row.get(f"max.{time_column}"), above=True),
            )
            for row in actions.to_pylist()
        ]

    def has_commit(self, version: int) -> bool:
        """Whether the log has a version's commit: one request to the store."""
        return self.store.has_commit(version)

    def commit(self, version: int) -> Commit | None:
        """One commit of the log, None when it is no longer there (cleaned up)."""
        try:
            content = self._read(commit_path(version))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.store.failure("the log cannot be read", error) from error
        return parse_commit(version, content)

    def commits(self, versions: Sequence[int]) -> list[Commit | None]:
        """Some commits of the log, each as `commit` gives it."""
        if not is_remote(self._at.uri) or len(versions) == 1:
            return [self.commit(version) for version in versions]
        return list(read_ahead(self.commit, versions, lambda _: LOG_ENTRY))

    def read_files(self, files: Iterable[DataFile], columns: Iterable[str]) -> Iterator[pa.Table]:
        """Some data files in their order, each as `read_file` gives it, those of an object store read ahead."""
        read = partial(self.read_file, columns=tuple(columns))
        if is_remote(self._at.uri):
            yield from read_ahead(read, files, lambda file: file.size)
        else:
            yield from map(read, files)

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
            with self._file(file.path, file.size) as source:
                parquet = pq.ParquetFile(source)
                present = set(parquet.schema_arrow.names)
                table = parquet.read(columns=[name for name in wanted if name in present])
        except OSError as error:
            if _is_missing(error):
                raise FileNotFoundError(file.path) from error
            raise TableError(f"{self.store.uri}: {file.path} cannot be read: {cause(error)}") from error
        except pa.ArrowException as error:
            raise TableError(f"{self.store.uri}: {file.path} cannot be read: {cause(error)}") from error
        if kept is not None:  # a vector may end before the file: what it does not speak of is kept
            table = pa.concat_tables([table.slice(0, len(kept)).filter(kept), table.slice(len(kept))])
        for name in self.partition_columns:
            if name in wanted and name not in table.column_names:
                value = file.partition_values.get(name)
                text = pa.array([value] * table.num_rows, pa.string())
                table = table.append_column(name, text.cast(self.schema.field(name).type))
        return plain(table)

    def _read(self, path: str) -> bytes:
        try:
            with self._file(path, LOG_ENTRY) as source:
                content = bytes(source.read(LOG_ENTRY))
            if len(content) < LOG_ENTRY:
                return content
            with self._filesystem.open_input_file(path) as source:
                return bytes(source.read())
        except OSError as error:
            if _is_missing(error):
                raise FileNotFoundError(path) from error
            raise


def _is_missing(error: OSError) -> bool:
    return (
        error.errno == errno.ENOENT
        or isinstance(error, FileNotFoundError)
        or "not found" in str(error).lower()
    )


def _properties(transactions: Mapping[str, int] | None) -> CommitProperties:
    return CommitProperties(
        max_commit_retries=COMMIT_RETRIES,
        app_transactions=[Transaction(app_id, value) for app_id, value in (transactions or {}).items()],
    )


def quoted(text: str) -> str:
    """A text as it stands in a condition."""
    return "'" + text.replace("'", "''") + "'"
