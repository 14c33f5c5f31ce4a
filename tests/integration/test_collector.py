"""The collector with real clients: the OpenTelemetry SDK's exporters, and plain HTTP and gRPC."""

import asyncio
import gzip
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import orjson
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from evaluator.collector.server import Collector
from evaluator.collector.signals import SIGNALS, TRACES
from evaluator.config import Config
from evaluator.errors import EvaluatorError, TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.provision import provision
from evaluator.tables.schemas import SPANS

GRACE = timedelta(seconds=5)
JSON = {"Content-Type": "application/json"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def stores_in(folder: Path) -> dict[str, DeltaStore]:
    config = Config(home=folder, tables="tables")
    provision(config)
    return {item.table: DeltaStore(config.table_uri(item.table)) for item in SIGNALS}


@asynccontextmanager
async def a_collector(stores: dict[str, DeltaStore], **options: Any) -> AsyncIterator[Collector]:
    collector = Collector(stores, **options)
    await collector.start("127.0.0.1", 0, 0)
    try:
        yield collector
    finally:
        await collector.stop(GRACE)


def rows_in(stores: dict[str, DeltaStore], table: str = "otel_spans") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stores[table].open().query("SELECT * FROM t").to_pylist()
    return found


def a_request(count: int = 1, name: str = "chat", **members: Any) -> dict[str, Any]:
    spans = [
        {
            "traceId": os.urandom(16).hex(),
            "spanId": os.urandom(8).hex(),
            "name": name,
            "startTimeUnixNano": str(time.time_ns()),
            **members,
        }
        for _ in range(count)
    ]
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


def move(source: Path, target: Path) -> None:
    source.rename(target)


def is_there(path: Path) -> bool:
    return path.exists()


async def post(
    collector: Collector,
    body: bytes | dict[str, Any],
    headers: dict[str, str] | None = None,
    path: str = "/v1/traces",
) -> tuple[int, bytes, Any]:
    data = orjson.dumps(body) if isinstance(body, dict) else body
    url = f"http://127.0.0.1:{collector.http_port}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=data, headers=headers or JSON) as response,
    ):
        return response.status, await response.read(), response.headers


def export_spans(exporter: SpanExporter, names: list[str]) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "support"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for name in names:
        with provider.get_tracer("agent").start_as_current_span(name, attributes={"n": 1, "text": "äö"}):
            pass
    provider.shutdown()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_the_sdk_exports_traces_and_metrics_over_http(tmp_path: Path, compression: Compression) -> None:
    stores = stores_in(tmp_path)
    async with a_collector(stores) as collector:
        base = f"http://127.0.0.1:{collector.http_port}"
        exporter = HttpSpanExporter(endpoint=f"{base}/v1/traces", compression=compression)
        await asyncio.to_thread(export_spans, exporter, ["one", "two"])
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=f"{base}/v1/metrics", compression=compression), 1e6
        )
        meters = MeterProvider(metric_readers=[reader])
        meters.get_meter("agent").create_counter("calls").add(3)
        await asyncio.to_thread(meters.shutdown)

        assert collector.counters.signals["traces"].accepted == 2

    spans = rows_in(stores)
    assert {row["name"] for row in spans} == {"one", "two"}
    assert {(row["service_name"], row["attributes"]) for row in spans} == {("support", '{"n":1,"text":"äö"}')}
    assert rows_in(stores, "otel_metrics")[0]["sum"]["value"] == 3.0


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_the_sdk_exports_traces_over_grpc(tmp_path: Path, compression: grpc.Compression) -> None:
    stores = stores_in(tmp_path)
    async with a_collector(stores) as collector:
        exporter = GrpcSpanExporter(
            endpoint=f"127.0.0.1:{collector.grpc_port}", insecure=True, compression=compression
        )
        await asyncio.to_thread(export_spans, exporter, ["one"])

    assert [row["name"] for row in rows_in(stores)] == ["one"]


async def test_logs_and_metrics_are_taken_over_grpc_too(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    async with a_collector(stores) as collector:
        for item in SIGNALS[1:]:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{collector.grpc_port}") as channel:
                request = item.request()
                group = getattr(request, item.resources).add()
                record = getattr(getattr(group, item.scopes).add(), item.records).add()
                if item.name == "metrics":
                    record.gauge.data_points.add(as_int=1)
                await channel.unary_unary(f"/{item.service}/Export")(request.SerializeToString())

    assert len(rows_in(stores, "otel_logs")) == len(rows_in(stores, "otel_metrics")) == 1


async def test_a_bad_span_is_refused_by_partial_success_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    request = a_request(3)
    request["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["traceId"] = "00" * 16
    async with a_collector(stores) as collector:
        status, body, headers = await post(
            collector, request, {**JSON, "Content-Type": "application/json; charset=utf-8"}
        )

        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert orjson.loads(body)["partialSuccess"]["rejectedSpans"] == "1"
        assert collector.counters.signals["traces"].refused == 1
    assert len(rows_in(stores)) == 2


async def test_each_bad_request_gets_the_status_that_otlp_names(tmp_path: Path) -> None:
    async with a_collector(stores_in(tmp_path), max_request_bytes=10_000) as collector:
        large = orjson.dumps(a_request(name="x" * 20_000))
        gzipped = {**JSON, "Content-Encoding": "gzip"}
        answers = [
            await post(collector, b"{", JSON),
            await post(collector, b"abc", PROTOBUF),
            await post(collector, b"abc", gzipped),
            await post(collector, large, JSON),
            await post(collector, gzip.compress(large), gzipped),
            await post(collector, b"a", {"Content-Type": "text/plain"}),
            await post(collector, b"a", {**JSON, "Content-Encoding": "br"}),
            await post(collector, b"", JSON, "/v1/nothing"),
        ]

    assert [status for status, _, _ in answers] == [400, 400, 400, 413, 413, 415, 415, 404]
    assert orjson.loads(answers[0][1])["code"] == 3
    assert Status.FromString(answers[1][1]).code == 3
    assert answers[1][2]["Content-Type"] == "application/x-protobuf"
    assert not any("Retry-After" in headers for _, _, headers in answers)


async def test_a_body_of_unknown_length_is_bounded_too(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    async with a_collector(stores_in(tmp_path), max_request_bytes=10_000) as collector:
        url = f"http://127.0.0.1:{collector.http_port}/v1/traces"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=endless(), headers=JSON) as response,
        ):
            assert response.status == 413


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"abc", grpc.StatusCode.INVALID_ARGUMENT), (b"x" * 20_000, grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
async def test_each_bad_call_gets_the_code_that_otlp_names(
    tmp_path: Path, body: bytes, code: grpc.StatusCode
) -> None:
    async with (
        a_collector(stores_in(tmp_path), max_request_bytes=10_000) as collector,
        grpc.aio.insecure_channel(f"127.0.0.1:{collector.grpc_port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{TRACES.service}/Export")(body)

    assert caught.value.code() == code


async def test_requests_that_wait_together_are_one_commit(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    async with a_collector(stores) as collector:
        await asyncio.gather(*(post(collector, a_request(5)) for _ in range(40)))

        assert collector.counters.signals["traces"].commits < 20
    assert len(rows_in(stores)) == 200


async def test_two_collectors_write_to_the_same_tables(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    async with a_collector(stores) as one, a_collector(stores) as two:
        for _ in range(10):
            await asyncio.gather(post(one, a_request()), post(two, a_request()))

    assert len(rows_in(stores)) == 20


async def test_a_table_that_is_gone_gives_503_until_it_is_back(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    table, away = Path(stores["otel_spans"].uri), tmp_path / "away"
    async with a_collector(stores) as collector:
        assert (await post(collector, a_request(name="before")))[0] == 200
        move(table, away)
        status, body, headers = await post(collector, a_request(name="during"))

        assert status == 503
        assert int(headers["Retry-After"]) > 0
        assert str(tmp_path) not in body.decode()
        assert not is_there(table)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{collector.grpc_port}") as channel:
            request = TRACES.request()
            request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{TRACES.service}/Export")(request.SerializeToString())
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
            assert Status.FromString(details).details[0].TypeName() == "google.rpc.RetryInfo"

        move(away, table)
        assert (await post(collector, a_request(name="after")))[0] == 200
    assert {row["name"] for row in rows_in(stores)} == {"before", "after"}


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_the_sdks_own_retry_keeps_the_data_while_a_table_is_gone(
    tmp_path: Path, transport: str
) -> None:
    stores = stores_in(tmp_path)
    table, away = Path(stores["otel_spans"].uri), tmp_path / "away"
    async with a_collector(stores) as collector:
        exporter: SpanExporter = (
            HttpSpanExporter(endpoint=f"http://127.0.0.1:{collector.http_port}/v1/traces")
            if transport == "http"
            else GrpcSpanExporter(endpoint=f"127.0.0.1:{collector.grpc_port}", insecure=True)
        )
        move(table, away)
        exporting = asyncio.create_task(asyncio.to_thread(export_spans, exporter, ["kept"]))
        while not collector.counters.signals["traces"].failures:  # noqa: ASYNC110 -- a counter has no event
            await asyncio.sleep(0.05)
        move(away, table)
        await exporting

    assert [row["name"] for row in rows_in(stores)] == ["kept"]


async def test_a_missing_table_and_a_taken_port_are_told_at_the_start(tmp_path: Path) -> None:
    missing = {item.table: DeltaStore(str(tmp_path / item.table)) for item in SIGNALS}
    with pytest.raises(TableError, match="evaluator init"):
        await Collector(missing).start("127.0.0.1", 0, 0)

    stores = stores_in(tmp_path)
    async with a_collector(stores) as collector:
        for ports in ((collector.http_port, 0), (0, collector.grpc_port)):
            late = Collector(stores)
            with pytest.raises(EvaluatorError, match="cannot listen"):
                await late.start("127.0.0.1", *ports)
            await late.stop(GRACE)


async def test_a_table_of_another_layout_is_refused_at_the_start(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)

    with pytest.raises(TableError, match="parent_span_id is missing"):
        await Collector({**stores, "otel_spans": stores["otel_logs"]}).start("127.0.0.1", 0, 0)


async def test_a_column_of_another_type_is_refused_by_its_name(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    other = DeltaStore(str(tmp_path / "other"))
    place = SPANS.get_field_index("flags")
    other.create(SPANS.set(place, pa.field("flags", pa.string())))

    with pytest.raises(TableError, match="flags is string and not"):
        await Collector({**stores, "otel_spans": other}).start("127.0.0.1", 0, 0)


async def test_a_column_that_was_added_meanwhile_is_left_null(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)

    async with a_collector(stores) as collector:
        await post(collector, a_request(name="before"))
        columns = stores["otel_spans"].open().empty()
        theirs = columns.append_column("extra_col", pa.array([], pa.list_(pa.string())))
        write_deltalake(stores["otel_spans"].uri, theirs, mode="append", schema_mode="merge")
        sent = [(await post(collector, a_request(name=name)))[0] for name in ("during", "after")]
        await post(collector, a_request(name="once more"))

    told = {row["name"]: row["extra_col"] for row in rows_in(stores)}
    assert sent[-1] == 200
    assert told.keys() >= {"before", "after", "once more"}
    assert set(told.values()) == {None}


async def test_a_column_that_was_added_and_must_not_be_null_is_refused(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    other = DeltaStore(str(tmp_path / "other"))
    other.create(SPANS.append(pa.field("team", pa.string(), nullable=False)))

    with pytest.raises(TableError, match="team was added and must not be null"):
        await Collector({**stores, "otel_spans": other}).start("127.0.0.1", 0, 0)


Start = Callable[[Path], tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start_process() -> Iterator[Start]:
    """Starts `evaluator collect` on free ports; gives the process and its HTTP address."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
        (folder / "evaluator.yaml").write_text("tables: tables\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "evaluator.cli.main", "collect", "--port", "0", "--grpc-port", "0"],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"collecting OTLP over (http://\S+) and grpc://127.0.0.1:\d+ into ", line)
        assert found, line
        return process, found[1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, start_process: Start) -> None:
    stores = stores_in(tmp_path)
    process, address = await asyncio.to_thread(start_process, tmp_path)
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            async with session.post(f"{address}/v1/traces", json=a_request(10)) as response:
                assert response.status == 200
        process.kill()

    assert len(rows_in(stores)) == 50


async def test_sigterm_makes_durable_what_is_under_way_and_exits_0(
    tmp_path: Path, start_process: Start
) -> None:
    stores = stores_in(tmp_path)
    process, address = await asyncio.to_thread(start_process, tmp_path)

    async def send(session: aiohttp.ClientSession) -> int:
        try:
            async with session.post(f"{address}/v1/traces", json=a_request(20)) as response:
                return 20 if response.status == 200 else 0
        except aiohttp.ClientConnectionError:
            return 0

    async with aiohttp.ClientSession() as session:
        sending = [asyncio.create_task(send(session)) for _ in range(60)]
        await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        process.send_signal(signal.SIGTERM)
        acknowledged = sum(await asyncio.gather(*sending))

    assert await asyncio.to_thread(process.wait, 20) == 0
    assert len(rows_in(stores)) >= acknowledged > 0


def test_collect_without_tables_says_how_to_make_them(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "evaluator.cli.main", "collect", "--port", "0", "--grpc-port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert "evaluator init" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_token_is_asked_for_over_http_and_grpc(tmp_path: Path) -> None:
    stores = stores_in(tmp_path)
    async with a_collector(stores, token="secret") as collector:
        refused, _, _ = await post(collector, a_request())
        taken, _, _ = await post(collector, a_request(), {**JSON, "Authorization": "Bearer secret"})
        address = f"127.0.0.1:{collector.grpc_port}"
        await asyncio.to_thread(
            export_spans,
            GrpcSpanExporter(endpoint=address, insecure=True, headers={"authorization": "Bearer secret"}),
            ["let in"],
        )
        async with grpc.aio.insecure_channel(address) as channel:
            export = channel.unary_unary(f"/{TRACES.service}/Export")
            with pytest.raises(grpc.aio.AioRpcError) as turned_away:
                await export(b"")

    assert (refused, taken) == (401, 200)
    assert turned_away.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(rows_in(stores)) == 2


def test_collect_beyond_loopback_wants_a_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evaluator.cli.main", "collect", "--host", "0.0.0.0", "--port", "0"]

    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 2
    assert "EVALUATOR_HTTP__TOKEN" in ran.stderr
