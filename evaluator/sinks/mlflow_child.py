"""The process that talks to MLflow: the only file that imports it. It is started for one order, and ends.

Stdin holds JSON lines: an order (`do`, `tracking_uri`, `experiment`, …) and the feedback it is about, in the
order of `seq`. Stdout gets one line a feedback (`id`, `state`, `detail`) and a last one, `answer` or `down`.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
from mlflow import MlflowClient
from mlflow.entities import (
    Assessment,
    AssessmentError,
    AssessmentSource,
    DatasetRecord,
    Feedback,
    Metric,
    Param,
    RunStatus,
    TraceInfo,
)
from mlflow.exceptions import MlflowException, MlflowNotImplementedException, RestException
from mlflow.tracing.client import TracingClient
from urllib3.exceptions import ResponseError

from evaluator.sinks.mlflow import is_erased

OUR_ID = "evaluator.assessment_id"
OUR_RUN = "evaluator.run_id"
OUR_TIME = "evaluator.at_ms"
SOURCE_RUN = "mlflow.assessment.sourceRunId"
SESSION = "mlflow.trace.session"
_SERVER_FAILED = ResponseError.SPECIFIC_ERROR.format(status_code=500)
"""What MLflow's client says of a server that was asked again and answered 500 each time: its answer is lost by then."""
LOOKED_UP_AT_ONCE = 100
LINKED_AT_ONCE = 100
"""MLflow's bound on the traces that one call links to a run (mlflow.store.tracking)."""

Item = dict[str, Any]
Reply = dict[str, Any]
Value = TypeVar("Value")


class RefusedError(Exception):
    """The order cannot be carried out until somebody mends what the message names."""


class Store:
    """An MLflow store: which traces it knows, what is on them, and adding to it what is missing."""

    def __init__(self, tracking_uri: str) -> None:
        self.client = MlflowClient(tracking_uri=tracking_uri)
        self.traces = TracingClient(tracking_uri)
        self.remote = tracking_uri.startswith(("http://", "https://", "databricks"))
        self.threads = 8 if self.remote else 1

    def known(self, trace_ids: Sequence[str]) -> dict[str, list[Assessment]]:
        """The assessments of each of the traces that the store knows."""
        try:
            infos = self.traces.store.batch_get_trace_infos(list(trace_ids))
        except MlflowException as error:
            if not isinstance(error, MlflowNotImplementedException) and error.error_code not in (
                "NOT_IMPLEMENTED",
                "ENDPOINT_NOT_FOUND",
            ):
                raise
            infos = [info for trace_id in trace_ids if (info := self._info(trace_id)) is not None]
        return {info.trace_id: list(info.assessments) for info in infos}

    def _info(self, trace_id: str) -> TraceInfo | None:
        try:
            return self.traces.get_trace_info(trace_id)
        except MlflowException as error:
            if _is_missing(error):
                return None
            raise

    def publish(self, items: Iterable[Item]) -> Iterator[Reply]:
        """Add each feedback that is not there yet and that nothing newer stands for, trace by trace; one reply for each."""
        by_trace: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            by_trace[item["trace_id"]].append(item)
        with ThreadPoolExecutor(self.threads) as pool:
            for trace_ids in _batches(by_trace, LOOKED_UP_AT_ONCE):
                known = self.known(trace_ids)
                for trace_id in set(trace_ids) - set(known):
                    yield from (_reply(item, "unknown") for item in by_trace[trace_id])
                work = [(by_trace[trace_id], present) for trace_id, present in known.items()]
                for replies in pool.map(lambda part: self._publish_trace(*part), work):
                    yield from replies

    def _publish_trace(self, items: list[Item], present: list[Assessment]) -> list[Reply]:
        replies = []
        renamed = False
        for item in items:
            there = _under_the_id_of(item, present)
            if there is not None and _at(there) >= item["at_ms"]:
                self._mark_source(there, item)
                replies.append(_reply(item, "known"))
                continue
            if there is not None:
                present = self._make_way(item, present)
            reply, logged = self._post(item, present)
            replies.append(reply)
            if logged is not None:
                present.append(logged)
                renamed = renamed or logged.assessment_id != item["id"]
        if renamed:
            self._sweep(items[0]["trace_id"])
        return replies

    def _make_way(self, item: Item, present: list[Assessment]) -> list[Assessment]:
        """Delete what an earlier use of the trace's id left under the item's id; returns what is on the trace then."""
        for old in present:
            if _our_id(old) == item["id"]:
                self.traces.delete_assessment(item["trace_id"], old.assessment_id)
        return self.known([item["trace_id"]]).get(item["trace_id"], [])

    def _post(self, item: Item, present: list[Assessment]) -> tuple[Reply, Assessment | None]:
        """Post one feedback, unless a newer one stands in its place.

        What the store answers about this feedback is a reply; any other failure is the store's and rises.
        """
        feedback = _feedback(item)
        others = [old for old in present if _is_about_the_same(old, feedback)]
        if any(_at(old) > _at(feedback) for old in others):
            return _reply(item, "known"), None
        before = [old for old in others if old.valid is not False]
        if before:
            feedback.overrides = max(before, key=_at).assessment_id
        try:
            logged = self.traces.log_assessment(item["trace_id"], feedback)
        except MlflowException as error:
            if _is_missing(error):
                return _reply(item, "unknown"), None
            there = _under_the_id_of(item, self.known([item["trace_id"]]).get(item["trace_id"], []))
            if there is not None:  # the first request came through, only its reply was lost
                return _reply(item, "known"), there
            detail = f"{item['name']} on {item['trace_id']}: {error.error_code}"
            if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                return _reply(item, "refused", detail), None
            if self._answered(error):
                return _reply(item, "failed", detail), None
            raise
        return _reply(item, "logged"), logged

    def _answered(self, error: MlflowException) -> bool:
        """Whether the store said that it failed at this one thing: a server out of reach has the same code and says nothing.

        A database that is away has another code (mlflow.store.db.utils).
        """
        answered = not self.remote or isinstance(error, RestException) or _SERVER_FAILED in str(error)
        return error.error_code == "INTERNAL_ERROR" and answered

    def _mark_source(self, there: Assessment, item: Item) -> None:
        """Say which evaluation run a result comes from; one that several runs report belongs to none.

        MLflow's page of a run hides what another run is the source of, and shows what has no source.
        """
        reporter = item.get("reported_by")
        source = (there.metadata or {}).get(SOURCE_RUN)
        if reporter is None or source in (reporter, ""):
            return
        ours = item["metadata"].get(SOURCE_RUN) == reporter
        if source is None and not ours:
            return
        self.traces.store.update_assessment(
            trace_id=item["trace_id"],
            assessment_id=there.assessment_id,
            metadata={SOURCE_RUN: reporter if source is None else ""},
        )

    def _sweep(self, trace_id: str) -> None:
        """Where the store gives ids of its own, drop all but the first of what two publishers posted at once."""
        first: dict[str, Assessment] = {}
        present = self.known([trace_id]).get(trace_id, [])
        for assessment in sorted(present, key=lambda one: (one.create_time_ms or 0, one.assessment_id or "")):
            ours = (assessment.metadata or {}).get(OUR_ID)
            if ours is not None and first.setdefault(ours, assessment) is not assessment:
                self.traces.delete_assessment(trace_id, assessment.assessment_id)

    def forget(self, items: Sequence[Item]) -> None:
        """Delete our feedback on some traces, or, of an item with a session, what is about the session."""
        for batch in _batches(items, LOOKED_UP_AT_ONCE):
            known = self.known(sorted({item["trace_id"] for item in batch}))
            for item in batch:
                for one in known.get(item["trace_id"], []):
                    metadata = one.metadata or {}
                    if OUR_ID in metadata and is_erased(metadata, item):
                        self.traces.delete_assessment(item["trace_id"], one.assessment_id)

    def forget_records(self, experiment: str, trace_ids: Collection[str]) -> bool:
        """Delete the records of the experiment's datasets that were made from some traces; False where none can be read."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return True
        try:
            for dataset_id in self._datasets(found.experiment_id):
                records, _ = self.traces.store._load_dataset_records(dataset_id)
                gone = [one.dataset_record_id for one in records if _source_trace(one) in trace_ids]
                if gone:
                    self.traces.store.delete_dataset_records(dataset_id, gone)
        except NotImplementedError:
            return False
        except MlflowException as error:
            if "FileStore" in str(error):
                return True  # a folder of files has no datasets
            if error.error_code not in ("NOT_IMPLEMENTED", "ENDPOINT_NOT_FOUND"):
                raise
            return False
        return True

    def _datasets(self, experiment_id: str) -> list[str]:
        ids: list[str] = []
        token: str | None = None
        while True:
            page = self.traces.store.search_datasets([experiment_id], page_token=token)
            ids += [one.dataset_id for one in page]
            token = page.token
            if not token:
                return ids

    def experiment(self, name: str) -> str:
        """The experiment's id; it is made when there is none."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise RefusedError(
                f'the experiment "{name}" was deleted there: restore it, or name another in mlflow.experiment'
            )
        return str(found.experiment_id)

    def evaluation_run(self, experiment: str, run: dict[str, Any]) -> str:
        """The MLflow run of an evaluation with its parameters and metrics, found by our run id or made."""
        experiment_id = self.experiment(experiment)
        found = self.client.search_runs(
            [experiment_id], filter_string=f"tags.`{OUR_RUN}` = '{run['run_id']}'", max_results=1
        )
        started = found[0] if found else self._start_run(experiment_id, run)
        run_id = str(started.info.run_id)
        if started.info.status != RunStatus.to_string(RunStatus.FINISHED):
            at = run["end_ms"]  # a fixed time: a repeat writes the same points again, which adds none
            self.client.log_batch(
                run_id,
                metrics=[Metric(key, value, at, 0) for key, value in run["metrics"].items()],
                params=[Param(key, value) for key, value in run["params"].items()],
            )
        return run_id

    def _start_run(self, experiment_id: str, run: dict[str, Any]) -> Any:
        tags = {OUR_RUN: run["run_id"], "mlflow.runType": "genai_evaluate", "mlflow.source.name": "evaluator"}
        return self.client.create_run(
            experiment_id, start_time=run["start_ms"], tags=tags, run_name=run["name"]
        )

    def link(self, run_id: str, trace_ids: Sequence[str]) -> None:
        """Show the traces on the run's page; a folder of files cannot, and goes without."""
        for batch in _batches(trace_ids, LINKED_AT_ONCE):
            try:
                self.client.link_traces_to_run(batch, run_id)
            except MlflowException as error:
                if "not supported in FileStore" not in str(error):
                    raise
                return

    def finish(self, run_id: str, end_ms: int) -> None:
        self.client.set_terminated(run_id, "FINISHED", end_time=end_ms)


def carry_out(order: dict[str, Any], items: list[Item]) -> Iterator[Reply]:
    """Do what the order says. The last reply has the `answer`."""
    store = Store(order["tracking_uri"])
    match order["do"]:
        case "experiment":
            yield {"answer": store.experiment(order["experiment"])}
        case "publish":
            yield from store.publish(items)
            yield {"answer": ""}
        case "forget":
            store.forget(items)
            traces = {item["trace_id"] for item in items if item["session"] is None}
            yield {"answer": "" if store.forget_records(order["experiment"], traces) else "records left"}
        case "evaluation":
            run_id = store.evaluation_run(order["experiment"], order["run"])
            for item in items:
                item["reported_by"] = run_id
                if item["metadata"][OUR_RUN] == order["run"]["run_id"]:
                    item["metadata"][SOURCE_RUN] = run_id
            unknown = set()
            for reply in store.publish(items):
                if reply["state"] == "unknown":
                    unknown.add(reply["id"])
                yield reply
            store.link(run_id, sorted({item["trace_id"] for item in items if item["id"] not in unknown}))
            store.finish(run_id, order["run"]["end_ms"])
            yield {"answer": run_id}
        case other:
            raise ValueError(f"unknown order {other!r}")


def main() -> None:
    """Read one order from stdin, carry it out, say how it went."""
    replies = _private_stdout()
    order, *items = [orjson.loads(line) for line in sys.stdin.buffer]
    _stand_beside(order["tracking_uri"])
    try:
        for reply in carry_out(order, items):
            replies.write(orjson.dumps(reply) + b"\n")
    except Exception as error:  # noqa: BLE001 -- MLflow, and whatever database or server is behind it
        replies.write(orjson.dumps({"down": _cause(error)}) + b"\n")


def _stand_beside(tracking_uri: str) -> None:
    """Work in the folder of a SQLite store: MLflow puts the artifacts of a new experiment into `./mlruns`."""
    folder = Path(tracking_uri.removeprefix("sqlite:///")).parent
    if tracking_uri.startswith("sqlite:///") and folder.is_dir():
        os.chdir(folder)


def _private_stdout() -> BinaryIO:
    """Stdout for replies alone; whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return replies


def _feedback(item: Item) -> Feedback:
    error = item["error"]
    feedback = Feedback(
        name=item["name"],
        value=item["value"],
        error=AssessmentError(error_code=error["code"], error_message=error["message"]) if error else None,
        source=AssessmentSource(source_type=item["source_type"], source_id=item["source_id"]),
        metadata=item["metadata"],
        span_id=item["span_id"],
        rationale=item["rationale"],
        create_time_ms=item["at_ms"],
        last_update_time_ms=item["at_ms"],
    )
    feedback.assessment_id = item["id"]
    return feedback


def _source_trace(record: DatasetRecord) -> str | None:
    """The trace that a dataset's record was made from, by MLflow's or by OpenTelemetry's id."""
    source = record.source.source_data if record.source is not None else {}
    told = source.get("trace_id") or record.source_id
    return None if told is None else f"tr-{str(told).removeprefix('tr-')}"


def _our_id(assessment: Assessment) -> str | None:
    ours: str | None = (assessment.metadata or {}).get(OUR_ID, assessment.assessment_id)
    return ours


def _under_the_id_of(item: Item, present: Iterable[Assessment]) -> Assessment | None:
    return next((old for old in present if _our_id(old) == item["id"]), None)


def _at(assessment: Assessment) -> int:
    """When a result came about, in milliseconds: a folder of files keeps as its own time when it was posted."""
    return int((assessment.metadata or {}).get(OUR_TIME) or assessment.create_time_ms or 0)


def _is_about_the_same(old: Assessment, new: Feedback) -> bool:
    """Whether `old` is a result of ours by the same scorer on the same target."""
    return (
        OUR_ID in (old.metadata or {})
        and old.name == new.name
        and (old.span_id or None) == (new.span_id or None)
        and (old.metadata or {}).get(SESSION) == (new.metadata or {}).get(SESSION)
    )


def _is_missing(error: MlflowException) -> bool:
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def _reply(item: Item, state: str, detail: str = "") -> Reply:
    return {"id": item["id"], "state": state, "detail": detail}


def _cause(error: BaseException) -> str:
    """What started a foreign error: the first line of the innermost one, at a length that fits in a sentence."""
    if isinstance(error, RefusedError):
        return str(error)
    inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if inner is not None:
        return _cause(inner)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _batches(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch


if __name__ == "__main__":
    main()
