"""Tables in Unity Catalog: where they lie, and keys to them that end and are renewed.

The only file that imports the Databricks library, for its ways to sign in: a token, a service principal, a profile.
API: docs.databricks.com/api/workspace (tables, temporarytablecredentials, temporarypathcredentials, schemas), the
same as github.com/unitycatalog/unitycatalog serves.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore, catalog_managed, delta_fields
from evaluator.tables.location import Location, fresh_until

if TYPE_CHECKING:
    from databricks.sdk.core import ApiClient

SCHEME = "uc://"
_API = "/api/2.1/unity-catalog"
_REQUEST_SECONDS, _RETRY_SECONDS = 30, 60
_OWN_KEYS = {
    "access_key_id", "secret_access_key", "session_token", "token",
    "azure_storage_account_key", "azure_storage_access_key", "azure_storage_sas_token", "azure_storage_token",
}  # fmt: skip
"""Storage options that a vended key takes the place of, whatever their prefix."""


class RefusedError(TableError):
    """The catalog does not let this user do this; the text is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the catalog tells of a table."""

    table_id: str
    type: str
    format: str
    storage_location: str
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A vended key as storage options; `ends` in seconds of the epoch, None: the catalog does not say."""

    storage_options: Mapping[str, str]
    ends: float | None


class Catalog:
    """Unity Catalog's REST API, as far as tables go. Every method raises TableError."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._client: ApiClient | None = None

    def table(self, name: str) -> Entry | None:
        """A table by its full name, None when there is none."""
        told = self._ask("GET", f"/tables/{name}")
        if told is None:
            return None
        return Entry(
            table_id=told.get("table_id") or "",
            type=told.get("table_type") or "",
            format=told.get("data_source_format") or "",
            storage_location=told.get("storage_location") or "",
            properties=told.get("properties") or {},
        )

    def key(self, table_id: str, operation: str) -> Key:
        """A key to a table's files; `operation` READ or READ_WRITE. Raises RefusedError."""
        asked = {"table_id": table_id, "operation": operation}
        return _key(self._ask("POST", "/temporary-table-credentials", asked))

    def path_key(self, url: str) -> Key:
        """A key with which an external table can be made at a place. Raises RefusedError."""
        asked = {"url": url, "operation": "PATH_CREATE_TABLE"}
        return _key(self._ask("POST", "/temporary-path-credentials", asked))

    def root(self, schema: str) -> str | None:
        """Where a schema, else its catalog, keeps its tables, as far as they say."""
        for path in (f"/schemas/{schema}", f"/catalogs/{schema.partition('.')[0]}"):
            told = self._ask("GET", path)
            if told and told.get("storage_root"):
                return str(told["storage_root"]).rstrip("/")
        return None

    def register(self, name: str, location: str, columns: Sequence[Mapping[str, Any]]) -> None:
        """Enter an external Delta table that is at a place."""
        catalog, schema, table = name.split(".")
        self._ask(
            "POST",
            "/tables",
            {
                "name": table,
                "catalog_name": catalog,
                "schema_name": schema,
                "table_type": "EXTERNAL",
                "data_source_format": "DELTA",
                "storage_location": location,
                "columns": columns,
            },
        )

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The answer as an object, None for 404."""
        from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied, Unauthenticated

        try:
            client = self._client = self._client or _client(self._environment)
            told = client.do(method, f"{_API}{path}", body=dict(body) if body else None)
        except NotFound:
            return None
        except Unauthenticated as error:
            raise TableError(f"Unity Catalog does not accept the token: {_line(error)}") from error
        except (PermissionDenied, BadRequest) as error:
            raise RefusedError(_line(error)) from error
        except (
            OSError,
            ValueError,
        ) as error:  # the library's own errors are OSErrors, its settings' ValueErrors
            raise TableError(f"Unity Catalog cannot be asked: {_line(error)}") from error
        return told if isinstance(told, dict) else {}


class CatalogStore(DeltaStore):
    """A table that Unity Catalog knows by name. Its key is renewed before it ends."""

    def __init__(
        self, uri: str, catalog: Catalog, storage_options: Mapping[str, str] | None = None, *, writes: bool
    ) -> None:
        """`writes`: whether a key to write is asked for."""
        super().__init__(uri, storage_options)
        self._name = uri.removeprefix(SCHEME)
        self._catalog = catalog
        self._writes = writes
        self._known: Location | None = None

    def location(self) -> Location:
        if self._known is None or not self._known.fresh:
            try:
                self._known = self._resolve()
            except RefusedError as error:
                raise TableError(
                    f"{self.uri}: Unity Catalog gives no key: {error} (to read it takes SELECT on the table, EXTERNAL USE "
                    "SCHEMA on its schema, and external data access enabled for the metastore)"
                ) from error
            except TableError as error:
                raise TableError(str(error) if self.uri in str(error) else f"{self.uri}: {error}") from error
        return self._known

    def renew(self) -> None:
        self._known = None

    def exists(self) -> bool:
        try:
            return self._catalog.table(self._name) is not None
        except TableError as error:
            raise TableError(f"{self.uri}: {error}") from error

    def create(
        self,
        schema: pa.Schema,
        *,
        partition_by: Sequence[str] = (),
        description: str = "",
        configuration: Mapping[str, str] | None = None,
    ) -> bool:
        """An external table under the root of the schema or the catalog, made there and then entered.

        Raises TableError with the SQL that makes it where this cannot be done from here.
        """
        if self.exists():
            return False
        fields = delta_fields(schema)
        by_hand = f"let somebody who may run it make it, where an external location is: {_sql(self._name, fields, partition_by)}"
        try:
            schema_name, _, table = self._name.rpartition(".")
            root = self._catalog.root(schema_name)
            if root is None:
                raise TableError(f"{self.uri}: the catalog names no storage root to make it at; {by_hand}")
            place = f"{root}/evaluator/{schema_name}/{table}"
            options = self._with(self._catalog.path_key(place))
            DeltaStore(place, options).create(
                schema, partition_by=partition_by, description=description, configuration=configuration
            )
            self._catalog.register(self._name, place, _columns(fields, partition_by))
        except RefusedError as error:
            raise TableError(f"{self.uri}: Unity Catalog refuses to make it: {error}; {by_hand}") from error
        return True

    def _resolve(self) -> Location:
        entry = self._catalog.table(self._name)
        if entry is None:
            raise TableError(
                f"{self.uri}: there is no such table in the catalog (`evaluator init` makes the tables; MLflow makes a "
                "schema's trace tables when an experiment is set to it)"
            )
        if any("catalogManaged" in name or "catalogOwned" in name for name in entry.properties):
            raise catalog_managed(self.uri)
        if entry.format != "DELTA" or not entry.storage_location:
            raise TableError(f"{self.uri}: is no Delta table but {entry.format or entry.type}")
        read_only = None
        if self._writes:
            try:
                key = self._catalog.key(entry.table_id, "READ_WRITE")
            except RefusedError as error:
                read_only = (
                    f"Unity Catalog gives no key to write it, a table of the type {entry.type}: {error} (what a worker "
                    "writes has to be external, with MODIFY on it; into managed annotations results come through MLflow: "
                    "`publish: [mlflow]`)"
                )
        if not self._writes or read_only is not None:
            key = self._catalog.key(entry.table_id, "READ")
        return Location(
            uri=entry.storage_location,
            storage_options=self._with(key),
            fresh_until=None if key.ends is None else fresh_until(key.ends),
            read_only=read_only,
        )

    def _with(self, key: Key) -> dict[str, str]:
        kept = self.storage_options
        if key.storage_options:
            kept = {
                name: value
                for name, value in kept.items()
                if name.lower().removeprefix("aws_") not in _OWN_KEYS
            }
        return {**kept, **key.storage_options}


def _client(environment: Mapping[str, str]) -> "ApiClient":
    """Signed in as Databricks' own tools do; or to an open Unity Catalog at UNITY_CATALOG_URI."""
    from databricks.sdk.core import ApiClient, Config

    logging.getLogger("databricks.sdk").setLevel(logging.ERROR)  # it warns of servers that are not Databricks
    settings: dict[str, Any] = {
        "product": "agent-evaluator",
        "http_timeout_seconds": _REQUEST_SECONDS,
        "retry_timeout_seconds": _RETRY_SECONDS,
    }
    if environment.get("UNITY_CATALOG_URI"):
        token = environment.get("UNITY_CATALOG_TOKEN") or "none"
        settings |= {"host": environment["UNITY_CATALOG_URI"], "token": token, "auth_type": "pat"}
    return ApiClient(Config(**settings))


def _key(told: Mapping[str, Any] | None) -> Key:
    """For Google the library takes no vended token (object_store 0.13): the environment's own key has to do."""
    told = told or {}
    options: dict[str, str] = {}
    if aws := told.get("aws_temp_credentials"):
        names = ("access_key_id", "secret_access_key", "session_token")
        options = {name: aws[name] for name in names if aws.get(name)}
    elif sas := told.get("azure_user_delegation_sas"):
        options = {"azure_storage_sas_token": sas["sas_token"]}
    elif aad := told.get("azure_aad"):
        options = {"azure_storage_token": aad["aad_token"]}
    ends = told.get("expiration_time")
    return Key(storage_options=options, ends=ends / 1000 if ends else None)


def _columns(fields: Sequence[Mapping[str, Any]], partition_by: Sequence[str]) -> list[dict[str, Any]]:
    """A table's columns as the catalog enters them."""
    import orjson

    names = {"long": "LONG", "integer": "INT"}
    return [
        {
            "name": field["name"],
            "type_text": _sql_type(field["type"]).lower(),
            "type_name": names.get(str(field["type"]), str(field["type"]).upper())
            if isinstance(field["type"], str)
            else field["type"]["type"].upper(),
            "type_json": orjson.dumps(dict(field)).decode(),
            "position": position,
            "nullable": field["nullable"],
            **(
                {"partition_index": partition_by.index(field["name"])}
                if field["name"] in partition_by
                else {}
            ),
        }
        for position, field in enumerate(fields)
    ]


def _sql(name: str, fields: Sequence[Mapping[str, Any]], partition_by: Sequence[str]) -> str:
    """The statement that makes a table as this library can append to it."""
    columns = ", ".join(f"`{field['name']}` {_sql_type(field['type'])}" for field in fields)
    quoted = ".".join(f"`{part}`" for part in name.split("."))
    partitions = (
        f" PARTITIONED BY ({', '.join(f'`{column}`' for column in partition_by)})" if partition_by else ""
    )
    return (
        f"CREATE TABLE {quoted} ({columns}) USING DELTA{partitions} LOCATION '<your external location>/{name}' "
        "TBLPROPERTIES ('delta.enableDeletionVectors' = 'false', 'delta.enableRowTracking' = 'false', "
        "'delta.checkpointInterval' = '10')"
    )


def _sql_type(kind: Any) -> str:
    """Delta's type in SQL."""
    match kind:
        case {"type": "array", "elementType": inner}:
            return f"ARRAY<{_sql_type(inner)}>"
        case {"type": "map", "keyType": key, "valueType": value}:
            return f"MAP<{_sql_type(key)}, {_sql_type(value)}>"
        case {"type": "struct", "fields": fields}:
            inner = ", ".join(f"`{field['name']}`: {_sql_type(field['type'])}" for field in fields)
            return f"STRUCT<{inner}>"
        case _:
            return {"long": "BIGINT", "integer": "INT", "short": "SMALLINT", "byte": "TINYINT"}.get(
                kind, str(kind).upper()
            )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
