"""What listens and runs for long: `run`, `collect`."""

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from evaluator.cli.options import ConfigFile, NoCache, ShardOption, loaded, shard_of
from evaluator.cli.show import say

if TYPE_CHECKING:
    from evaluator.collector.server import Collector
    from evaluator.config import Config
    from evaluator.shards import Shard
    from evaluator.wiring import Caching


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(run)
    app.command()(collect)


def run(
    host: Annotated[
        str | None, typer.Option("--host", help="The address to listen on (http.host; loopback).")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="For HTTP; 0 picks a free one.")
    ] = None,
    collecting: Annotated[
        bool, typer.Option("--collect", help="Receive OTLP too, on the same host.")
    ] = False,
    no_cache: NoCache = False,
    shard: ShardOption = None,
    config: ConfigFile = None,
) -> None:
    """Work until told to stop: a tick every N minutes, and /healthz, /readyz, /metrics beside it.

    SIGTERM finishes or leaves the tick safely within `grace`, and exits 0.

    Example: `evaluator run --collect`
    """
    settings = loaded(config, **{"http.host": host, "http.port": port})
    asyncio.run(_run(settings, collecting, "off" if no_cache else "on", shard_of(shard)))


async def _run(config: "Config", collecting: bool, caching: "Caching", shard: "Shard | None") -> None:
    from evaluator.wiring import build_tables
    from evaluator.worker.service import Service

    collector = None
    try:
        if collecting:
            collector = await _started(config, config.http.host)
        service = Service(
            config,
            build_tables(config),
            routes=collector.routes() if collector is not None else (),
            received=collector.counters if collector is not None else None,
            caching=caching,
            shard=shard,
        )
        await service.run(config.http.host, config.http.port, lambda address: say(f"serving on {address}"))
    finally:
        if collector is not None:
            await collector.stop(config.grace)


def collect(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="For HTTP; 0 picks a free one.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", min=0, max=65535, help="For gRPC; 0 picks a free one.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Receive OTLP and write it to the tables.

    Traces, logs and metrics, over HTTP (protobuf and JSON, gzip; 4318) and gRPC (4317). An export is acknowledged
    when its rows are durable. SIGTERM stops it: what it has is written first.

    Example: `evaluator collect --host 0.0.0.0 --port 4318`, and with the clients
    `OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318`.
    """
    settings = loaded(config, **{"collect.http_port": port, "collect.grpc_port": grpc_port})
    asyncio.run(_collect(settings, host))


async def _collect(config: "Config", host: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    collector = await _started(config, host)
    await stopping.wait()
    await collector.stop(config.grace)


async def _started(config: "Config", host: str) -> "Collector":
    """A collector that listens; says where. Raises EvaluatorError."""
    from evaluator.access import check_binding
    from evaluator.wiring import build_collector

    check_binding(host, config.http.token)
    collector = build_collector(config, host)
    try:
        await collector.start(host, config.collect.http_port, config.collect.grpc_port)
    except BaseException:
        await collector.stop(config.grace)
        raise
    shown = f"[{host}]" if ":" in host else host
    say(
        f"collecting OTLP over http://{shown}:{collector.http_port} and grpc://{shown}:{collector.grpc_port} "
        f"into {config.table_uri('otel_spans')}"
    )
    return collector
