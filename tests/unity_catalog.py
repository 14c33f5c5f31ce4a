"""A small stand-in for Unity Catalog's API: it knows tables by name and vends keys to the S3 API of `tests.s3`.

    with S3() as s3, UnityCatalog(s3, key_seconds=5) as catalog:
        catalog.root = "s3://bucket/root"
        ...  # environment=catalog.environment(); then look at catalog.vended

As the real one: a token is asked for, names and paths are those of API 2.1, a managed table gives no key to write,
and a vended key stops working when it ends. Source: docs.databricks.com/api/workspace/temporarytablecredentials.
"""

import asyncio
import threading
import time
from typing import Any
from uuid import uuid4

from aiohttp import web

from tests.s3 import REGION, S3

API = "/api/2.1/unity-catalog"
TOKEN = "dapi-token"


class UnityCatalog:
    """Serves in a thread of its own from `with` to its end. `vended` holds (what for, operation), oldest first."""

    def __init__(self, s3: S3, *, key_seconds: float = 3600) -> None:
        self.key_seconds = key_seconds
        self.root: str | None = None
        self.tables: dict[str, dict[str, Any]] = {}
        self.vended: list[tuple[str, str]] = []
        self._s3 = s3
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unity catalog", daemon=True)

    def __enter__(self) -> "UnityCatalog":
        self._thread.start()
        self._ready.wait(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """As a workspace's user has it; of the store only what is no key."""
        return {
            "DATABRICKS_HOST": f"http://127.0.0.1:{self._port}",
            "DATABRICKS_TOKEN": token,
            "AWS_ENDPOINT_URL": self._s3.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
        }

    def add(self, name: str, location: str, *, table_type: str = "EXTERNAL", **told: Any) -> None:
        """Enter a table that is at a place."""
        self.tables[name] = {
            "name": name.rpartition(".")[2],
            "table_id": str(uuid4()),
            "table_type": table_type,
            "data_source_format": "DELTA",
            "storage_location": location,
            "properties": {},
            **told,
        }

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(middlewares=[_guard])
        app.router.add_get(f"{API}/tables/{{name}}", self._table)
        app.router.add_post(f"{API}/tables", self._make_table)
        app.router.add_get(f"{API}/schemas/{{name}}", self._schema)
        app.router.add_post(f"{API}/temporary-table-credentials", self._table_key)
        app.router.add_post(f"{API}/temporary-path-credentials", self._path_key)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _table(self, request: web.Request) -> web.Response:
        known = self.tables.get(request.match_info["name"])
        return _refused(404, "TABLE_DOES_NOT_EXIST") if known is None else web.json_response(known)

    async def _make_table(self, request: web.Request) -> web.Response:
        told = await request.json()
        if told["table_type"] != "EXTERNAL" or not all(column["type_json"] for column in told["columns"]):
            return _refused(400, "INVALID_PARAMETER_VALUE")
        name = f"{told['catalog_name']}.{told['schema_name']}.{told['name']}"
        self.add(name, told["storage_location"], columns=told["columns"])
        return web.json_response(self.tables[name])

    async def _schema(self, request: web.Request) -> web.Response:
        return web.json_response({"full_name": request.match_info["name"], "storage_root": self.root})

    async def _table_key(self, request: web.Request) -> web.Response:
        told = await request.json()
        name, known = next(item for item in self.tables.items() if item[1]["table_id"] == told["table_id"])
        if told["operation"] == "READ_WRITE" and known["table_type"] == "MANAGED":
            return _refused(403, "PERMISSION_DENIED", "EXTERNAL_WRITE_NOT_ALLOWED_FOR_TABLE")
        return await self._vend(name, told["operation"], known["storage_location"])

    async def _path_key(self, request: web.Request) -> web.Response:
        told = await request.json()
        return await self._vend(told["url"], told["operation"], told["url"])

    async def _vend(self, what: str, operation: str, location: str) -> web.Response:
        self.vended.append((what, operation))
        key, under = f"vended-{uuid4().hex}", location.removeprefix("s3://")
        reads_only = [""] if operation == "READ" else []
        seconds = self.key_seconds
        await asyncio.to_thread(self._s3.add_key, key, seconds=seconds, under=under, reads_only=reads_only)
        return web.json_response(
            {
                "aws_temp_credentials": {
                    "access_key_id": key,
                    "secret_access_key": "secret",
                    "session_token": "session",
                },
                "expiration_time": int((time.time() + seconds) * 1000),
                "url": location,
            }
        )


@web.middleware
async def _guard(request: web.Request, handler: Any) -> Any:
    if request.path.startswith("/.well-known/"):
        return _refused(404, "NOT_FOUND")
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return _refused(401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type")
    return await handler(request)


def _refused(status: int, code: str, message: str = "") -> web.Response:
    return web.json_response({"error_code": code, "message": message or code}, status=status)
