"""The tee: what was accepted reaches MLflow too, whatever MLflow does meanwhile."""

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from evaluator.collector.destinations import authorization, destination
from evaluator.collector.server import Collector
from evaluator.collector.signals import SIGNALS
from evaluator.collector.tee import Tee
from evaluator.config import Config
from evaluator.errors import ConfigurationError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.provision import provision

GRACE = timedelta(seconds=20)
SOON = timedelta(milliseconds=10)
TRACE = bytes.fromhex("ab" * 16)
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def a_body(*names: str, trace_id: bytes = TRACE, parent: bytes = b"") -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for name in names:
        span_id = b"rootroot" if not parent else os.urandom(8)
        span = spans.add(trace_id=trace_id, span_id=span_id, parent_span_id=parent, name=name)
        span.start_time_unix_nano = time.time_ns()
        span.end_time_unix_nano = span.start_time_unix_nano + 10**6
        span.status.code = 1
    return request.SerializeToString()


class Endpoint:
    """A server that answers like MLflow's endpoints with the status it was told, and keeps what it took."""

    def __init__(self) -> None:
        self.status = 200
        self.poison = b"poison"
        self.asked: list[str | None] = []
        self.names: list[str] = []
        self.uri = ""

    async def traces(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append(request.headers.get("x-mlflow-experiment-id"))
        status = 500 if self.poison in body else self.status
        if status == 200:
            message = ExportTraceServiceRequest.FromString(body)
            self.names += [s.name for r in message.resource_spans for g in r.scope_spans for s in g.spans]
        return web.Response(status=status)

    async def experiment(self, request: web.Request) -> web.Response:
        return web.json_response({"error_code": "RESOURCE_DOES_NOT_EXIST"}, status=404)

    async def create(self, request: web.Request) -> web.Response:
        return web.json_response({"experiment_id": "7"})


@asynccontextmanager
async def an_endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    app = web.Application()
    app.router.add_post("/v1/traces", endpoint.traces)
    app.router.add_get("/api/2.0/mlflow/experiments/get-by-name", endpoint.experiment)
    app.router.add_post("/api/2.0/mlflow/experiments/create", endpoint.create)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint.uri = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield endpoint
    finally:
        await runner.cleanup()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- what is waited for lies in another process or on disk
            await asyncio.sleep(0.02)


def queued(folder: Path) -> int:
    return len(list(folder.glob("*.otlp")))


async def test_a_request_is_sent_on_with_the_id_of_the_experiment(tmp_path: Path) -> None:
    async with an_endpoint() as endpoint:
        tee = Tee(tmp_path, destination(endpoint.uri, "agent", {}))
        await tee.start()
        await tee.put(a_body("one"))
        await until(lambda: tee.counters.sent)
        await tee.stop(GRACE)

    assert (endpoint.names, endpoint.asked) == (["one"], ["7"])
    assert (queued(tmp_path), tee.counters.waiting_bytes) == (0, 0)


async def test_what_a_store_that_is_down_misses_is_sent_by_the_next_process(tmp_path: Path) -> None:
    async with an_endpoint() as endpoint:
        endpoint.status = 503
        tee = Tee(tmp_path, destination(endpoint.uri, "agent", {}))
        await tee.start()
        for name in ("one", "two", "three"):
            await tee.put(a_body(name))
        await tee.stop(GRACE)
        assert queued(tmp_path) == 3

        endpoint.status = 200
        later = Tee(tmp_path, destination(endpoint.uri, "agent", {}))
        await later.start()
        await later.stop(GRACE)

    assert endpoint.names == ["one", "two", "three"]
    assert later.counters.sent == 3


async def test_a_poisoned_trace_is_dropped_alone(tmp_path: Path) -> None:
    async with an_endpoint() as endpoint:
        tee = Tee(tmp_path, destination(endpoint.uri, "agent", {}), retry_after=SOON)
        endpoint.status = 503
        await tee.start()
        await tee.put(a_body("good", trace_id=b"a" * 16) + a_body("poison", trace_id=b"b" * 16))
        await tee.put(a_body("fine", trace_id=b"c" * 16))
        endpoint.status = 200
        await until(lambda: tee.counters.dropped)
        await tee.stop(GRACE)

    assert sorted(endpoint.names) == ["fine", "good"]
    assert (tee.counters.dropped, queued(tmp_path), tee.counters.waiting_bytes) == (1, 0, 0)


async def test_a_file_that_was_cut_is_dropped_alone(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000001-cut.otlp").write_bytes(a_body("cut")[:-3] + b"poison")
    async with an_endpoint() as endpoint:
        tee = Tee(tmp_path, destination(endpoint.uri, "agent", {}), retry_after=SOON)
        await tee.start()
        await tee.put(a_body("fine"))
        await until(lambda: tee.counters.dropped)
        await tee.stop(GRACE)

    assert endpoint.names == ["fine"]
    assert queued(tmp_path) == 0


async def test_a_full_queue_drops_the_new_and_says_so(tmp_path: Path) -> None:
    tee = Tee(tmp_path, destination("http://127.0.0.1:9", "agent", {}), max_bytes=200)
    await tee.start()
    await tee.put(a_body("kept"))
    await tee.put(a_body("x" * 200))
    await tee.stop(SOON)

    assert (tee.counters.dropped, queued(tmp_path)) == (1, 1)


async def test_a_queue_that_cannot_be_written_endangers_nothing(tmp_path: Path) -> None:
    tee = Tee(tmp_path / "tee", destination("http://127.0.0.1:9", "agent", {}))
    await tee.start()
    remove(tmp_path / "tee")
    await tee.put(a_body("lost"))
    await tee.stop(SOON)

    assert tee.counters.dropped == 1


def remove(folder: Path) -> None:
    folder.rmdir()


def test_where_a_tee_can_lead() -> None:
    for uri in ("databricks://profile", "databricks", "/folder/mlruns", "file:///folder"):
        with pytest.raises(ConfigurationError, match=r"collect\.tee"):
            destination(uri, "agent", {})

    assert authorization({"MLFLOW_TRACKING_TOKEN": "t"}) == {"Authorization": "Bearer t"}
    assert authorization({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}) == {
        "Authorization": "Basic dTpw"
    }


async def collected(folder: Path, tracking_uri: str, bodies: list[bytes]) -> Tee:
    """Send bodies one after the other through a collector with a tee; the tee, stopped."""
    config = Config(home=folder)
    provision(config)
    tee = Tee(folder / "tee", destination(tracking_uri, "agent", os.environ))
    collector = Collector({item.table: DeltaStore(config.table_uri(item.table)) for item in SIGNALS}, tee)
    await collector.start("127.0.0.1", 0, 0)
    async with aiohttp.ClientSession() as session:
        for number, body in enumerate(bodies, start=1):
            url = f"http://127.0.0.1:{collector.http_port}/v1/traces"
            async with session.post(url, data=body, headers=PROTOBUF) as response:
                assert response.status == 200
            async with asyncio.timeout(100):
                while tee.counters.sent < number:  # noqa: ASYNC110 -- a counter has no event
                    await asyncio.sleep(0.05)
    await collector.stop(GRACE)
    return tee


CHILDREN_FIRST = [
    a_body("first child", parent=b"rootroot"),
    a_body("second child", parent=b"rootroot"),
    a_body("root"),
]


async def test_children_first_and_the_root_later_become_one_trace_in_a_database(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    await collected(tmp_path, f"sqlite:///{database}", CHILDREN_FIRST)

    with closing(sqlite3.connect(database)) as connection:
        traces = connection.execute("SELECT request_id, status FROM trace_info").fetchall()
        spans = connection.execute(
            "SELECT trace_id, name FROM spans ORDER BY start_time_unix_nano"
        ).fetchall()
    assert traces == [(f"tr-{TRACE.hex()}", "OK")]
    assert {trace_id for trace_id, _ in spans} == {f"tr-{TRACE.hex()}"}
    assert {name for _, name in spans} == {"first child", "second child", "root"}


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real MLflow server: its URI and its database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = tmp_path / "server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{database}"],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield f"http://127.0.0.1:{port}", database
    os.killpg(process.pid, 15)
    process.wait(30)


@pytest.mark.slow
async def test_a_server_that_is_up_only_later_gets_whole_traces(
    tmp_path: Path, mlflow_server: tuple[str, Path]
) -> None:
    uri, database = mlflow_server

    tee = await collected(tmp_path, uri, CHILDREN_FIRST)

    assert tee.counters.dropped == 0
    with closing(sqlite3.connect(database)) as connection:
        traces = connection.execute("SELECT request_id, status FROM trace_info").fetchall()
        count = connection.execute("SELECT count(*) FROM spans").fetchone()
    assert (traces, count) == ([(f"tr-{TRACE.hex()}", "OK")], (3,))
