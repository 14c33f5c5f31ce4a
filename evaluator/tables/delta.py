"""Where a Delta table lies: made, looked for, and opened as a snapshot.

This file and `snapshot` alone import the Delta library.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import (
    DeltaTable,
    Schema,
)
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler

from evaluator.errors import TableError
from evaluator.tables.actions import commit_path
from evaluator.tables.causes import cause
from evaluator.tables.location import Location, is_remote, with_patience
from evaluator.tables.snapshot import Snapshot

_UNREADABLE = {"typeWidening", "typeWidening-preview"}
"""Reader features with which the library opens a table and then cannot read it (deltalake 1.6.6)."""

_WRITE_PROBE = "_delta_log/.writable"
"""Empty, hidden, and before every commit in the order of names: no reader of the log lists it."""


class DeltaStore:
    """Where a table lies, and the key to it. Cheap to make; every `open` reads the log."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = with_patience(uri, storage_options or {})
        self._fixed = Location(uri=uri, storage_options=self.storage_options)
        self._reached: tuple[Location, pafs.PyFileSystem] | None = None
        self._written = False

    def location(self) -> Location:
        """Where the table lies now, and a key that is good for a while. Raises TableError."""
        return self._fixed

    def renew(self) -> None:
        """Called when something failed: what was known of the table's place may be wrong by now."""

    def exists(self) -> bool:
        """Whether there is a Delta table. Raises TableError when the store cannot be asked."""
        at = self.location()
        try:
            return DeltaTable.is_deltatable(at.uri, dict(at.storage_options))
        except (DeltaError, OSError) as error:
            raise self.failure("cannot be reached", error) from error

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
        at = self.location()
        try:
            DeltaTable.create(
                at.uri,
                Schema.from_arrow(schema),
                mode="error",
                partition_by=list(partition_by),
                description=description,
                configuration={
                    "delta.checkpointInterval": checkpoint_interval(at.uri),
                    **(configuration or {}),
                },
                storage_options=dict(at.storage_options),
            )
        except (DeltaError, OSError) as error:
            if self.exists():  # another process was first
                return False
            raise self.failure("cannot be created", error) from error
        return True

    def open(self) -> Snapshot:
        """The newest snapshot. Raises TableError: missing, foreign, unreadable, or out of reach."""
        at = self.location()
        return Snapshot(self, self.load(at), at)

    def load(self, at: Location, version: int | None = None) -> DeltaTable:
        """The library's own object, as of a version or the newest. Raises TableError."""
        try:
            table = DeltaTable(at.uri, version=version, storage_options=dict(at.storage_options))
            unreadable = _UNREADABLE & set(table.protocol().reader_features or [])
        except TableNotFoundError as error:
            self.renew()
            raise TableError(
                f"{self.uri}: there is no Delta table here (`evaluator init` makes the tables; "
                "`tables`, `spans` and `prefix` in evaluator.yaml say where they are)"
            ) from error
        except (DeltaError, OSError, ValueError) as error:
            told = str(error)
            if "catalogManaged" in told or "max_catalog_version" in told:
                raise catalog_managed(self.uri) from error
            if "feature" in told.partition("\n")[0].lower():
                raise self.foreign(cause(error)) from error
            raise self.failure("cannot be opened", error) from error
        if unreadable:
            raise self.foreign(", ".join(sorted(unreadable)))
        return table

    def has_commit_after(self, version: int) -> bool:
        """Whether the log goes on after a version: one request to the store, nothing is opened. Raises TableError."""
        return self.has_commit(version + 1)

    def has_commit(self, version: int) -> bool:
        """Whether the log has a version's commit: one request. One that had been there and is gone tells of a log
        that was cleaned up or cut off, or of a table made anew. Raises TableError."""
        try:
            with self.filesystem(self.location()).open_input_file(commit_path(version)):
                return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failure("the log cannot be read", error) from error

    def check_writable(self) -> None:
        """Raises TableError when nothing can be written here: to be asked before work is paid for.

        Asks once; what was writable stays so for this object.
        """
        if self._written:
            return
        at = self.location()
        if at.read_only is not None:
            raise TableError(f"{self.uri}: cannot be written: {at.read_only}")
        if is_remote(at.uri):
            try:
                with self.filesystem(at).open_output_stream(_WRITE_PROBE):
                    pass
            except OSError as error:
                raise self.failure("cannot be written", error) from error
        elif not os.access(os.path.join(at.uri.removeprefix("file://"), "_delta_log"), os.W_OK):
            raise TableError(f"{self.uri}: cannot be written: no permission to write there")
        self._written = True

    def filesystem(self, at: Location) -> pafs.PyFileSystem:
        """The table's folder through the library's own storage layer."""
        if self._reached is None or self._reached[0] is not at:
            self._reached = (at, pafs.PyFileSystem(DeltaStorageHandler(at.uri, dict(at.storage_options))))
        return self._reached[1]

    def failure(self, what: str, error: BaseException) -> TableError:
        """What is said of a store that failed; its table is looked up anew the next time."""
        self.renew()
        return TableError(f"{self.uri}: {what}: {cause(error)}")

    def foreign(self, feature: str) -> TableError:
        """What is said of a table with a feature that the library does not know."""
        return TableError(
            f"{self.uri}: the table uses a feature that this Delta library cannot read: {feature} "
            "(ALTER TABLE … DROP FEATURE takes it off, or write the spans to a table without it)"
        )


def checkpoint_interval(uri: str) -> str:
    """After how many commits the state is written anew. Opening reads each commit since twice (deltalake 1.6.6), which
    on an object store is two requests: a tick with news took 1,447 of them at 18 commits, so few are left there."""
    return "10" if is_remote(uri) else "100"


def delta_fields(schema: pa.Schema) -> list[dict[str, Any]]:
    """A schema's columns as the log writes them: name, type, nullable, metadata."""
    fields: list[dict[str, Any]] = orjson.loads(Schema.from_arrow(schema).to_json())["fields"]
    return fields


def catalog_managed(uri: str) -> TableError:
    """What is said of a table whose commits only its catalog knows."""
    return TableError(
        f"{uri}: the table is catalog-managed, which this Delta library cannot open; write the spans to an external "
        "table, or drop the feature with ALTER TABLE … DROP FEATURE catalogManaged"
    )
