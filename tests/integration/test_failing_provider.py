"""A provider that fails in every way there is: each result is scored in the end, or `explain` tells why not."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from evaluator.commands.explanation import Explained, explain
from evaluator.commands.interventions import retry_unscored
from evaluator.config import load_config
from evaluator.feedback import Reason
from evaluator.models import client, pace
from evaluator.summary import Summary
from evaluator.tables.provision import provision
from evaluator.tables.rows import Row, from_arrow
from evaluator.wiring import build_tables
from evaluator.worker.turns import Turn, Worker
from tests.project import Project
from tests.stub_provider import FAULTS, StubProvider, chance_of, prompt_of
from tests.traffic import answer, trace_id

JUDGES = """
judges:
  - {name: alone, guidelines: The response must be polite.}
  - {name: first, guidelines: The response must be short., batch: joint}
  - {name: second, guidelines: The response must name a number., batch: joint}
"""
NAMES = {"alone", "first", "second"}
ONE = "judges: [{name: alone, guidelines: The response must be polite.}]"

AGAIN = {
    "500": "unavailable", "503": "unavailable", "529": "unavailable", "reset": "unavailable", "half": "unavailable",
    "gzip": "unavailable", "html": "unavailable", "error_in_200": "unavailable", "no_choices": "unavailable",
    "401": "unavailable", "hang": "timeout", "prose": "bad_reply", "broken_json": "bad_reply", "empty": "bad_reply",
    "out_of_range": "bad_reply", "misses_one": "bad_reply", "truncated": "bad_reply",
}  # fmt: skip
"""What is tried again by its schedule. A key that is refused for one prompt alone is no matter of the key."""
NEVER = {
    "400": "refused", "403": "refused", "404": "refused", "redirect": "refused", "refusal": "refused",
    "overflow": "context_overflow", "filter": "content_filter",
}  # fmt: skip
"""What is final until `retry`."""
HARMLESS = {"no_temperature"}
"""A parameter that is rejected is left out."""


class Evaluation:
    """A project with judges whose provider is a stub, and its worker in this process, with a clock that the test sets."""

    def __init__(self, folder: Path, stub: StubProvider, guidelines: str, **judge: Any) -> None:
        settings = {
            "model": "openai/gpt-4o-mini",
            "base_url": stub.base_url,
            "timeout": "30s",
            "parameters": {"max_tokens": 100},
            **judge,
        }
        self.project = Project(folder=folder)
        self.project.configure(settle="0s", publish=["annotations"], judge=settings, redact=[])
        self.project.guide(guidelines)
        self.config = load_config(folder / "evaluator.yaml", {})
        self.now = datetime.now(UTC) + timedelta(seconds=5)
        self.tables = build_tables(self.config, lambda: self.now)
        provision(self.config)
        self.tables.ledger.provision()
        self.versions: Mapping[str, str] = {}

    def append(self, names: Iterable[str]) -> None:
        self.project.append(*(answer(name[:16], f"The answer is [{name}]") for name in names))

    def turns(self, count: int = 1, later: timedelta = timedelta(0)) -> list[Turn]:
        """Some turns of one worker, each so much later than the one before."""

        async def take() -> list[Turn]:
            worker = Worker(self.config, self.tables, lambda: self.now)
            taken = []
            try:
                for _ in range(count):
                    self.now += later
                    taken.append(await worker.turn(wait=True))
            finally:
                scorers = await worker._current_scorers()
                self.versions = {scorer.name: scorer.version for scorer in scorers.scorers}
                await worker.close()
            return taken

        return asyncio.run(take())

    def turn(self, later: timedelta = timedelta(0)) -> Summary:
        return self.turns(later=later)[0].summary

    def explained(self, name: str) -> dict[str, Explained]:
        told = explain(trace_id(name[:16]), self.tables.spans, self.tables.ledger, self.versions)
        return {one.scorer: one for one in told.scorers}

    def history(self) -> list[Row]:
        """Every row of a result that the ledger ever took."""
        columns = [
            "seq", "scope", "day", "target_type", "target_id", "trace_id", "scorer", "state", "passed", "calls", "cost_usd", "at",
        ]  # fmt: skip
        rows = from_arrow(self.tables.ledger.open().table("scorer is not null", columns))
        return sorted(rows, key=lambda row: row.seq)

    def calls(self) -> int:
        return sum(row.calls or 0 for row in self.history())


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider(retry_after="0.02", verdict=lambda prompt: "yes") as provider:
        yield provider


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_BACKOFF", 0.005)
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.02)


def as_the_trace_says(body: Mapping[str, Any]) -> str:
    """The fault that a trace names; none for a plain question."""
    first = next(str(message["content"]) for message in body["messages"] if message["role"] == "user")
    return next((fault for fault in FAULTS if f"[{fault}]" in first), "ok")


def by_chance() -> Callable[[Mapping[str, Any]], str]:
    """Every other answer is a fault, by a hash of the prompt and how often it came; a plain question has none."""
    seen: Counter[str] = Counter()
    faults = [fault for fault in FAULTS if fault not in {*HARMLESS, "hang"}]

    def fault_of(body: Mapping[str, Any]) -> str:
        prompt = prompt_of(body)
        seen[prompt] += 1
        found = int(chance_of(f"{seen[prompt]} {prompt}") * len(faults) * 2)
        return (
            faults[found] if found < len(faults) and prompt != client.PLAIN_QUESTION[0]["content"] else "ok"
        )

    return fault_of


def assert_told(one: Explained, reason: str) -> None:
    """An unscored result is explained: why, how often it was tried, and when it is tried again."""
    assert (one.state, one.reason, one.value, one.passed) == ("unscored", reason, None, None)
    assert reason in one.why
    assert len(one.why) > len(reason) + 20
    assert one.attempts >= 1
    assert (one.due is not None) == Reason(reason).transient


def assert_all_scored_once(evaluation: Evaluation, names: Sequence[str], judges: set[str] = NAMES) -> None:
    """Nothing is lost and nothing doubled, in the ledger and in what was published."""
    scored = [row for row in evaluation.history() if row.state == "scored"]
    wanted = {(trace_id(name[:16]), judge) for name in names for judge in judges}
    assert {(row.trace_id, row.scorer) for row in scored} == wanted
    assert len(scored) == len(wanted)
    published = evaluation.tables.views.query(
        "select trace_id, name, value from assessments where is_current"
    ).to_pylist()
    assert {(row["trace_id"], row["name"]) for row in published if row["value"] is not None} == wanted
    assert len(published) == len(wanted)


def test_the_stub_fails_in_each_way_that_is_expected_here() -> None:
    assert set(FAULTS) == {*AGAIN, *NEVER, *HARMLESS, "429"}


def test_each_failure_is_told_as_what_it_is_and_scored_once_the_provider_works(
    tmp_path: Path, stub: StubProvider
) -> None:
    stub.fault_of = as_the_trace_says
    faults = [*AGAIN, *NEVER]
    evaluation = Evaluation(tmp_path, stub, JUDGES, timeout="1500ms")
    evaluation.append([*faults, "fine"])

    first = evaluation.turn()

    for fault, reason in {**AGAIN, **NEVER}.items():
        told = evaluation.explained(fault)
        assert set(told) == NAMES
        partly = {"first"} if fault == "misses_one" else set()  # asked again alone, it is answered
        for name in NAMES - partly:
            assert_told(told[name], reason)
    assert {one.state for one in evaluation.explained("fine").values()} == {"scored"}
    assert first.to_json()["failed"] == 0
    assert [row for row in evaluation.history() if row.passed is False] == []
    assert first.calls == stub.count == evaluation.calls()

    stub.fault_of = None
    second = evaluation.turn(timedelta(minutes=1))
    assert second.calls == stub.count - first.calls
    states = {row.trace_id: row.state for row in evaluation.history() if row.scorer == "alone"}
    assert {states[trace_id(fault)] for fault in AGAIN} == {"scored"}
    assert {states[trace_id(fault)] for fault in NEVER} == {"unscored"}

    assert retry_unscored(evaluation.config, None, None).put_up == len(NEVER) * len(NAMES)
    evaluation.now = datetime.now(UTC) + timedelta(minutes=2)
    evaluation.turn()
    assert_all_scored_once(evaluation, [*faults, "fine"])
    assert stub.count == evaluation.calls()


def test_failures_of_all_kinds_by_chance_lose_and_double_nothing(tmp_path: Path, stub: StubProvider) -> None:
    stub.fault_of = by_chance()
    names = [f"trace {number}" for number in range(20)]
    evaluation = Evaluation(tmp_path, stub, JUDGES, max_concurrency=16)
    evaluation.append(names)

    turns = evaluation.turns(2, timedelta(minutes=20))
    stub.fault_of = None
    turns += evaluation.turns(1, timedelta(hours=7))
    final = retry_unscored(evaluation.config, None, None).put_up
    evaluation.now = max(evaluation.now, datetime.now(UTC)) + timedelta(minutes=1)
    turns += evaluation.turns(1)

    assert_all_scored_once(evaluation, names)
    assert final > 0
    assert sum(turn.summary.calls for turn in turns) == stub.count == evaluation.calls()
    assert not any(row.passed is False for row in evaluation.history())


def test_a_failure_that_lasts_is_given_up_after_its_attempts_and_said(
    tmp_path: Path, stub: StubProvider
) -> None:
    stub.fault_of = as_the_trace_says
    evaluation = Evaluation(tmp_path, stub, ONE)
    evaluation.append(["prose"])

    told = []
    for later in (0, 1, 16, 61, 361, 1441):
        evaluation.turn(timedelta(minutes=later))
        told.append(evaluation.explained("prose")["alone"])

    assert [one.attempts for one in told] == [1, 2, 3, 4, 5, 6]
    waits = [one.due - one.at for one in told[:-1] if one.due and one.at]
    assert [round(wait / timedelta(minutes=1)) for wait in waits] == [0, 15, 60, 360, 1440]
    assert told[-1].due is None
    assert "not tried again (`evaluator retry` puts it up)" in told[-1].why
    assert stub.count == evaluation.calls() == 12  # with a repair each


RATES: Mapping[str, tuple[Callable[[], str | None], str, str | None]] = {
    "names no pause": (lambda: None, "scored", None),
    "names a date": (lambda: format_datetime(datetime.now(UTC), usegmt=True), "scored", None),
    "names an hour": (lambda: "3600", "deferred", "endpoint_down"),
    "names a date in an hour": (
        lambda: format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), "deferred", "endpoint_down",
    ),
}  # fmt: skip


def test_a_rate_limit_that_does_not_end_is_told_and_tried_again(tmp_path: Path, stub: StubProvider) -> None:
    stub.faults = {"429": 1.0}
    evaluation = Evaluation(tmp_path, stub, ONE)
    evaluation.append(["a"])

    evaluation.turn()

    assert_told(evaluation.explained("a")["alone"], "rate_limited")
    assert stub.count == evaluation.calls() == client.TRIES
    stub.faults = {}
    evaluation.turn(timedelta(minutes=1))
    assert_all_scored_once(evaluation, ["a"], {"alone"})


@pytest.mark.parametrize("says", RATES)
def test_a_rate_limit_that(says: str, tmp_path: Path, stub: StubProvider) -> None:
    retry_after, state, reason = RATES[says]
    stub.retry_after, stub.script = retry_after(), ["429", "429"]
    evaluation = Evaluation(tmp_path, stub, ONE)
    evaluation.append(["a", "b"])

    first, second = (turn.summary for turn in evaluation.turns(2))
    told = evaluation.explained("a")["alone"]

    assert (told.state, told.reason) == (state, reason)
    if state == "deferred":
        assert "rate" in told.why or "pause" in told.why
        assert told.why.endswith("again at the next tick")
        assert (stub.count, second.calls) == (1, 0)
        stub.script = []
        evaluation.turn()  # of another worker: it asks, and finds that it may
    assert_all_scored_once(evaluation, ["a", "b"], {"alone"})
    assert stub.count == evaluation.calls() >= first.calls


def test_a_key_that_expires_in_mid_run_costs_no_result_and_no_attempt(
    tmp_path: Path, stub: StubProvider
) -> None:
    names = [f"trace {number}" for number in range(8)]
    evaluation = Evaluation(tmp_path, stub, ONE, max_concurrency=1)
    evaluation.append(names)
    stub.fault_of = lambda _: "ok" if stub.count <= 5 else "401"

    [expired] = evaluation.turns()
    spent = stub.count
    states = {name: evaluation.explained(name)["alone"] for name in names}
    with pytest.raises(Exception, match="the provider does not accept the key") as said:
        expired.check_models()
    stub.fault_of = None
    renewed = evaluation.turn()

    assert 'judge "alone"' in str(said.value)
    assert expired.summary.results == 5
    assert spent <= 8  # one asks about the key, and nobody else goes out but who had a place already
    assert sorted(one.state for one in states.values()) == ["not read"] * 3 + ["scored"] * 5
    assert all("the next tick" in one.why for one in states.values() if one.state == "not read")
    assert (renewed.results, renewed.calls) == (3, 3)
    assert_all_scored_once(evaluation, names, {"alone"})


def test_a_clock_that_jumps_delays_and_loses_nothing(tmp_path: Path, stub: StubProvider) -> None:
    evaluation = Evaluation(tmp_path, stub, ONE)
    evaluation.append(["500", "fine"])
    stub.fault_of = as_the_trace_says
    evaluation.turn()
    back = evaluation.turn(-timedelta(days=30))
    stub.fault_of = None
    evaluation.append(["late"])
    still_back = evaluation.turn()
    forth = evaluation.turn(timedelta(days=800))

    assert (back.calls, still_back.calls, forth.calls) == (0, 1, 1)
    times = [row.at for row in evaluation.history() if row.at]
    assert times == sorted(times)
    assert_all_scored_once(evaluation, ["500", "fine", "late"], {"alone"})


def test_a_cost_that_nobody_knows_is_null_and_never_zero(tmp_path: Path, stub: StubProvider) -> None:
    guidelines = ONE + "\n"
    evaluation = Evaluation(tmp_path, stub, guidelines, model="openai/our-own")
    evaluation.append(["a", "b"])

    told = evaluation.turn().to_json()

    assert (told["cost_usd"], told["cost_unknown"], told["calls"]) == (None, 2, 2)
    assert {row.cost_usd for row in evaluation.history()} == {None}
    query = "select cost_usd, model, input_tokens from assessments"
    rows = evaluation.tables.views.query(query).to_pylist()
    assert {(row["cost_usd"], row["model"]) for row in rows} == {(None, "openai/our-own")}
    assert all(row["input_tokens"] > 0 for row in rows)


def test_a_judge_whose_provider_is_slow_holds_up_neither_another_nor_the_tick(
    tmp_path: Path, stub: StubProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = """
judges:
  - {name: slow, guidelines: The response must be polite., model: openai/slow}
  - {name: fast, guidelines: The response must be polite., model: openai/fast}
"""
    monkeypatch.setattr("evaluator.wiring.SHARED_PATIENCE", timedelta(seconds=0.3))
    names = [f"trace {number}" for number in range(30)]
    evaluation = Evaluation(tmp_path, stub, two, max_concurrency=2, timeout="5s")
    asked = []

    def slow(body: Mapping[str, Any]) -> str:
        if body["model"] == "fast":
            return "ok"
        asked.append(prompt_of(body))
        return "ok" if len(asked) <= 3 else "429"

    stub.fault_of, stub.retry_after = slow, "20"
    evaluation.append(names)

    first = evaluation.turn()
    states = [evaluation.explained(name)["slow"] for name in names]
    spent = len(asked)
    monkeypatch.setattr("evaluator.live.retrials.TRY_SLOW_FOR", timedelta(0))
    second = evaluation.turn()
    stub.fault_of = None
    evaluation.turn(timedelta(hours=1))

    assert first.to_json()["scorers"]["fast"]["scored"] == 30
    assert first.to_json()["scorers"]["slow"]["scored"] == 3
    assert {one.reason for one in states if one.state == "deferred"} == {"endpoint_down"}
    assert all("its turn did not come" in one.why for one in states if one.state == "deferred")
    assert {one.attempts for one in states if one.state == "deferred"} == {0}
    assert spent <= 6
    assert second.seconds < 5
    assert_all_scored_once(evaluation, names, {"slow", "fast"})


def test_a_provider_that_is_down_and_comes_back_as_a_user_sees_it(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    settings = {"model": "openai/gpt-4o-mini", "base_url": f"http://127.0.0.1:{port}/v1"}
    project = Project.create(tmp_path, ONE, judge=settings)
    project.append(answer("a"))

    down = project.run("once", "--json")
    [told] = project.run("explain", trace_id("a"), "--json").json()["scorers"]
    with StubProvider(port=port) as stub:
        stub.script = ["refusal"]
        refused = project.run("once", "--json").json()
        shown = project.run("explain", trace_id("a")).out
        put_up = project.run("retry")
        scored = project.run("once", "--json").json()
        backlog = project.run("status", "--json").json()["backlog"]

        assert (down.code, down.json()["failed"], down.json()["calls"]) == (1, 0, 4)
        assert "could not be reached" in down.err
        assert (told["state"], told["reason"], told["attempts"]) == ("unscored", "unavailable", 1)
        assert told["due"] is not None
        assert (refused["unscored"], refused["failed"], refused["calls"]) == (1, 0, 1)
        assert "refused: openai/gpt-4o-mini" in " ".join(shown.split()) or "refused to judge" in shown
        assert put_up.out.startswith("1 result is up")
        assert (scored["results"], scored["calls"], stub.count) == (1, 1, 2)
        assert {state: waiting["count"] for state, waiting in backlog.items()} == dict.fromkeys(backlog, 0)
