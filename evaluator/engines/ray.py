"""On Ray: worker processes, here or in a cluster, take the chunks and hand back what came of them."""

import asyncio
import importlib.util
import io
import logging
import math
import os
import re
import secrets
import socket
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import urlsplit

from evaluator import __version__
from evaluator.chunk import (
    Chunk,
    EvaluationParts,
    Lost,
    Piece,
    Range,
    Work,
    cut_finer,
    evaluate_chunks,
    limited,
    open_work,
)
from evaluator.errors import ConfigurationError, EvaluatorError
from evaluator.opened import Opened

log = logging.getLogger(__name__)

LEAST_TRACES, MOST_TRACES = 10, 500
PARTS = 4
"""A chunk is so small a part of a worker's share of what is left, between these bounds: large while there is much, so that
tables are read seldom, and small in the end, so that all workers end at about the same time."""
AT_ONCE = 2
"""Chunks that a worker has: while the last calls for one are awaited, the next is read."""
RETRIES = 3
RESTARTS = 10
"""How often Ray gives a chunk to a new process after its worker died, and how many processes follow one another."""
CLOSED_WITHIN = timedelta(seconds=10)
KNOCKED_WITHIN = timedelta(seconds=5)
STARTED_WITHIN = timedelta(seconds=30)
SAID_CHARACTERS = 100
MEMORY = 200 * 2**20
"""Bytes for what is handed over, in a Ray of our own."""

OWN_RAY = {
    # Ray listens on all interfaces where it could be a cluster; this leaves it on loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""The environment in which a Ray of our own is started: for this user only, and telling nobody."""
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
_HANDED_ON = re.compile(
    r"^(AWS|AZURE|GOOGLE|GCP|VERTEX|VERTEXAI|DATABRICKS|OPENAI|ANTHROPIC|OLLAMA|LITELLM|OTEL)_"
    r"|_(API_KEY|KEY|TOKEN|SECRET|API_BASE|BASE_URL)$|^(HTTPS?|NO|ALL)_PROXY$",
    re.IGNORECASE,
)


class Bench(Protocol):
    """What a worker process works with, built once."""

    @property
    def parts(self) -> EvaluationParts: ...
    async def prepare(self) -> None:
        """Load what the first chunk needs of libraries."""
        ...

    async def close(self) -> None: ...


SetUp = Callable[[int, int], Bench]
"""Builds the bench of a worker, by its number from 0 and how many there are. It travels to the worker: a function of a
module, with plain data. Raises EvaluatorError."""


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What workers need of the environment: keys and addresses of providers and stores, proxies; nothing of Ray's own."""
    return {
        name: value
        for name, value in environment.items()
        if _HANDED_ON.search(name) and not name.startswith("RAY_")
    }


class RayEngine:
    """Evaluates chunks in worker processes: of the cluster at `address`, else of a Ray that lives as long as the work.

    `workers` None: one for each CPU, and never more than `most`. `environment` is set in each of them; it goes with the
    worker's own data, because Ray writes a `runtime_env` into its logs. What a killed worker had is retried by Ray.
    Raises ConfigurationError where Ray is not installed.
    """

    def __init__(
        self,
        set_up: SetUp,
        *,
        workers: int | None = None,
        most: int | None = None,
        address: str | None = None,
        environment: Mapping[str, str],
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigurationError(
                "--engine ray: Ray is not installed here: install the evaluator with its extra `ray` (or go without --engine)"
            )
        self._set_up = set_up
        self._wanted = workers
        self._most = most
        self._address = address
        self._environment = dict(environment)

    async def pieces(self, work: Work, chunks: Sequence[Chunk]) -> AsyncGenerator[Piece | Lost, None]:
        if work.within.limit is not None:
            chunks, waiting = await limited(work, chunks)
            yield _only_waiting(work, waiting)
        traces = sum(len(chunk.trace_ids) for chunk in chunks)
        if not traces:
            return
        with _connected(self._address, self._wanted) as ray:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            count = min(self._wanted or cpus, self._most or cpus, math.ceil(traces / LEAST_TRACES))
            crew = _Crew(ray, self._hired(ray, count, cpus), work)
            try:
                async for piece in crew.pieces(cut_finer(chunks, partial(_size, count))):
                    yield piece
            finally:
                await crew.close()

    def _hired(self, ray: Any, count: int, cpus: int) -> list[Any]:
        """Workers that are about to start, each with a CPU of its own where there are enough."""
        hire = ray.remote(
            num_cpus=1 if count <= cpus else 0,
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
            scheduling_strategy="SPREAD",
        )(_Worker)
        return [hire.remote(self._set_up, number, count, self._environment) for number in range(count)]


class _Worker:
    """Runs in a process of Ray's. What fails in words comes back as words."""

    def __init__(self, set_up: SetUp, number: int, count: int, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._set_up = set_up
        self._place = number, count
        self._bench: Bench | None = None

    async def ready(self, version: str) -> str | None:
        """Nothing, or why this worker cannot work: it has loaded what it needs, and has the tables before it."""
        if version != __version__:
            return (
                f"this is version {version}, and a worker of the cluster has {__version__}: install the same"
            )
        try:
            bench = self._ready_bench()
            await bench.prepare()
            await asyncio.to_thread(_try_out, bench.parts)
        except EvaluatorError as error:
            return str(error)
        return None

    async def evaluate(self, within: Range, run_id: str, chunk: Chunk) -> list[Piece] | str:
        """What came of a chunk, or why nothing did. Opens the tables itself: what others committed until now is known."""
        try:
            work = await asyncio.to_thread(open_work, self._ready_bench().parts, within, run_id)
            return [piece async for piece in evaluate_chunks(work, [chunk])]
        except EvaluatorError as error:
            return str(error)

    async def close(self) -> None:
        if self._bench is not None:
            await self._bench.close()

    def _ready_bench(self) -> Bench:
        """Built at the first need, which in a process that follows a killed one is a chunk."""
        if self._bench is None:
            self._bench = self._set_up(*self._place)
        return self._bench


def _try_out(parts: EvaluationParts) -> None:
    """Open the tables, and read a span. Raises TableError."""
    Opened(parts.ledger, parts.spans).spans.try_out()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """What one of the workers was asked to do: a chunk, or (None) whether it is there."""

    worker: Any
    chunk: Chunk | None
    ref: Any


class _Crew:
    """Workers that take chunks from one pile, some at once each, until it is empty."""

    def __init__(self, ray: Any, workers: Sequence[Any], work: Work) -> None:
        self._ray = ray
        self._workers = workers
        self._up: set[Any] = set()
        self._within = replace(work.within, limit=None)
        self._run_id = work.run_id
        self._busy: dict[asyncio.Future[Any], _Turn] = {}
        self._why = "no worker was there"

    async def pieces(self, chunks: Iterable[Chunk]) -> AsyncGenerator[Piece | Lost, None]:
        pile = deque(chunks)
        for worker in self._workers:
            self._greet(worker)
        while self._busy and (pile or any(turn.chunk for turn in self._busy.values())):
            ended, _ = await asyncio.wait(
                self._busy, timeout=STARTED_WITHIN.total_seconds(), return_when=asyncio.FIRST_COMPLETED
            )
            if not ended and not self._up:
                log.warning("no worker has started yet: the cluster has no CPU free, or starts slowly")
            for future in ended:
                turn = self._busy.pop(future)
                came = self._came(future, turn)
                if turn.chunk is not None and isinstance(came, str):
                    yield Lost(chunk=turn.chunk, reason=came)
                    self._greet(turn.worker)  # It may be gone for good.
                elif isinstance(came, str):
                    self._why = came
                else:
                    for _ in range(1 if turn.worker in self._up else AT_ONCE):
                        if pile:
                            self._give(turn.worker, pile.popleft())
                    self._note(turn.worker)
                    for piece in came:
                        yield piece
        for chunk in pile:
            yield Lost(chunk=chunk, reason=self._why)

    async def close(self) -> None:
        """Give up what is under way, let the workers settle what they spent, and end them."""
        for turn in self._busy.values():
            self._ray.cancel(turn.ref)
        settled = [_awaited(worker.close.remote()) for worker in self._up]
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_WITHIN.total_seconds()):
                await asyncio.gather(*settled, *self._busy, return_exceptions=True)
        for worker in self._workers:
            self._ray.kill(worker)

    def _note(self, worker: Any) -> None:
        if worker not in self._up:
            self._up.add(worker)
            if len(self._up) == len(self._workers):
                log.info("all workers are up", extra={"workers": len(self._up)})

    def _greet(self, worker: Any) -> None:
        self._ask(worker, None, worker.ready.remote(__version__))

    def _give(self, worker: Any, chunk: Chunk) -> None:
        self._ask(worker, chunk, worker.evaluate.remote(self._within, self._run_id, chunk))

    def _ask(self, worker: Any, chunk: Chunk | None, ref: Any) -> None:
        self._busy[_awaited(ref)] = _Turn(worker=worker, chunk=chunk, ref=ref)

    def _came(self, future: asyncio.Future[Any], turn: _Turn) -> list[Piece] | str:
        """What a turn gave: pieces (a greeting gives none), or why it gave nothing."""
        errors = self._ray.exceptions
        try:
            return future.result() or []
        except errors.RayTaskError as error:
            log.error("a worker failed", exc_info=error)
            return f"a worker failed with {type(error.cause).__name__} (the log has more)"
        except errors.RayActorError as error:
            if turn.chunk is not None:
                return f"the worker process died, and so did those that followed it ({1 + RETRIES} tries)"
            return f"no worker could be started: {str(error).strip().splitlines()[-1]}"
        except errors.RayError as error:
            return f"Ray could not do it: {type(error).__name__}"


def _size(workers: int, left: int) -> int:
    return min(max(math.ceil(left / workers / PARTS), LEAST_TRACES), MOST_TRACES)


def _awaited(ref: Any) -> asyncio.Future[Any]:
    return asyncio.wrap_future(ref.future())


def _only_waiting(work: Work, waiting: int) -> Piece:
    """What is known of traces that no worker gets."""
    return Piece(
        place=(-1, 0), at=work.parts.clock(), traces=(), results=(), skipped=Counter(), waiting=waiting
    )


class _Heard(io.StringIO):
    """Takes what Ray prints into the log, the beginning of each line."""

    def write(self, text: str) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            log.warning("Ray says", extra={"said": line[:SAID_CHARACTERS]})
        return len(text)


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, as a module: at an address, or one of our own that ends with the context. Raises EvaluatorError."""
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # What Ray tells of workers that died, it prints; stdout is for the result.
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, redirect_stdout(_Heard()):
        if address is None:
            environment = QUIET | OWN_RAY | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            how |= {
                "address": "local",
                "num_cpus": max(workers or 0, os.cpu_count() or 1),
                "include_dashboard": False,
                "object_store_memory": MEMORY,
                "_temp_dir": folder,
            }
        else:
            environment = QUIET
            how |= {"address": address}
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        factory = logging.getLogRecordFactory()
        import ray

        try:
            _knock(address)
            ray.init(**how)
            logging.setLogRecordFactory(factory)  # Ray's own adds a field to every line.
        except Exception as error:
            where = "Ray could not be started here" if address is None else f"no Ray answers at {address}"
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise EvaluatorError(f"--engine ray: {where}: {said[0]} (RAY_ADDRESS names a cluster)") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens: Ray itself asks for minutes."""
    parts = urlsplit(address if address and "://" in address else f"ray://{address}")
    if address and parts.hostname and parts.port:
        with socket.create_connection((parts.hostname, parts.port), timeout=KNOCKED_WITHIN.total_seconds()):
            pass
