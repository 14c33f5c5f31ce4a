"""Results into real MLflow stores: a database, a folder of files, and a server."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from evaluator.errors import SinkError
from evaluator.feedback import Assessment, Erased, Feedback, Outcome, Reason, Scored, Target, Unscored, Usage
from evaluator.publish import publish
from evaluator.redaction import Redactor
from evaluator.sinks import mlflow as sink
from evaluator.sinks.cursor import LedgerCursorSink
from evaluator.sinks.mlflow import EvaluationRun, MlflowPublisher, assessment_id
from tests import traffic
from tests.bench import Bench, Greets

# MLflow's own imports and its folder store warn about what they will drop one day.
pytestmark = pytest.mark.filterwarnings("ignore")
NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)
TRACES = [f"{number:032x}" for number in range(1, 41)]


def an_assessment(
    trace_id: str, name: str = "tone", outcome: Outcome | None = None, **changes: Any
) -> Assessment:
    made = Assessment(
        seq=1,
        target=Target(type="TRACE", target_id=trace_id, trace_id=trace_id),
        name=name,
        version="abc123",
        revision=0,
        source_type="LLM_JUDGE",
        scored=Scored(
            outcome=outcome or Feedback(value="yes", passed=True, rationale="It names three tickets."),
            usage=Usage(
                model="openai/gpt-5-mini", calls=1, input_tokens=900, output_tokens=40, cost_usd=0.001
            ),
        ),
        run_id="tick-1",
        at=NOON,
    )
    return replace(made, **changes)


class MlflowStore:
    """A store as its users see it, through MLflow's own client."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient
        from mlflow.tracing.client import TracingClient

        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri)
        self.traces = TracingClient(uri)

    def add_traces(self, trace_ids: list[str]) -> None:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        experiment = self.client.get_experiment_by_name("agent")
        for trace_id in trace_ids:
            self.traces.start_trace(
                TraceInfo(
                    trace_id=f"tr-{trace_id}",
                    trace_location=TraceLocation.from_experiment_id(experiment.experiment_id),
                    request_time=1_762_000_000_000,
                    state=TraceState.OK,
                )
            )

    def feedback(self, trace_id: str) -> list[Any]:
        return list(self.traces.get_trace_info(f"tr-{trace_id}").assessments)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowStore]:
    """A database that knows TRACES, made as `evaluator init` does; each test takes traces of its own."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in sink.CHILD_ENVIRONMENT.items():
            environment.setenv(name, value)
        folder = tmp_path_factory.mktemp("mlflow")
        uri = f"sqlite:///{folder}/mlflow.db"
        publisher = MlflowPublisher(tracking_uri=uri, experiment="agent", state=folder)
        experiment = asyncio.run(publisher.ensure_experiment())
        made = MlflowStore(uri)
        assert made.client.get_experiment(experiment).artifact_location.startswith(str(folder))
        made.add_traces(TRACES)
        yield made


def a_publisher(store: MlflowStore, state: Path, clock: list[datetime] | None = None) -> MlflowPublisher:
    times = clock or [NOON]
    return MlflowPublisher(tracking_uri=store.uri, experiment="agent", state=state, clock=lambda: times[-1])


def carry_out(store: MlflowStore, *assessments: Assessment) -> dict[str, str]:
    """What the child does, without the seconds that its start takes."""
    from evaluator.sinks import mlflow_child

    items = [sink._item(assessment) for assessment in assessments]
    order = {"do": "publish", "tracking_uri": store.uri, "experiment": "agent"}
    *replies, end = mlflow_child.carry_out(order, items)
    assert end == {"answer": ""}
    return {reply["id"]: reply["state"] for reply in replies}


async def test_a_result_is_logged_once_and_one_of_an_unknown_trace_when_the_trace_is_there(
    store: MlflowStore, tmp_path: Path
) -> None:
    known, late = TRACES[0], "f" * 32
    clock = [NOON]
    publisher = a_publisher(store, tmp_path, clock)
    results = [an_assessment(known), an_assessment(late)]

    first = await publisher.publish(results)

    assert (first.logged, first.waiting) == (1, 1)
    assert not publisher.due()
    store.add_traces([late])
    clock.append(NOON + timedelta(minutes=1))
    assert publisher.due()

    second = await publisher.publish([results[0]])

    assert (second.logged, second.known, second.waiting) == (1, 1, 0)
    assert [len(store.feedback(trace_id)) for trace_id in (known, late)] == [1, 1]
    assert not publisher.due()


def test_what_must_not_leave_does_not_reach_mlflow(tmp_path: Path) -> None:
    publisher = MlflowPublisher(
        tracking_uri="sqlite://", experiment="agent", state=tmp_path, redact=Redactor(["email"]).redact
    )
    quoting = an_assessment(
        TRACES[0], outcome=Feedback(value="no", passed=False, rationale="It names ann@x.org.")
    )

    assert publisher._item(quoting)["rationale"] == "It names [EMAIL_1]."


def test_feedback_says_in_mlflows_words_what_produced_it(store: MlflowStore) -> None:
    trace_id = TRACES[1]
    refused = Unscored(reason=Reason.CONTEXT_OVERFLOW, detail="120,000 tokens are too many for the model")
    on_span = Target(
        type="SPAN", target_id=f"{trace_id}:00000000000000aa", trace_id=trace_id, span_id="00000000000000aa"
    )
    number = Feedback(value=0.5, passed=None, rationale="Half of it.")

    carry_out(
        store,
        an_assessment(trace_id, "tone"),
        an_assessment(trace_id, "too_long", refused),
        an_assessment(
            trace_id, "share", number, source_type="CODE", scored=Scored(outcome=number), target=on_span
        ),
    )

    found = {one.name: one for one in store.feedback(trace_id)}
    tone, too_long, share = found["tone"], found["too_long"], found["share"]
    assert (tone.value, tone.rationale) == ("yes", "It names three tickets.")
    assert (tone.source.source_type, tone.source.source_id) == ("LLM_JUDGE", "openai/gpt-5-mini")
    assert tone.metadata["mlflow.assessment.judgeCost"] == "0.001"
    assert tone.metadata["mlflow.assessment.scorerVersion"] == "abc123"
    assert tone.create_time_ms == NOON.timestamp() * 1000
    assert (too_long.value, too_long.error.error_code) == (None, "context_overflow")
    assert (share.value, share.span_id, share.source.source_id) == (0.5, "00000000000000aa", "share")


def test_a_new_version_of_a_result_takes_the_place_of_the_old_one(store: MlflowStore) -> None:
    old = an_assessment(TRACES[2])
    new = replace(old, version="def456", at=NOON + timedelta(hours=1))

    carry_out(store, old)
    carry_out(store, new)

    assert {one.assessment_id: one.valid for one in store.feedback(TRACES[2])} == {
        assessment_id(old): False,
        assessment_id(new): True,
    }


def test_a_person_s_feedback_of_the_same_name_stays_as_it_is(store: MlflowStore) -> None:
    from mlflow.entities import AssessmentSource
    from mlflow.entities import Feedback as TheirFeedback

    source = AssessmentSource(source_type="HUMAN", source_id="ada@example.com")
    theirs = store.traces.log_assessment(
        f"tr-{TRACES[3]}", TheirFeedback(name="tone", value="no", source=source, create_time_ms=1)
    )

    carry_out(store, an_assessment(TRACES[3]))

    found = {one.assessment_id: one.valid for one in store.feedback(TRACES[3])}
    assert found[theirs.assessment_id] is True
    assert len(found) == 2


async def test_a_child_killed_in_the_middle_leaves_nothing_lost_and_nothing_twice(
    store: MlflowStore, tmp_path: Path
) -> None:
    results = [an_assessment(trace_id, name) for trace_id in TRACES[10:30] for name in ("a", "b", "c")]
    order = {"do": "publish", "tracking_uri": store.uri, "experiment": "agent"}
    lines = [orjson.dumps(order), *(orjson.dumps(sink._item(one)) for one in results)]
    child = await asyncio.create_subprocess_exec(
        *sink.CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**20
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"\n".join(lines))
    child.stdin.close()
    await child.stdout.readline()
    child.kill()
    await child.wait()

    report = await a_publisher(store, tmp_path).publish(results)

    assert report.logged > 0
    assert report.known > 0
    assert report.logged + report.known == len(results)
    assert [len(store.feedback(trace_id)) for trace_id in TRACES[10:30]] == [3] * 20


def test_a_store_with_ids_of_its_own_gets_each_result_once_and_is_swept_for_doubles(tmp_path: Path) -> None:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    folder = MlflowStore(str(tmp_path / "mlruns"))
    folder.client.create_experiment("agent")
    folder.add_traces(TRACES[:1])
    first, second = an_assessment(TRACES[0], "a"), an_assessment(TRACES[0], "b")

    assert carry_out(folder, first) == {assessment_id(first): "logged"}
    assert carry_out(folder, first) == {assessment_id(first): "known"}
    logged = folder.feedback(TRACES[0])[0]
    assert logged.assessment_id != assessment_id(first)
    folder.traces.store.create_assessment(replace_id(logged))  # as another publisher does at the same time
    assert len(folder.feedback(TRACES[0])) == 2

    carry_out(folder, second)

    assert sorted(one.name for one in folder.feedback(TRACES[0])) == ["a", "b"]


def replace_id(assessment: Any) -> Any:
    assessment.assessment_id = None
    return assessment


async def test_an_evaluation_is_a_run_with_means_that_is_logged_once(
    store: MlflowStore, tmp_path: Path
) -> None:
    traces = TRACES[30:33]
    live = an_assessment(traces[0], "tone", Feedback(value="no", passed=False, rationale="Cold."))
    carry_out(store, live)
    own = [an_assessment(trace_id, "tone", run_id="eval-1") for trace_id in traces[1:]]
    unscored = an_assessment(
        "e" * 32, "tone", Unscored(reason=Reason.TIMEOUT, detail="60 s"), run_id="eval-1"
    )
    run = EvaluationRun(
        run_id="eval-1",
        name="eval 2026-11-06",
        range_start=NOON,
        range_end=NOON + timedelta(days=1),
        started_at=NOON,
        ended_at=NOON + timedelta(minutes=5),
        scorers={"tone": "abc123"},
        assessments=[live, *own, unscored],
    )
    publisher = a_publisher(store, tmp_path)

    run_id = await publisher.log_evaluation(run)

    assert await publisher.log_evaluation(run) == run_id
    logged = store.client.get_run(run_id)
    assert logged.data.metrics == {"tone/mean": pytest.approx(2 / 3), "tone/coverage": 0.75}
    assert logged.data.params["scorer.tone"] == "abc123"
    assert logged.data.tags["mlflow.runType"] == "genai_evaluate"
    assert logged.info.status == "FINISHED"
    assert len(store.client.get_metric_history(run_id, "tone/mean")) == 1
    experiment = store.client.get_experiment_by_name("agent").experiment_id
    assert len(store.client.search_runs([experiment])) == 1
    linked = store.client.search_traces(locations=[experiment], run_id=run_id, include_spans=False)
    assert {trace.info.trace_id for trace in linked} == {f"tr-{trace_id}" for trace_id in traces}
    sources = [
        store.feedback(trace_id)[0].metadata.get("mlflow.assessment.sourceRunId") for trace_id in traces
    ]
    assert sources == [None, run_id, run_id]


async def test_a_store_that_is_down_is_said_without_its_password(tmp_path: Path) -> None:
    publisher = MlflowPublisher(
        tracking_uri=f"http://ada:secret@127.0.0.1:{a_free_port()}", experiment="agent", state=tmp_path
    )

    with pytest.raises(SinkError, match=r"MLflow at http://127\.0\.0\.1.*refused") as raised:
        await publisher.publish([an_assessment(TRACES[0])])

    assert "secret" not in str(raised.value)
    assert not publisher.due()


async def test_a_child_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "CHILD", (sys.executable, "-c", "import time; time.sleep(60)"))
    publisher = MlflowPublisher(
        tracking_uri="http://127.0.0.1:1", experiment="agent", state=tmp_path, silence=timedelta(seconds=0.5)
    )

    with pytest.raises(SinkError, match=r"no answer for"):
        await publisher.publish([an_assessment(TRACES[0])] * 1000)


def test_a_sessions_newer_revision_takes_the_older_ones_place_on_its_first_trace(store: MlflowStore) -> None:
    first = TRACES[30]
    target = Target(type="SESSION", target_id="s", trace_id=first, session_id="s")
    of_trace = an_assessment(first)
    older = an_assessment(first, target=target)
    newer = an_assessment(first, target=target, revision=1, at=NOON + timedelta(minutes=9))

    carry_out(store, of_trace, older)
    carry_out(store, newer)

    found = {one.assessment_id: one for one in store.feedback(first)}
    assert {key: one.valid for key, one in found.items()} == {
        assessment_id(of_trace): True,
        assessment_id(older): False,
        assessment_id(newer): True,
    }
    assert found[assessment_id(newer)].metadata["mlflow.trace.session"] == "s"


def test_a_session_that_begins_anew_on_a_later_trace_is_logged_there(store: MlflowStore) -> None:
    begun, anew = TRACES[4], TRACES[5]
    results = [
        an_assessment(one, target=Target(type="SESSION", target_id="anew", trace_id=one, session_id="anew"))
        for one in (begun, anew)
    ]

    carry_out(store, results[0])
    again = carry_out(store, results[1])

    assert list(again.values()) == ["logged"]
    assert [len(store.feedback(trace_id)) for trace_id in (begun, anew)] == [1, 1]


async def test_a_result_at_which_the_store_fails_holds_up_no_other_and_is_named(
    store: MlflowStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned, elsewhere, sound = TRACES[6], TRACES[7], TRACES[8]
    result = an_assessment(poisoned)
    store.traces.log_assessment(f"tr-{elsewhere}", with_id(assessment_id(result)))

    report = await a_publisher(store, tmp_path).publish([result, an_assessment(sound)])

    assert (report.logged, report.waiting) == (1, 1)
    assert len(store.feedback(sound)) == 1
    [warning] = [one for one in caplog.records if one.message == "MLflow did not take some results"]
    assert vars(warning)["first"] == f"tone on tr-{poisoned}: INTERNAL_ERROR"


def with_id(assessment_id: str) -> Any:
    from mlflow.entities import Feedback as TheirFeedback

    feedback = TheirFeedback(name="theirs", value="no")
    feedback.assessment_id = assessment_id
    return feedback


def test_the_result_of_a_trace_id_that_is_used_again_takes_the_place_of_the_old_one(
    store: MlflowStore,
) -> None:
    trace_id = TRACES[9]
    of_old = an_assessment(trace_id)
    revised = replace(of_old, revision=1, at=NOON + timedelta(hours=1))
    no = Feedback(value="no", passed=False, rationale="It is another trace.")
    of_new = an_assessment(trace_id, outcome=no, run_id="tick-9", at=NOON + timedelta(days=30))
    carry_out(store, of_old, revised)

    states = [carry_out(store, one)[assessment_id(one)] for one in (of_new, of_new, of_old)]

    assert states == ["logged", "known", "known"]
    found = {one.assessment_id: (one.value, one.valid) for one in store.feedback(trace_id)}
    assert found == {assessment_id(of_new): ("no", True), assessment_id(revised): ("yes", False)}


def test_an_older_result_that_comes_late_does_not_stand_beside_the_newer_one(store: MlflowStore) -> None:
    older = an_assessment(TRACES[33])
    newer = replace(older, revision=1, at=NOON + timedelta(hours=1))
    carry_out(store, newer)

    late = carry_out(store, older)

    assert late == {assessment_id(older): "known"}
    assert [(one.assessment_id, one.valid) for one in store.feedback(TRACES[33])] == [
        (assessment_id(newer), True)
    ]


def test_in_a_folder_of_files_too_a_result_that_comes_late_is_known_by_its_own_time(tmp_path: Path) -> None:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    folder = MlflowStore(str(tmp_path / "mlruns"))
    folder.client.create_experiment("agent")
    folder.add_traces(TRACES[:1])
    older = an_assessment(TRACES[0], at=datetime(2040, 1, 1, tzinfo=UTC))
    newer = replace(older, revision=1, at=datetime(2040, 1, 2, tzinfo=UTC))

    states = [*carry_out(folder, newer).values(), *carry_out(folder, older).values()]

    assert states == ["logged", "known"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real `mlflow server` on loopback."""
    port = a_free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, **sink.CHILD_ENVIRONMENT}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)


@pytest.mark.slow
async def test_a_server_gets_a_result_once_on_a_trace_that_came_by_otlp(server: str, tmp_path: Path) -> None:
    publisher = MlflowPublisher(tracking_uri=server, experiment="agent", state=tmp_path)
    experiment = await publisher.ensure_experiment()
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = bytes.fromhex(TRACES[0]), b"\x01" * 8, "invoke_agent"
    span.start_time_unix_nano, span.end_time_unix_nano = 1_762_000_000 * 10**9, 1_762_000_001 * 10**9
    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server}/v1/traces", data=request.SerializeToString(), headers=headers) as response,
    ):
        assert response.status == 200
    result = an_assessment(TRACES[0])

    first = await publisher.publish([result])
    second = await publisher.publish([result])

    assert (first.logged, second.logged, second.known) == (1, 0, 1)
    [feedback] = MlflowStore(server).feedback(TRACES[0])
    assert feedback.assessment_id == assessment_id(result)


@pytest.mark.slow
async def test_a_server_that_fails_at_one_result_takes_the_others_and_the_newer_ones(
    server: str, tmp_path: Path
) -> None:
    publisher = MlflowPublisher(tracking_uri=server, experiment="agent", state=tmp_path)
    await publisher.ensure_experiment()
    store = MlflowStore(server)
    store.add_traces(TRACES[:3])
    poisoned, sound = an_assessment(TRACES[0]), an_assessment(TRACES[1])
    store.traces.log_assessment(f"tr-{TRACES[2]}", with_id(assessment_id(poisoned)))

    first = await publisher.publish([poisoned, sound])
    again = await publisher.publish([replace(sound, at=NOON + timedelta(days=30))])

    assert (first.logged, first.waiting) == (1, 1)
    assert again.logged == 1
    assert [one.create_time_ms for one in store.feedback(TRACES[1])] == [
        (NOON + timedelta(days=30)).timestamp() * 1000
    ]


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_what_is_forgotten_goes_with_its_dataset_records_and_what_waits_and_nothing_else_does(
    store: MlflowStore, tmp_path: Path
) -> None:
    gone, other, unknown = TRACES[36], TRACES[37], "fad0" * 8
    session = Target(type="SESSION", target_id="s", trace_id=other, session_id="s")
    since = an_assessment(other, "calm", target=session, revision=1)
    carry_out(
        store, an_assessment(gone), an_assessment(other), an_assessment(other, "calm", target=session), since
    )
    tracking = store.traces.store
    experiment = store.client.get_experiment_by_name("agent").experiment_id
    dataset = tracking.create_dataset("failures", experiment_ids=[experiment]).dataset_id
    records = [
        {
            "inputs": {"asked": trace_id},
            "source": {"source_type": "TRACE", "source_data": {"trace_id": f"tr-{trace_id}"}},
        }
        for trace_id in (gone, other)
    ]
    tracking.upsert_dataset_records(dataset, records)
    publisher = a_publisher(store, tmp_path)
    await publisher.publish([an_assessment(unknown)])
    waited = publisher._waiting.due(NOON + timedelta(minutes=2))

    targets = [Target(type="TRACE", target_id=one, trace_id=one) for one in (gone, unknown)]
    await publisher.forget([Erased(target=target) for target in (*targets, session)])

    left, _ = tracking._load_dataset_records(dataset)
    assert len(waited) == 1
    assert publisher._waiting.due(NOON + timedelta(minutes=2)) == {}
    assert store.feedback(gone) == []
    assert sorted(one.name for one in store.feedback(other)) == ["calm", "tone"]
    assert {one.metadata["evaluator.revision"] for one in store.feedback(other) if one.name == "calm"} == {
        "1"
    }
    assert [record.inputs for record in left] == [{"asked": other}]


async def test_a_folder_of_files_forgets_too(tmp_path: Path) -> None:
    folder = MlflowPublisher(tracking_uri=str(tmp_path / "mlruns"), experiment="agent", state=tmp_path)
    await folder.ensure_experiment()

    await folder.forget([Erased(target=Target(type="TRACE", target_id=TRACES[0], trace_id=TRACES[0]))])


async def test_what_waited_in_a_state_that_was_lost_is_read_again_from_the_ledger(
    store: MlflowStore, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    late = traffic.trace_id("late")
    bench.append(traffic.answer("late"))
    bench.later(minutes=10)
    await bench.tick(Greets())

    def to_mlflow() -> LedgerCursorSink:
        publisher = MlflowPublisher(
            tracking_uri=store.uri, experiment="agent", state=tmp_path / "state", clock=lambda: bench.now
        )
        return LedgerCursorSink(publisher, bench.ledger.open)

    await publish(bench.ledger, [to_mlflow()])
    cursor = await to_mlflow().cursor()
    shutil.rmtree(tmp_path / "state")
    store.add_traces([late])
    bench.later(minutes=10)

    behind = await publish(bench.ledger, [to_mlflow()])

    assert behind == []
    assert [one.name for one in store.feedback(late)] == ["greets"]
    assert await to_mlflow().cursor() == cursor
    assert not to_mlflow().due()


async def test_what_is_given_up_is_said_with_how_many_there_are(
    store: MlflowStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [NOON]
    publisher = a_publisher(store, tmp_path, clock)
    await publisher.publish([an_assessment("9" * 32), an_assessment("8" * 32)])
    waited = publisher.waiting()
    clock.append(NOON + timedelta(minutes=61))

    report = await publisher.publish([])

    assert (waited, publisher.waiting(), report.given_up) == (2, 0, 2)
    [warning] = [one for one in caplog.records if one.message.startswith("results were given up")]
    assert vars(warning)["given_up"] == 2
