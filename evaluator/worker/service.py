"""The long-lived worker: ticks on a schedule, HTTP beside them, and a clean end."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from aiohttp import web
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from evaluator.access import allowed, check_binding
from evaluator.config import Config
from evaluator.errors import EvaluatorError, SharedOutError
from evaluator.schedule import trigger_of
from evaluator.shards import Shard
from evaluator.wiring import Caching, Tables, utc_now
from evaluator.worker.metrics import Metrics
from evaluator.worker.turns import Turn, Worker
from evaluator.worker.upkeep import Schedule, keep_up

if TYPE_CHECKING:
    from evaluator.collector.server import Counters

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY = 64 * 2**20
OPEN_PATHS = ("/healthz", "/readyz")


class Service:
    """Runs a worker until it is told to stop. The state of its last turn answers /readyz."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        clock: Callable[[], datetime] = utc_now,
        *,
        routes: Sequence[web.AbstractRouteDef] = (),
        received: "Counters | None" = None,
        caching: Caching = "on",
        shard: Shard | None = None,
    ) -> None:
        """`routes` are served beside the worker's own, such as a collector's, whose counters are `received`."""
        self._routes = routes
        self._config = config
        self._tables = tables
        self._clock = clock
        self._metrics = Metrics()
        self._worker = Worker(
            config, tables, clock, caching=caching, shard=shard, listeners=[self._metrics.called]
        )
        self._metrics.watch(lambda: self._worker.models, received)
        self._upkeep = Schedule(tables.ledger, clock)
        self._turning: asyncio.Task[None] | None = None
        self._last_good: datetime | None = None
        self._problem: str | None = "the first tick has not ended yet"
        self._stop = asyncio.Event()
        self._superseded: SharedOutError | None = None

    async def run(self, host: str, port: int, started: Callable[[str], None]) -> None:
        """Tick and serve until SIGTERM or SIGINT; `started` is told the address.

        Raises EvaluatorError when the first turn cannot even begin because of the configuration, and when the work was
        shared out anew among other workers.
        """
        check_binding(host, self._config.http.token)
        trigger = trigger_of(self._config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        runner = web.AppRunner(
            self._application(), access_log=None, handle_signals=False, auto_decompress=False
        )
        scheduler = AsyncIOScheduler(timezone=ZoneInfo("UTC"))
        try:
            await self._worker.prepare()
            await runner.setup()
            await _listen(runner, host, port)
            started(f"http://{_shown(host)}:{runner.addresses[0][1]}")
            scheduler.add_job(
                self._job,
                trigger,
                next_run_time=self._clock(),
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
            )
            scheduler.start()
            await self._stop.wait()
            log.info("stopping: the tick is finished or left where it is safe")
        finally:
            if scheduler.running:
                scheduler.pause()
            await self._end()
            if scheduler.running:
                scheduler.shutdown(wait=False)
            await runner.cleanup()
        if self._superseded is not None:
            raise self._superseded

    async def _job(self) -> None:
        """One turn; to the scheduler, one that was left where it was has ended, too."""
        self._turning = asyncio.current_task()
        with suppress(asyncio.CancelledError):
            await self._turn()

    async def _turn(self) -> None:
        """One turn; an error is told and the next turn tries again."""
        try:
            turn = await self._worker.turn(wait=False)
        except SharedOutError as error:
            self._superseded = error
            self._stop.set()
            return
        except EvaluatorError as error:
            self._metrics.failed()
            self._problem = str(error)
            log.error("the tick failed; the next one tries again", extra={"cause": str(error)})
            return
        except Exception:
            self._metrics.failed()
            self._problem = "the tick failed unexpectedly (see the log)"
            log.exception("the tick failed unexpectedly; the next one tries again")
            return
        self._last_good, self._problem = self._clock(), _model_problem(turn)
        self._metrics.ticked(
            turn,
            at=self._last_good.timestamp(),
            broken=self._worker.broken_edit is not None,
            sinks=list(self._config.publish),
        )
        summary = turn.summary
        log.info(
            "tick done" if turn.held_by is None else "another worker is at work: nothing done",
            extra={
                "traces": summary.traces,
                "results": summary.results,
                "unscored": sum(counted.unscored.total() for counted in summary.scorers.values()),
                "waiting": summary.waiting,
                "calls": summary.calls,
                "cost_usd": round(summary.cost_usd, 6),
                "seconds": round(summary.seconds, 3),
            },
        )
        for note in summary.notes:
            log.warning("the tick notes something", extra={"note": note})
        if turn.held_by is None:
            await self._keep_up(quiet=not (summary.traces or summary.results))

    async def _keep_up(self, *, quiet: bool) -> None:
        """Once a day the upkeep of our tables; a failure is told, and the next day's upkeep tries again."""
        try:
            if not await asyncio.to_thread(self._upkeep.claim, quiet=quiet):
                return
            done = await keep_up(
                self._config, self._tables, self._clock, stopping=lambda: self._worker.stopping
            )
        except EvaluatorError as error:
            log.warning("the upkeep of the tables failed", extra={"cause": str(error)})
            return
        log.info("the tables are kept up", extra=done.to_json())

    async def _end(self) -> None:
        """Let the tick finish its chunk within `grace`, then leave it: what is not committed is read again."""
        self._worker.stopping = True
        turning = self._turning
        if turning is not None and not turning.done():
            done, _ = await asyncio.wait([turning], timeout=self._config.grace.total_seconds())
            if not done:
                log.warning("the tick did not end within `grace`: it is left where it is")
                turning.cancel()
                await turning
        await self._worker.close()

    # --- HTTP

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        application.router.add_routes(self._routes)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics_text)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """With a token set, everything but the probes asks for it."""
        if request.path not in OPEN_PATHS and not allowed(
            self._config.http.token, request.headers.get("Authorization")
        ):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="a token is required\n")
        return await handler(request)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _: web.Request) -> web.Response:
        """Ready: the last turn ended well, and not too long ago."""
        problem = self._problem
        if problem is None and self._last_good is not None and self._config.cron is None:
            age = self._clock() - self._last_good
            running = self._turning is not None and not self._turning.done()
            if age > 3 * self._config.every + timedelta(minutes=1) and not running:
                problem = f"the last good tick ended {age.total_seconds():.0f} s ago"
        body = {
            "status": "ready" if problem is None else "not ready",
            "problem": problem,
            "last_tick": None if self._last_good is None else self._last_good.isoformat(),
            "guidelines": self._worker.broken_edit,
        }
        return web.json_response(body, status=200 if problem is None else 503)

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


def _model_problem(turn: Turn) -> str | None:
    """Why the worker is not ready although the turn ended well: no model answered it."""
    try:
        turn.check_models()
    except EvaluatorError as error:
        return str(error)
    return None


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise EvaluatorError(
            f"run: cannot listen on {host}:{port}: {error.strerror or error} (--port picks another)"
        ) from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
