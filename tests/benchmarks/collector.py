"""The collector: spans a second with durable acknowledgement, and what a span costs of one core."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from evaluator.config import Config
from evaluator.tables.provision import provision

SPANS = 500
TARGET = 15_000


def a_batch() -> bytes:
    """500 spans of about 700 bytes each: an LLM call with its messages, model and tokens."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    service = group.resource.attributes.add(key="service.name")
    service.value.string_value = "support"
    spans = group.scope_spans.add().spans
    for _ in range(SPANS):
        now = time.time_ns()
        span = spans.add(
            trace_id=os.urandom(16),
            span_id=os.urandom(8),
            name="chat",
            kind=3,
            start_time_unix_nano=now,
            end_time_unix_nano=now + 10**9,
        )
        for index in range(6):
            text = span.attributes.add(key=f"gen_ai.text.{index}")
            text.value.string_value = "Where is my order? It was to be here by now. " * 2
        for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
            span.attributes.add(key=key).value.int_value = 1234
    return request.SerializeToString()


async def send(address: str, seconds: float, clients: int) -> tuple[int, float]:
    """Batches acknowledged by clients that each send one after the other, and the seconds it took."""
    batches = [a_batch() for _ in range(4)]
    headers = {"Content-Type": "application/x-protobuf"}
    began = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> int:
        sent = 0
        while time.perf_counter() - began < seconds:
            async with session.post(address, data=batches[sent % len(batches)], headers=headers) as response:
                response.raise_for_status()
            sent += 1
        return sent

    async with aiohttp.ClientSession() as session:
        sent = sum(await asyncio.gather(*(client(session) for _ in range(clients))))
    return sent, time.perf_counter() - began


def measure(seconds: float, clients: int) -> tuple[float, float]:
    """Spans a second, and microseconds of the collector's CPU for one span, its start left out."""
    with tempfile.TemporaryDirectory() as folder:
        provision(Config(home=Path(folder)))
        Path(folder, "evaluator.yaml").write_text("prefix: agent\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "evaluator.cli.main", "collect", "--port", "0", "--grpc-port", "0"],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        started = _cpu_seconds(process.pid)
        sent, took = asyncio.run(send(f"{found[0]}/v1/traces", seconds, clients))
        used = _cpu_seconds(process.pid) - started
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    return sent * SPANS / took, used / (sent * SPANS) * 1e6


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(quick: bool = False) -> None:
    """Print a row for one client and one for eight; beside each what the CPU cost makes of a whole core."""
    print(
        f"collector: OTLP/HTTP protobuf, batches of {SPANS}, durable; the aim is {TARGET:,} spans/s of one core"
    )
    print(f"{'clients':>8} {'spans/s':>9} {'CPU µs/span':>12} {'spans/s of a core':>18}")
    for clients in (1, 8):
        rate, cost = measure(3 if quick else 15, clients)
        print(f"{clients:>8} {rate:>9,.0f} {cost:>12.1f} {1e6 / cost:>18,.0f}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
