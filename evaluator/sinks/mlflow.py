"""Results into MLflow: feedback on the traces it knows, and evaluation runs with their means.

Importing MLflow and opening a store costs 5 s of CPU and 100 MB, so this process never does: each order
goes to a child (`mlflow_child`) that ends when it is carried out.
"""

import asyncio
import hashlib
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_never

import orjson

from evaluator.errors import SinkError
from evaluator.feedback import Assessment, Erased, Feedback, Outcome, Unscored
from evaluator.sinks.waiting import Waiting

log = logging.getLogger(__name__)

CHILD = (sys.executable, "-P", "-m", "evaluator.sinks.mlflow_child")
CHILD_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What the child runs with unless the environment says otherwise: silent, and in no talk with a third party.

MLflow's own eight requests with pauses of minutes would repeat a post whose reply was lost, which the
store refuses with a 500, which is retried; the next publishing looks first instead.
"""
UNKNOWN_PATIENCE = timedelta(hours=1)
_CREDENTIALS = re.compile(r"://[^/@\s]+@")
_MAX_LINE = 2**20
_NAMED = 5
"""How many of the results that MLflow does not take a warning names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """How many results were logged, were there already (or newer ones), wait, or never will be logged.

    Those wait whose trace is not there, and those at which the store failed. `refused` are those it calls invalid,
    `given_up` those that waited for an hour.
    """

    logged: int = 0
    known: int = 0
    waiting: int = 0
    refused: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRun:
    """An offline evaluation as it is shown in MLflow: its range, its scorers, and every result it reports.

    `assessments` are all results in the range, reused ones too; those whose `run_id` is this run's are its own.
    """

    run_id: str
    name: str
    range_start: datetime
    range_end: datetime
    started_at: datetime
    ended_at: datetime
    scorers: Mapping[str, str]
    assessments: Sequence[Assessment]
    parameters: Mapping[str, str] | None = None


class MlflowPublisher:
    """Logs each result once, however often it is published, as MLflow feedback under an id of ours.

    A trace that the store does not know holds up nothing: its results wait in `state` and are tried again for
    an hour, with each publishing that is due. Every method raises SinkError when the store is down; then
    what was not logged is to be published again, and adds nothing twice.
    """

    name = "mlflow"

    def __init__(
        self,
        *,
        tracking_uri: str,
        experiment: str,
        state: Path,
        silence: timedelta = timedelta(minutes=2),
        redact: Callable[[str], str] = str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`silence`: how long the child may say nothing, its start included, before it counts as hung.

        `redact` takes out of a rationale what must not leave: a scorer of one's own may quote the trace.
        """
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.silence = silence
        self._redact = redact
        self._clock = clock
        self._waiting = Waiting(state / "mlflow-waiting.db", UNKNOWN_PATIENCE)

    def _item(self, assessment: Assessment) -> dict[str, Any]:
        item = _item(assessment)
        return {**item, "rationale": None if item["rationale"] is None else self._redact(item["rationale"])}

    def waiting(self) -> int:
        return self._waiting.count()

    def lost_since(self) -> datetime | None:
        return None if self._waiting.whole() else self._clock() - UNKNOWN_PATIENCE

    def remember(self) -> None:
        self._waiting.mark_whole()

    def due(self) -> bool:
        """Whether results of unknown traces are to be tried again: then publish, if only an empty sequence."""
        return bool(self._waiting.due(self._clock()))

    async def publish(self, assessments: Sequence[Assessment]) -> PublishReport:
        """Log the assessments, and those that wait and are due. Raises SinkError when the store is down."""
        now = self._clock()
        items = self._waiting.due(now)
        items.update((assessment_id(one), orjson.dumps(self._item(one))) for one in assessments)
        if not items:
            return PublishReport()
        states, _ = await self._order({"do": "publish"}, list(items.values()))
        missing = {key: item for key, item in items.items() if states.get(key) in ("unknown", "failed")}
        given_up = self._waiting.settle(missing=missing, placed=items.keys() - missing.keys(), now=now)
        if given_up:
            log.warning(
                "results were given up: MLflow did not get their traces within an hour; `collect: {tee: mlflow}` sends them",
                extra={"given_up": given_up, "waiting": len(missing) - given_up},
            )
        counts = list(states.values())
        return PublishReport(
            logged=counts.count("logged"),
            known=counts.count("known"),
            waiting=len(missing) - given_up,
            refused=counts.count("refused"),
            given_up=given_up,
        )

    async def forget(self, erased: Sequence[Erased]) -> None:
        """Delete our feedback on some traces, or about some sessions, and the dataset records made from the traces."""
        items = [_erased(one) for one in erased]
        of_trace: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for item in items:
            of_trace[item["trace_id"]].append(item)

        def goes(waits: bytes) -> bool:
            told = orjson.loads(waits)
            return any(is_erased(told["metadata"], item) for item in of_trace.get(told["trace_id"], ()))

        await asyncio.to_thread(self._waiting.drop, goes)
        _, left = await self._order({"do": "forget"}, [orjson.dumps(item) for item in items])
        if left:
            log.warning(
                "this MLflow store does not let dataset records be looked through: those of forgotten traces stay there",
                extra={"tracking_uri": _CREDENTIALS.sub("://", self.tracking_uri), "erased": len(erased)},
            )

    async def ensure_experiment(self) -> str:
        """Make the experiment, and a local store with it, unless it is there; returns MLflow's id of it."""
        _, answer = await self._order({"do": "experiment"}, [])
        return answer

    async def log_evaluation(self, run: EvaluationRun) -> str:
        """Log an evaluation as a run of MLflow with its results; the same run again adds nothing.

        Returns MLflow's id of the run. Traces that MLflow does not know count in the means and are not linked.
        """
        order = {"do": "evaluation", "run": _run(run)}
        _, answer = await self._order(order, [orjson.dumps(self._item(one)) for one in run.assessments])
        return answer

    async def _order(self, order: Mapping[str, Any], items: Sequence[bytes]) -> tuple[dict[str, str], str]:
        """Have a child carry out one order: the state of each item, and the answer."""
        order = {**order, "tracking_uri": self.tracking_uri, "experiment": self.experiment}
        child = await asyncio.create_subprocess_exec(
            *CHILD,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**CHILD_ENVIRONMENT, **os.environ},
            limit=_MAX_LINE,
        )
        feeding = asyncio.create_task(_feed(child, [orjson.dumps(order), *items]))
        try:
            return await self._replies(child)
        finally:
            feeding.cancel()
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _replies(self, child: asyncio.subprocess.Process) -> tuple[dict[str, str], str]:
        assert child.stdout is not None
        states: dict[str, str] = {}
        not_taken: list[str] = []
        while True:
            try:
                line = await asyncio.wait_for(child.stdout.readline(), self.silence.total_seconds())
            except TimeoutError as error:
                seconds = self.silence.total_seconds()
                raise self._down(f"no answer for {seconds:.0f} s") from error
            if not line:
                raise self._down(f"the process that publishes ended early (exit code {await child.wait()})")
            reply = orjson.loads(line)
            if "answer" in reply:
                _tell_of(not_taken)
                return states, reply["answer"]
            if "down" in reply:
                raise self._down(reply["down"])
            states[reply["id"]] = reply["state"]
            if reply["detail"]:
                not_taken.append(reply["detail"])

    def _down(self, cause: str) -> SinkError:
        text = (
            f"MLflow at {self.tracking_uri}: {cause} (mlflow.tracking_uri in evaluator.yaml names the store)"
        )
        return SinkError(_CREDENTIALS.sub("://", text))


def assessment_id(assessment: Assessment) -> str:
    """The id of a result in MLflow: a hash of its target, scorer, version and revision.

    A session's has the trace that it hangs on, too: one whose first turns the ledger no longer keeps begins anew on a
    later trace, and MLflow has each id once in all traces. That there finally was none has an id of its own, so that the
    result which a retry brings later takes its place.
    """
    target = assessment.target
    key = [target.type, target.target_id, assessment.name, assessment.version, assessment.revision]
    if target.type == "SESSION":
        key.append(target.trace_id)
    if isinstance(assessment.scored.outcome, Unscored):
        key.append("unscored")
    return f"a-{hashlib.sha256(orjson.dumps(key)).hexdigest()[:32]}"


def run_metrics(assessments: Sequence[Assessment]) -> dict[str, float]:
    """Per scorer: the mean of its values (yes is 1, no is 0; of a category whether it passed), and its coverage."""
    numbers: dict[str, list[float]] = defaultdict(list)
    judged: dict[str, list[bool]] = defaultdict(list)
    for assessment in assessments:
        outcome = assessment.scored.outcome
        judged[assessment.name].append(isinstance(outcome, Feedback))
        number = _number(outcome) if isinstance(outcome, Feedback) else None
        if number is not None:
            numbers[assessment.name].append(number)
    means = {f"{name}/mean": sum(values) / len(values) for name, values in numbers.items()}
    return means | {f"{name}/coverage": sum(flags) / len(flags) for name, flags in judged.items()}


def _number(feedback: Feedback) -> float | None:
    if isinstance(feedback.value, bool | int | float):
        return float(feedback.value)
    if feedback.value in ("yes", "no"):
        return float(feedback.value == "yes")
    return None if feedback.passed is None else float(feedback.passed)


def _run(run: EvaluationRun) -> dict[str, Any]:
    ranges = {"from": run.range_start.isoformat(), "to": run.range_end.isoformat()}
    versions = {f"scorer.{name}": version for name, version in run.scorers.items()}
    return {
        "run_id": run.run_id,
        "name": run.name,
        "start_ms": _milliseconds(run.started_at),
        "end_ms": _milliseconds(run.ended_at),
        "params": {**ranges, **versions, **(run.parameters or {})},
        "metrics": run_metrics(run.assessments),
    }


def _erased(erased: Erased) -> dict[str, Any]:
    """What is to be erased, in MLflow's words: all of a trace, or a session's results that hang on it up to a revision."""
    session = erased.target.target_id if erased.target.type == "SESSION" else None
    return {"trace_id": f"tr-{erased.target.trace_id}", "session": session, "revision": erased.revision}


def is_erased(metadata: Mapping[str, str], erased: Mapping[str, Any]) -> bool:
    """Whether our feedback on the trace of `erased` is part of that, by its metadata."""
    revision = int(metadata.get("evaluator.revision", 0))
    of_session = metadata.get("mlflow.trace.session") == erased["session"] and revision <= erased["revision"]
    return erased["session"] is None or of_session


def _item(assessment: Assessment) -> dict[str, Any]:
    """A result in MLflow's words. The trace's id there is `tr-` and its OpenTelemetry id."""
    usage = assessment.scored.usage
    return {
        "id": assessment_id(assessment),
        "trace_id": f"tr-{assessment.target.trace_id}",
        "span_id": assessment.target.span_id,
        "name": assessment.name,
        "source_type": assessment.source_type,
        "source_id": (usage.model if assessment.source_type == "LLM_JUDGE" else None) or assessment.name,
        "metadata": _metadata(assessment),
        "at_ms": _milliseconds(assessment.at),
        **_outcome(assessment.scored.outcome),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Feedback():
            return {"value": outcome.value, "rationale": outcome.rationale, "error": None}
        case Unscored():
            error = {"code": outcome.reason.value, "message": outcome.detail}
            return {"value": None, "rationale": None, "error": error}
        case _:
            assert_never(outcome)


def _metadata(assessment: Assessment) -> dict[str, str]:
    """MLflow's own keys where it has them, ours beside them; a value that is unknown has no key."""
    outcome = assessment.scored.outcome
    usage = assessment.scored.usage
    passed = outcome.passed if isinstance(outcome, Feedback) else None
    session = assessment.target.session_id if assessment.target.type == "SESSION" else None
    values = {
        "evaluator.assessment_id": assessment_id(assessment),
        "evaluator.version": assessment.version,
        "evaluator.revision": assessment.revision,
        "evaluator.run_id": assessment.run_id,
        "evaluator.at_ms": _milliseconds(assessment.at),
        "evaluator.passed": None if passed is None else str(passed).lower(),
        "evaluator.latency_ms": usage.latency_ms,
        "mlflow.assessment.scorerName": assessment.name,
        "mlflow.assessment.scorerVersion": assessment.version,
        "mlflow.assessment.judgeCost": usage.cost_usd,
        "mlflow.assessment.judgeInputTokens": usage.input_tokens,
        "mlflow.assessment.judgeOutputTokens": usage.output_tokens,
        "mlflow.trace.session": session,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _tell_of(not_taken: Sequence[str]) -> None:
    if not_taken:
        log.warning(
            "MLflow did not take some results",
            extra={"results": len(not_taken), "first": "; ".join(not_taken[:_NAMED])},
        )


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


async def _feed(child: asyncio.subprocess.Process, lines: Sequence[bytes]) -> None:
    """Write the lines to the child. That it went away meanwhile shows on its other side."""
    assert child.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        for line in lines:
            child.stdin.write(line + b"\n")
            await child.stdin.drain()
        child.stdin.close()
