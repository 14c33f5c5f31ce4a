"""Tables on an object store: the main job over a real S3 API, and what happens when the store says no, or nothing."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import aiohttp
import pytest

from evaluator.collector.server import Collector
from evaluator.commands.evaluations import OfflineRequest, run_offline
from evaluator.config import Config
from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.provision import provision
from evaluator.tables.schemas import SPANS
from evaluator.tables.snapshot import CommitConflict
from evaluator.tables.spans import CLEANED_UP, FOUND_BY_TIME, SpansTable
from evaluator.wiring import build_collector, build_tables
from evaluator.worker.turns import Worker
from tests.project import CODE_ONLY, ONE_JUDGE, Project
from tests.s3 import REGION, ROOT_KEY, S3
from tests.stub_provider import StubProvider
from tests.traffic import NOON, answer, append, trace_id

IMPATIENT = {"timeout": "1s", "connect_timeout": "1s", "retry_timeout": "2s", "max_retries": "2"}
PRICE = {"input_per_million": 1, "output_per_million": 1}
DAYS = ("--from", "2026-11-19", "--to", "2026-11-22")
ONE_EACH = "select trace_id, name, count(*) as n from assessments group by all"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with S3() as running:
        running.make_bucket("traces")
        yield running


@pytest.fixture
def folder(s3: S3) -> str:
    """A place of its own for each test."""
    s3.mend()
    return f"s3://traces/{uuid4().hex}"


def a_project(tmp_path: Path, s3: S3, folder: str, stub: StubProvider, **config: Any) -> Project:
    """A project whose tables lie on the store, which it knows from the usual environment."""
    environment = {**s3.environment(), "OPENAI_API_KEY": "key"}
    judge = {"base_url": stub.base_url, "price": PRICE, "max_concurrency": 2}
    return Project.create(tmp_path, ONE_JUDGE, environment=environment, tables=folder, judge=judge, **config)


def spans_at(s3: S3, folder: str) -> DeltaStore:
    return DeltaStore(f"{folder}/agent_otel_spans", s3.options())


def test_the_main_job_runs_on_an_object_store(tmp_path: Path, s3: S3, folder: str) -> None:
    """A worker is killed, two go on at once, and what comes after finds one result each."""
    with StubProvider(latency=0.5) as stub:
        project = a_project(tmp_path, s3, folder, stub)
        append(spans_at(s3, folder), [answer(f"t{number}", f"Hello {number}") for number in range(4)])
        killed = project.start("once")
        while not stub.requests:
            time.sleep(0.05)
        killed.kill()
        killed.communicate()

        at_once = [project.start("once", "--json") for _ in range(2)]
        told = [json.loads(process.communicate(timeout=60)[0]) for process in at_once]
        offline = project.run("eval", *DAYS, "--json").json()
        explained = project.run("explain", trace_id("t1"))
        retried = project.run("retry")

        assert sum(summary["results"] for summary in told) == 8
        assert (offline["reused"], offline["calls"]) == (8, 0)
        assert ("polite" in explained.out, retried.code) == (True, 0)
        assert 4 <= stub.count <= 6  # what was out when the first was killed may have been paid for twice
        assert sorted(row["n"] for row in project.sql(ONE_EACH)) == [1] * 8
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".evaluator",
            "evaluator.yaml",
            "guidelines",
        ]

        append(spans_at(s3, folder), [answer("more")])
        paid = stub.count
        s3.add_key("reader", reads_only=["traces/"])
        refused = project.run("once", AWS_ACCESS_KEY_ID="reader")

        assert (refused.code, stub.count) == (1, paid)
        assert f"{folder}/agent_eval_ledger: cannot be written: no permission to write there" in refused.err
        assert refused.err.count("\n") == 1


async def send_a_trace(collector: Collector) -> None:
    """One ended root over OTLP; it is durable when this returns."""
    sent = {
        "traceId": "a" * 32,
        "spanId": "b" * 16,
        "name": "root",
        "startTimeUnixNano": str(time.time_ns() - 10**9),
        "endTimeUnixNano": str(time.time_ns()),
    }
    await collector.start("127.0.0.1", 0, 0)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{collector.http_port}/v1/traces",
            json={"resourceSpans": [{"scopeSpans": [{"spans": [sent]}]}]},
        ) as answered,
    ):
        assert answered.status == 200
    await collector.stop(timedelta(seconds=5))


async def test_the_collector_and_the_worker_meet_on_an_object_store(
    tmp_path: Path, s3: S3, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "guidelines").mkdir()
    (tmp_path / "guidelines" / "code.yaml").write_text(CODE_ONLY)
    config = Config(home=tmp_path, tables=folder, settle="0s", publish=["annotations"])
    provision(config)
    tables = build_tables(config)
    tables.ledger.provision()
    await send_a_trace(build_collector(config, "127.0.0.1"))
    worker = Worker(config, tables)
    s3.requests()

    news = await worker.turn(wait=False)
    with_news = len(s3.all_requests())
    none = await worker.turn(wait=False)
    looked = len(s3.all_requests())
    at_rest = await worker.turn(wait=False)
    at_rest_requests = [asked.method for asked in s3.requests()]
    await worker.close()

    assert (news.summary.results, none.summary.results, at_rest.summary.results) == (1, 0, 0)
    assert at_rest_requests == ["HEAD"] * 3
    assert looked < with_news


def test_a_store_that_fails_for_a_while_delays_and_loses_nothing(s3: S3, folder: str) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    s3.break_down(status=503, times=11)

    assert append(store, [answer("a")]) == 1
    assert store.open().query("select count(*) as n from t").to_pylist() == [{"n": 1}]


@pytest.mark.parametrize("refused", ["agent_eval_ledger", "agent_otel_annotations"])
async def test_a_table_that_cannot_be_written_is_named_before_any_paid_call(
    tmp_path: Path, s3: S3, folder: str, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    (tmp_path / "guidelines").mkdir()
    (tmp_path / "guidelines" / "judges.yaml").write_text(ONE_JUDGE)
    s3.add_key("reader", reads_only=[f"{folder.removeprefix('s3://')}/{refused}"])
    with StubProvider() as stub:
        judge = {"base_url": stub.base_url, "price": PRICE}
        config = Config(
            home=tmp_path,
            tables=folder,
            settle="0s",
            publish=["annotations"],
            judge=judge,
            storage_options=s3.options(),
        )
        provision(config)
        build_tables(config).ledger.provision()
        append(spans_at(s3, folder), [answer("a")])
        denied = config.model_copy(update={"storage_options": s3.options("reader")})
        worker = Worker(denied, build_tables(denied))
        within = OfflineRequest(start=NOON - timedelta(days=1), end=NOON + timedelta(days=1))

        told = f"{folder}/{refused}: cannot be written: no permission to write there (AccessDenied)"
        for work in (worker.turn(wait=True), run_offline(denied, within)):
            with pytest.raises(TableError) as raised:
                await work
            assert str(raised.value) == told
        await worker.close()
        assert stub.count == 0

        worker = Worker(config, build_tables(config))
        assert (await worker.turn(wait=True)).summary.results == 2
        await worker.close()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"access_key_id": "nobody"}, "the store does not accept the key (InvalidAccessKeyId)"),
        (
            {"endpoint_url": "http://127.0.0.1:9", **IMPATIENT},
            "the store does not answer (Connection refused",
        ),
    ],
)
def test_what_the_store_says_is_said_in_a_line(
    s3: S3, folder: str, changed: dict[str, str], told: str
) -> None:
    spans_at(s3, folder).create(SPANS)
    store = DeltaStore(f"{folder}/agent_otel_spans", {**s3.options(), **changed})

    for asked in (store.open, store.exists, store.check_writable):
        with pytest.raises(TableError) as raised:
            asked()
        assert str(raised.value).startswith(store.uri)
        assert told in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_bucket_that_is_not_there_is_said(s3: S3) -> None:
    store = DeltaStore("s3://nowhere/agent_otel_spans", s3.options())

    with pytest.raises(TableError, match=r"there is no such bucket or container \(NoSuchBucket\)"):
        store.open()
    with pytest.raises(TableError, match="NoSuchBucket"):
        store.create(SPANS)


def test_a_store_that_hangs_is_given_up(s3: S3, folder: str) -> None:
    spans_at(s3, folder).create(SPANS)
    store = DeltaStore(f"{folder}/agent_otel_spans", s3.options(**IMPATIENT))
    s3.break_down(hang=3, times=3)

    with pytest.raises(TableError, match=r"the store does not answer \(operation timed out\)"):
        store.has_commit_after(0)


def test_a_commit_whose_reply_was_lost_is_found_by_looking_again(s3: S3, folder: str) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    snapshot = DeltaStore(store.uri, s3.options(**IMPATIENT)).open()
    s3.lose_reply("PUT", "_delta_log/00000000000000000001.json")

    with pytest.raises(CommitConflict):
        snapshot.append(SPANS.empty_table(), {"seq": 1})

    assert store.open().transaction("seq") == 1


def test_of_two_commits_at_once_one_wins(s3: S3, folder: str) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    outcomes: Counter[str] = Counter()

    def contend() -> None:
        for _ in range(5):
            snapshot = store.open()
            try:
                snapshot.append(SPANS.empty_table(), {"seq": (snapshot.transaction("seq") or 0) + 1})
                outcomes["won"] += 1
            except CommitConflict:
                outcomes["lost"] += 1

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.total() == 15
    assert outcomes["won"] == store.open().transaction("seq") == store.open().version


def test_the_api_under_test_lets_one_of_many_conditional_puts_win(s3: S3) -> None:
    statuses: Counter[int] = Counter()
    headers = {
        "If-None-Match": "*",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={ROOT_KEY}/20261122/{REGION}/s3/aws4_request",
    }

    def put(number: int) -> None:
        asked = Request(f"{s3.endpoint}/traces/one", method="PUT", headers=headers, data=b"%d" % number)
        try:
            with urlopen(asked) as answered:
                statuses[answered.status] += 1
        except HTTPError as error:
            with error:
                statuses[error.code] += 1

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == {200: 1, 412: 11}


def test_the_probe_for_news_costs_one_request(s3: S3, folder: str) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    append(store, [answer("a")])
    s3.requests()

    told = [(version, store.has_commit_after(version), len(s3.requests())) for version in (0, 1, 7)]

    assert told == [(0, True, 1), (1, False, 1), (7, False, 1)]


def test_a_commit_of_spans_is_read_with_three_requests_in_its_order(s3: S3, folder: str) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    for number in range(10):
        append(store, [answer(f"{number}")])
    spans = SpansTable(store, lambda: NOON).open()
    s3.requests()

    batch = spans.since(0, None)

    asked = s3.requests()
    assert [arrival.span.trace_id for arrival in batch.arrivals] == [trace_id(f"{n}") for n in range(10)]
    assert [arrival.commit for arrival in batch.arrivals] == list(range(1, 11))
    assert Counter(request.method for request in asked) == {"GET": 30}


def test_files_that_were_vacuumed_are_caught_up_on(s3: S3, folder: str) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    for number in range(3):
        append(store, [answer(f"{number}")])
    snapshot = store.open()
    snapshot.compact()
    snapshot.vacuum(keep=timedelta(0), unknown=False, dry_run=False)
    spans = SpansTable(store, lambda: NOON).open()

    batch = spans.since(1, None)

    assert batch.caught_up == CLEANED_UP
    assert {arrival.span.trace_id for arrival in batch.arrivals} == {trace_id(f"{n}") for n in range(3)}
    again = spans.of_traces({trace_id("1")}, [2], None)
    assert [(arrival.span.trace_id, arrival.commit) for arrival in again] == [(trace_id("1"), FOUND_BY_TIME)]


def test_a_commit_longer_than_what_is_asked_for_at_once_is_read_whole(
    s3: S3, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = spans_at(s3, folder)
    store.create(SPANS)
    append(store, [answer("a")])
    snapshot = store.open()
    whole = snapshot.commit(1)
    monkeypatch.setattr("evaluator.tables.snapshot.LOG_ENTRY", 100)

    assert snapshot.commit(1) == whole
    assert snapshot.commit(2) is None
