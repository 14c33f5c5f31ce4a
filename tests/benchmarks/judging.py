"""Judging against a stub provider in its own process: calls a second, CPU, retries and memory, beside their references.

`python -m tests.benchmarks.judging PART ADDRESS COUNT` runs one of the loops that stand for a client; the body of one
request comes on its input. Whole commands run as a user runs them. `--joint` and `--memory` measure only that.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from evaluator.footprint import keep_small
from tests.benchmarks.measured import row
from tests.project import COMMAND, Project
from tests.stub_provider import StubProvider
from tests.traffic import NOON, answer, span

LATENCY = 0.2
IN_FLIGHT = 128
TRACES, JUDGES = 1_000, 3
WARM_TRACES = 200
GUIDELINES = (
    "The response must answer the question that was asked.",
    "The response must be polite and must not blame the user.",
    "The response must name at least one figure with its unit.",
)
MARK = "Amounts include taxes."
"""In every second response: the stub says yes to those, so that a wrong verdict can be told."""
RATE = 30
PARTS = ("raw", "litellm", "endpoint", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a client did: judgements, wall seconds and CPU seconds of its own process, tokens it sent."""

    count: int
    seconds: float
    cpu: float
    tokens: int = 0

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def main(quick: bool = False) -> None:
    """The table; `quick` measures fewer traces, and only what has no long runs."""
    body = a_request()
    with provider("--latency", str(LATENCY)) as address:
        single, joint = compare_ways(address, body, quick)
        compare_litellm(address, body, 300 if quick else 1_500)
        compare_mlflow(address, single, joint, 20 if quick else 60)
    measure_limited(100 if quick else 300)
    measure_faults(60 if quick else 300)
    main_memory(quick)


def main_joint(quick: bool = False) -> None:
    """The rows about one call a judgement and about several judges in one."""
    body = a_request()
    with provider("--latency", str(LATENCY)) as address:
        compare_ways(address, body, quick)


def main_memory(quick: bool = False) -> None:
    measure_memory(2_000 if quick else 100_000)


def compare_ways(address: str, body: bytes, quick: bool) -> tuple[Done, Done]:
    """One call a judgement, and several judges in one; what each did."""
    traces, times = (TRACES // 5, 1) if quick else (TRACES, 3)
    single = compare_raw(address, body, traces, times)
    return single, compare_joint(address, single, traces, times)


def compare_raw(address: str, body: bytes, traces: int, times: int) -> Done:
    """A worker's tick beside the least that a client can do, in turn; the best of each."""
    raws, wholes = [], []
    for _ in range(times):
        raws.append(loop("raw", address, traces * JUDGES, body))
        wholes.append(worked(address, traces))
    raw, single, first = fastest(raws), fastest(wholes), commanded(address, traces)
    share, first_share = single.rate / raw.rate, first.rate / raw.rate
    print_rate("raw aiohttp loop", raw, f"{IN_FLIGHT} in flight, {LATENCY * 1000:.0f} ms")
    print_rate("a worker's tick, one call a judgement", single, f"{share:.0%} of raw (aim: 85 %)")
    aim = f"{single.cpu / single.count * 1000:.2f} ms"
    row("  CPU of a judgement, table to annotations", aim, "aim: 1.2 ms")
    print_rate("a first `once`, nothing known of the provider", first, f"{first_share:.0%} of raw")
    return single


def compare_joint(address: str, single: Done, traces: int, times: int) -> Done:
    joint = fastest([worked(address, traces, batch="joint") for _ in range(times)])
    print_rate(
        "a worker's tick, batch: joint", joint, f"{joint.rate / single.rate:.1f} times single (aim: 2.3)"
    )
    row("  CPU of a judgement", f"{joint.cpu / joint.count * 1000:.2f} ms", "aim: 0.6 ms")
    share = joint.tokens / joint.count / (single.tokens / single.count)
    row("  prompt tokens against one call a judgement", f"{share:.0%}", "aim: at most 45 %")
    return joint


def compare_litellm(address: str, body: bytes, count: int) -> None:
    """In turn; the best of each."""
    pairs = [[loop(name, address, count, body) for name in ("litellm", "endpoint")] for _ in range(3)]
    bare, ours = (max(runs, key=lambda done: done.rate) for runs in zip(*pairs, strict=True))
    print_rate("bare litellm.acompletion", bare, "")
    print_rate("our litellm endpoint", ours, f"{ours.rate / bare.rate:.0%} of bare (aim: 90 %)")


def compare_mlflow(address: str, single: Done, joint: Done, traces: int) -> None:
    peer = loop("mlflow", address, traces, b"")
    times = (
        f"ours: {single.rate / peer.rate:.0f} times (aim: 35), joint {joint.rate / peer.rate:.0f} (aim: 80)"
    )
    print_rate(f"mlflow.genai.evaluate, {traces} traces", peer, times)


def measure_limited(traces: int) -> None:
    """Behind a limit: what was lost, how much of the granted rate was used, and what it cost in requests."""
    options = ("--latency", str(LATENCY), "--rate", str(RATE), "--burst", str(RATE), "--retry-after", "1")
    with provider(*options) as address, project(address, traces) as judged:
        told = once(judged)
    count = traces * JUDGES
    row(
        f"behind {RATE}/s, burst {RATE}, Retry-After: 1: lost",
        f"{count - told['passed'] - told['failed']} of {count}",
        "aim: 0",
    )
    row("  share of the granted rate", f"{count / told['seconds'] / RATE:.0%}", "aim: 95 %")
    row("  requests beyond those needed", f"{told['calls'] / count - 1:.1%}", "aim: at most 12 %")


def measure_faults(traces: int) -> None:
    """With a tenth of all answers broken: what was lost when the next tick had tried again, and what was judged wrong."""
    faults = json.dumps({"500": 0.05, "hang": 0.02, "broken_json": 0.03})
    options = ("--latency", str(LATENCY), "--faults", faults, "--yes-if", MARK)
    with provider(*options) as address, project(address, traces, timeout="3s") as judged:
        ticks = [once(judged) for _ in range(2)]
        right = "case when right(trace_id, 1) in ('0', '2', '4', '6', '8') then 'yes' else 'no' end"
        [wrong] = judged.sql(f"select count(*) as n from assessments where value <> {right}")
    count = traces * JUDGES
    lost = count - sum(told["passed"] + told["failed"] for told in ticks)
    row("5 % 500, 2 % hung, 3 % broken JSON: lost", f"{lost} of {count}", "aim: 0")
    row("  wrong", f"{wrong['n']}", "aim: 0")


def measure_memory(judgements: int) -> None:
    """One worker, tick after tick over new traces: its memory after a tenth of the judgements, and at the end."""
    rounds = max(judgements // (500 * JUDGES), 2)
    with provider("--forget") as address, project(address, 0) as judged:
        told = json.loads(part("memory", str(judged.folder), str(rounds), b""))
    early, late = told["megabytes"][max(rounds // 10 - 1, 0)], told["megabytes"][-1]
    row(
        f"memory after {told['judgements']:,} judgements",
        f"{late:.0f} MB",
        f"{early:.0f} MB after a tenth; aim: flat, under 300 MB",
    )


# --- the clients


def loop(name: str, address: str, count: int, body: bytes) -> Done:
    """One of PARTS in a process of its own."""
    return Done(**json.loads(part(name, address, str(count), body)))


def worked(address: str, traces: int, **judges: str) -> Done:
    """A tick over new traces of a worker that has done one before: from the table to the annotations."""
    with project(address, WARM_TRACES, judges=judges) as judged:
        return Done(**json.loads(part("worker", str(judged.folder), str(traces), b"")))


def commanded(address: str, traces: int) -> Done:
    """`evaluator once` over new traces: seconds as it tells them, CPU less that of a command with nothing to do."""
    with project(address, traces) as judged:
        before = os.times()
        told = once(judged)
        between = os.times()
        once(judged)
        after = os.times()
    cpu = _children(between) - _children(before) - (_children(after) - _children(between))
    return Done(count=told["passed"] + told["failed"], seconds=told["seconds"], cpu=cpu)


def part(name: str, *arguments: Any) -> str:
    *words, given = arguments
    keep_small()  # as the command does, for those whom it is handed on to
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.judging", name, *words],
        input=given,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2_000:])
    return done.stdout.decode().splitlines()[-1]


async def in_flight(count: int, ask: Callable[[], Awaitable[Any]], at_once: int = IN_FLIGHT) -> None:
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await ask()

    await asyncio.gather(*(client() for _ in range(at_once)))


async def measured(count: int, ask: Callable[[], Awaitable[Any]]) -> Done:
    began, used = time.perf_counter(), time.process_time()
    await in_flight(count, ask)
    return Done(count=count, seconds=time.perf_counter() - began, cpu=time.process_time() - used)


async def raw(address: str, count: int, body: Mapping[str, Any]) -> Done:
    """The least that a client can do: post, and read the JSON that comes back."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            data = orjson.dumps(body)
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{address}/chat/completions", data=data, headers=headers) as response:
                orjson.loads(await response.read())

        return await measured(count, ask)


async def litellm(address: str, count: int, body: Mapping[str, Any]) -> Done:
    """litellm's own call, as anybody makes it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm as library

    asked = {key: value for key, value in body.items() if key != "model"}

    async def ask() -> None:
        await library.acompletion(model="openai/stub", api_base=address, api_key="none", **asked)

    await ask()
    return await measured(count, ask)


async def endpoint(address: str, count: int, body: Mapping[str, Any]) -> Done:
    """Our endpoint over litellm, with limits, retries and deadlines around it."""
    from evaluator.models.client import Model
    from evaluator.models.limiter import Limiter
    from evaluator.models.litellm import LiteLLMEndpoint

    schema = body["response_format"]["json_schema"]["schema"]
    model = Model(
        LiteLLMEndpoint("openai/stub", base_url=address, key="none"),
        limiter=Limiter(max_concurrency=IN_FLIGHT),
        parameters={"temperature": 0},
        timeout=timedelta(seconds=60),
    )

    async def ask() -> None:
        await model.complete(body["messages"], schema)

    await ask()
    done = await measured(count, ask)
    await model.close()
    return done


async def mlflow(address: str, traces: int, _: Mapping[str, Any]) -> Done:
    """MLflow's evaluation with the same three guidelines, on a local store."""
    return await asyncio.to_thread(mlflow_evaluate, address, traces)


def mlflow_evaluate(address: str, traces: int) -> Done:
    os.environ |= {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_BASE": address,
        "OPENAI_BASE_URL": address,
        "OPENAI_API_KEY": "none",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tempfile.mkdtemp()}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    os.chdir(tempfile.mkdtemp())  # MLflow puts artifacts of traces into the folder it runs in
    import mlflow as library
    from mlflow.genai.scorers import Guidelines

    library.set_experiment("bench")
    scorers = [
        Guidelines(name=f"g{number}", guidelines=text, model="openai:/stub")
        for number, text in enumerate(GUIDELINES)
    ]
    data = [
        {"inputs": {"question": f"{number}: How did refunds go?"}, "outputs": a_response(number)}
        for number in range(traces)
    ]
    library.genai.evaluate(data=data[:1], scorers=scorers)
    began, used = time.perf_counter(), time.process_time()
    library.genai.evaluate(data=data, scorers=scorers)
    return Done(count=traces * JUDGES, seconds=time.perf_counter() - began, cpu=time.process_time() - used)


def resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def worker(folder: str, traces: int) -> Done:
    """A worker's second tick in this process."""
    from evaluator.config import load_config
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    settings = load_config(Path(folder, "evaluator.yaml"))
    one = Worker(settings, build_tables(settings))
    await one.turn(wait=False)
    Project(folder=Path(folder)).append(*some_traces(traces, WARM_TRACES))
    used = time.process_time()
    turn = await one.turn(wait=False)
    cpu = time.process_time() - used
    await one.close()
    summary = turn.summary
    count = sum(counted.scored for counted in summary.scorers.values())
    return Done(count=count, seconds=summary.seconds, cpu=cpu, tokens=summary.input_tokens)


async def memory(folder: str, rounds: int) -> Mapping[str, Any]:
    """Ticks over new traces in this process; its resident megabytes after each."""
    from evaluator.config import load_config
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    judged = Project(folder=Path(folder))
    settings = load_config(Path(folder, "evaluator.yaml"))
    worker = Worker(settings, build_tables(settings))
    judgements, megabytes = 0, []
    for number in range(rounds):
        judged.append(*some_traces(500, number * 500))
        turn = await worker.turn(wait=False)
        judgements += turn.summary.results
        megabytes.append(resident())
    await worker.close()
    return {"judgements": judgements, "megabytes": megabytes}


# --- what is judged


@contextmanager
def provider(*options: str) -> Iterator[str]:
    """The stub in its own process; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stub_provider", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


@contextmanager
def project(
    address: str, traces: int, judges: Mapping[str, str] | None = None, **judge: Any
) -> Iterator[Project]:
    """A project with three guideline judges, each with the keys `judges`, and a table of new traces."""
    keys = "".join(f", {key}: {value}" for key, value in (judges or {}).items())
    guidelines = "judges:\n" + "".join(
        f"  - {{name: g{number}, guidelines: {text!r}{keys}}}\n" for number, text in enumerate(GUIDELINES)
    )
    settings = {"model": "openai/stub", "base_url": address, "max_concurrency": IN_FLIGHT, **judge}
    settings |= {"budget": {"usd_per_day": None}}
    with tempfile.TemporaryDirectory() as folder:
        judged = Project.create(Path(folder), guidelines, judge=settings)
        if traces:
            judged.append(*some_traces(traces))
        yield judged


def some_traces(count: int, first: int = 0) -> list[dict[str, Any]]:
    rows = []
    for number in range(first, first + count):
        name, at = f"t{number}", NOON + timedelta(milliseconds=10 * number)
        question = f"{number}: How did refunds go?"
        rows.append(answer(name, a_response(number), question, at=at, seconds=8.0))
        values = {"openinference.span.kind": "TOOL", "input.value": "x" * 200, "output.value": "y" * 300}
        rows.append(span(name, "step", parent="root", at=at, **values))
    return rows


def a_response(number: int) -> str:
    text = "Refunds rose by 12 % last week. " * 20
    return text if number % 2 else f"{text}{MARK}"


def a_request() -> bytes:
    """The body of one judge's request, as it goes out."""
    with StubProvider() as stub, project(stub.base_url, 1) as judged:
        once(judged)
        return orjson.dumps(stub.requests[0])


def once(judged: Project) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, "once", "--json"],
        cwd=judged.folder,
        env={key: value for key, value in judged.env({}).items() if key != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def fastest(measured: Sequence[Done]) -> Done:
    """What other processes do to this machine is not ours."""
    return max(measured, key=lambda done: done.rate)


def print_rate(what: str, done: Done, aim: str) -> None:
    row(what, f"{done.rate:.0f}/s, {done.cpu / done.count * 1000:.2f} ms CPU", aim)


def _children(times: os.times_result) -> float:
    return times.children_user + times.children_system


def client(arguments: Sequence[str]) -> None:
    name, where, count = arguments
    if name in ("memory", "worker", "endpoint"):
        keep_small()
    if name == "memory":
        print(json.dumps(asyncio.run(memory(where, int(count)))))
        return
    if name == "worker":
        print(json.dumps(asdict(asyncio.run(worker(where, int(count))))))
        return
    given = sys.stdin.buffer.read()
    run = {"raw": raw, "litellm": litellm, "endpoint": endpoint, "mlflow": mlflow}[name]
    done = asyncio.run(run(where, int(count), orjson.loads(given) if given else {}))
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    if len(sys.argv) == 4:
        client(sys.argv[1:])
    elif "--joint" in sys.argv:
        main_joint(quick)
    elif "--memory" in sys.argv:
        main_memory(quick)
    else:
        main(quick)
