"""A process that runs a user's scorers, so that whatever they do ends with the record they did it for."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluator.feedback import Reason
from evaluator.scorers.child import LENGTH

START_SECONDS = 60.0
"""How long importing a module may take; MLflow's alone takes five on a busy machine."""
CALL_SECONDS = 30.0
"""How long one record may take."""


class ScorerFailure(Exception):  # noqa: N818 -- a failure is a value here: it becomes an Unscored
    """Why a call gave no result. `detail` holds no trace content."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class ScorerProcess:
    """One module in a process of its own: started when it is first needed, and again after it was ended.

    It takes one call at a time. Whoever makes it closes it.
    """

    def __init__(
        self,
        module: str,
        home: Path,
        *,
        start_seconds: float = START_SECONDS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self.module = module
        self._home = home
        self._start_seconds = start_seconds
        self._call_seconds = call_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def parameters(self, name: str) -> list[str]:
        """Which of `inputs, outputs, expectations, trace` a scorer takes. Raises ScorerFailure."""
        reply = await self._ask({"name": name})
        return list(reply["parameters"])

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a scorer returned: its `value` and `rationale`. Raises ScorerFailure."""
        return await self._ask({"name": name, "arguments": arguments})

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._end()

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        async with self._lock:
            if self._process is None:
                await self._start()
            return await self._exchange(request, self._call_seconds)

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder we happen to be in must not shadow a library
            *("-m", "evaluator.scorers.child"),
            *(str(self._home), self.module, str(2 * self._call_seconds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        await self._exchange(None, self._start_seconds)

    async def _exchange(self, request: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Send a request, if there is one, and take the reply; a process that gives none is ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        content = b"" if request is None else json.dumps(request, default=str).encode()
        try:
            async with asyncio.timeout(seconds):
                if content:
                    process.stdin.write(LENGTH.pack(len(content)) + content)
                    await process.stdin.drain()
                header = await process.stdout.readexactly(LENGTH.size)
                reply: dict[str, Any] = json.loads(await process.stdout.readexactly(LENGTH.unpack(header)[0]))
        except TimeoutError as error:
            await self._end()
            raise ScorerFailure(Reason.SCORER_TIMEOUT, f"took longer than {seconds:g} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            await self._end()
            raise ScorerFailure(
                Reason.SCORER_FAILED, f"ended its process (exit code {process.returncode})"
            ) from error
        except asyncio.CancelledError:
            # The reply to this request would be taken for the next one's.
            await self._end()
            raise
        if "failed" in reply:
            if request is None:
                await self._end()
            raise ScorerFailure(Reason.SCORER_FAILED, reply["failed"])
        return reply

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        assert process.stdin is not None
        process.stdin.close()
