"""Where the tee leads to: an MLflow server over OTLP/HTTP, or another MLflow store through a child process."""

import asyncio
import base64
import contextlib
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from evaluator.collector.tee import Destination, RejectedError, UnreachableError
from evaluator.errors import ConfigurationError

TIMEOUT = timedelta(minutes=2)
"""For one batch; the first one of a child waits for MLflow's import and for the store's migrations too."""

_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Without these MLflow and what it imports try the network, for half a minute where there is none."""

_LATER = {401, 403, 404, 408, 429, 502, 503, 504}
"""Statuses that are not about the batch: who asks, where, or when. Another refusal may be the batch's fault."""


def destination(tracking_uri: str, experiment: str, environment: Mapping[str, str]) -> Destination:
    """The destination for a tracking URI. Raises ConfigurationError for one that a tee cannot lead to."""
    if tracking_uri.startswith(("http://", "https://")):
        return MlflowServer(tracking_uri, experiment, authorization(environment))
    if tracking_uri.startswith(("databricks", "uc:")):
        raise ConfigurationError(
            f"collect.tee: mlflow cannot send to {tracking_uri}: a Databricks workspace reads its traces from Unity "
            "Catalog tables (leave `tee` out, or let mlflow.tracking_uri name an MLflow server)"
        )
    if urlsplit(tracking_uri).scheme in ("", "file"):
        raise ConfigurationError(
            f"collect.tee: mlflow cannot send to {tracking_uri}: MLflow's store of files takes no spans "
            "(let mlflow.tracking_uri name a server or a database, such as sqlite:///mlflow.db)"
        )
    return MlflowChild(tracking_uri, experiment, environment)


def authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """The header that MLflow's own clients make of MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD."""
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := environment.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}


class MlflowServer:
    """An MLflow server: its OTLP endpoint, and the experiment by name over its REST API."""

    def __init__(self, uri: str, experiment: str, headers: Mapping[str, str]) -> None:
        self._uri = uri.rstrip("/")
        self._experiment = experiment
        self._headers = dict(headers)
        self._session: aiohttp.ClientSession | None = None
        self._experiment_id: str | None = None

    async def send(self, body: bytes) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT.total_seconds())
            )
        try:
            await self._send(self._session, body)
        except (aiohttp.ClientError, TimeoutError, OSError, LookupError, TypeError, ValueError) as error:
            raise UnreachableError(f"the server: {type(error).__name__}") from error

    async def rest(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> None:
        if self._experiment_id is None:
            self._experiment_id = await self._find_experiment(session)
        headers = {
            "Content-Type": "application/x-protobuf",
            "x-mlflow-experiment-id": self._experiment_id,
        }
        async with session.post(f"{self._uri}/v1/traces", data=body, headers=headers) as response:
            if response.ok:
                return
            if response.status == 404:  # perhaps the experiment was deleted
                self._experiment_id = None
            kind = UnreachableError if response.status in _LATER else RejectedError
            raise kind(f"/v1/traces answered {response.status}")

    async def _find_experiment(self, session: aiohttp.ClientSession) -> str:
        api = f"{self._uri}/api/2.0/mlflow/experiments"
        asked = {"experiment_name": self._experiment}
        async with session.get(f"{api}/get-by-name", params=asked) as response:
            if response.ok:
                return str((await response.json())["experiment"]["experiment_id"])
            if response.status != 404:
                raise UnreachableError(f"experiments/get-by-name answered {response.status}")
        async with session.post(f"{api}/create", json={"name": self._experiment}) as response:
            if not response.ok:
                raise UnreachableError(f"experiments/create answered {response.status}")
            return str((await response.json())["experiment_id"])


class MlflowChild:
    """A store that has no server in front of it (SQLite, a database): a child process imports MLflow and writes.

    The child is started by the first batch and let go when there is nothing to send: it holds 100 MB or more.
    """

    def __init__(self, uri: str, experiment: str, environment: Mapping[str, str]) -> None:
        self._uri = uri
        self._experiment = experiment
        self._environment = {**_QUIET, **environment}
        self._child: asyncio.subprocess.Process | None = None

    async def send(self, body: bytes) -> None:
        try:
            async with asyncio.timeout(TIMEOUT.total_seconds()):
                reply = await self._ask(body)
        except BaseException as error:
            # What the child still has to say would be taken for the answer to the next batch.
            await self._kill()
            if isinstance(error, TimeoutError | OSError | EOFError):
                raise UnreachableError(
                    f"the process that writes to MLflow: {type(error).__name__}"
                ) from error
            raise
        match reply["state"]:
            case "taken":
                return
            case "down":
                raise UnreachableError(f"MLflow's store: {reply['cause']}")
            case _:
                raise RejectedError(f"MLflow's store: {reply['cause']}")

    async def rest(self) -> None:
        child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        child.stdin.close()
        try:
            await asyncio.wait_for(child.wait(), 10)
        except TimeoutError:
            self._child = child
            await self._kill()

    async def _ask(self, body: bytes) -> dict[str, Any]:
        order = b""
        if self._child is None or self._child.returncode is not None:
            # Not as an argument: a database's URI holds its password, and arguments are everyone's to see.
            order = _framed(orjson.dumps({"tracking_uri": self._uri, "experiment": self._experiment}))
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "evaluator.collector.tee_child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C in the terminal is the collector's to handle
            )
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise EOFError
        child.stdin.write(order + _framed(body))
        await child.stdin.drain()
        line = await child.stdout.readline()
        if not line:
            raise EOFError
        reply: dict[str, Any] = orjson.loads(line)
        return reply

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(8, "big") + content
