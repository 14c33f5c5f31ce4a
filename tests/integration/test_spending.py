"""What judging may cost, what it took, and what is not paid for twice: the commands on real tables and a stub provider."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project
from tests.stub_provider import StubProvider
from tests.traffic import answer

JUDGE = """
judges:
  - name: concrete
    guidelines: The response must name a number.
    examples:
      - {inputs: "How many?", outputs: Twelve., expect: pass}
"""
RANGE = ("--from", "2026-11-20", "--to", "2026-11-21")


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider(verdict=lambda prompt: "yes") as provider:
        yield provider


def a_project(folder: Path, stub: StubProvider, guidelines: str = JUDGE, **judge: Any) -> Project:
    judge = {
        "model": "openai/gpt-4o-mini",
        "base_url": stub.base_url,
        "parameters": {"max_tokens": 100},
        **judge,
    }
    return Project.create(folder, guidelines, judge=judge)


def judge_settings(project: Project, **judge: Any) -> None:
    text = (project.folder / "evaluator.yaml").read_text()
    import yaml

    project.configure(judge={**yaml.safe_load(text)["judge"], **judge})


def many(count: int) -> list[dict[str, Any]]:
    return [answer(f"t{number}", f"Answer {number}") for number in range(count)]


def status(project: Project) -> Any:
    return project.run("status", "--json").json()


def test_what_does_not_fit_waits_without_a_call_and_is_caught_up_oldest_first(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = a_project(tmp_path, stub, budget={"usd_per_day": None, "tokens_per_day": 6_000})
    project.append(*many(40))

    first = project.run("once", "--json").json()
    asked = len(stub.requests)
    spend = status(project)["spend"]
    project.append(answer("new", "A newer answer"))
    rows = len(project.sql("select 1 from ledger"))
    second = project.run("once", "--json").json()
    third = project.run("once", "--json").json()
    rows_after = len(project.sql("select 1 from ledger"))

    assert 0 < first["results"] < 40
    assert first["results"] + first["deferred"] == 40
    assert spend["tokens"] == first["input_tokens"] + first["output_tokens"] <= 6_000
    assert spend["reserved_tokens"] == 0
    assert spend["waiting"] == first["deferred"]
    assert (second["calls"], second["deferred"]) == (0, 1)
    assert (third["calls"], third["deferred"], third["traces"]) == (0, 0, 0)
    assert rows_after == rows + 2  # the new trace and its deferred result
    assert len(stub.requests) == asked
    judge_settings(project, budget={"usd_per_day": None, "tokens_per_day": 10**6}, max_concurrency=1)
    last = project.run("once", "--json").json()
    assert (last["results"], last["deferred"]) == (first["deferred"] + 1, 0)
    assert "A newer answer" in json.dumps(stub.requests[-1])


def test_what_waited_for_a_week_is_given_up_and_said(tmp_path: Path, stub: StubProvider) -> None:
    import asyncio

    from evaluator.config import load_config
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    project = a_project(tmp_path, stub, budget={"usd_per_day": None, "tokens_per_day": 10})
    project.append(answer("a"))
    config = load_config(tmp_path / "evaluator.yaml", {"OPENAI_API_KEY": "k"})
    now = [datetime.now(UTC) + timedelta(seconds=5)]
    notes = []

    async def turns() -> list[Any]:
        worker = Worker(config, build_tables(config, lambda: now[0]), lambda: now[0])
        found = []
        for days in (0, 6, 2):
            now[0] += timedelta(days=days)
            summary = (await worker.turn(wait=True)).summary
            notes.extend(summary.notes)
            found.append((summary.deferred, summary.results))
        await worker.close()
        return found

    assert asyncio.run(turns()) == [(1, 0), (0, 0), (0, 1)]
    assert any("1 results were given up" in note for note in notes)
    [row] = project.sql("select state, reason, error, due from ledger where scorer is not null")
    assert (row["state"], row["reason"], row["due"]) == ("unscored", "budget", None)
    assert row["error"].startswith("given up: ")
    assert stub.requests == []


def test_a_run_and_a_judge_have_caps_of_their_own(tmp_path: Path, stub: StubProvider) -> None:
    guidelines = JUDGE + "  - {name: capped, guidelines: Be kind., budget: {tokens_per_day: 1500}}\n"
    project = a_project(tmp_path, stub, guidelines, budget={"tokens_per_run": 9_000})
    project.append(*many(30))

    first = project.run("once", "--json").json()
    second = project.run("once", "--json").json()
    spend = status(project)["spend"]

    assert first["input_tokens"] + first["output_tokens"] <= 9_000
    assert first["deferred"] > 0
    assert second["scorers"]["concrete"]["scored"] > 0
    assert spend["judges"]["capped"]["tokens"] <= 1_500 == spend["judges"]["capped"]["tokens_per_day"]
    assert spend["judges"]["capped"]["waiting"] > 0
    assert spend["tokens"] == spend["judges"]["capped"]["tokens"] + spend["judges"]["concrete"]["tokens"]
    assert "by capped" in project.run("status").out


def test_trials_examples_and_reports_spend_too(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)
    project.append(answer("a"))
    seen = [0]

    for command in (
        ("try", "--judge", "concrete"),
        ("check", "--examples"),
        ("eval", *RANGE, "--no-write", "--no-cache"),
    ):
        ran = project.run(*command)
        assert ran.code == 0, ran.err
        seen.append(status(project)["spend"]["tokens"])

    assert seen == sorted(set(seen))
    assert len(stub.requests) == 3
    assert project.sql("select * from ledger") == []


def test_a_question_asked_again_is_judged_once(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)
    project.append(*[answer(f"same {number}") for number in range(5)], answer("other", "Another"))

    first = project.run("once", "--json").json()
    project.append(answer("later"))
    later = project.run("once", "--json").json()
    rescored = project.run("eval", *RANGE, "--rescore", "--json").json()
    project.append(answer("last"))
    past = project.run("once", "--no-cache", "--json").json()

    assert (first["results"], first["calls"], first["cached"]) == (6, 2, 4)
    assert (later["results"], later["calls"], later["cached"], later["cost_usd"]) == (1, 0, 1, 0.0)
    assert (rescored["calls"], rescored["cached"]) == (7, 0)
    assert (past["calls"], past["cached"]) == (1, 0)
    results = project.sql(
        "select value, rationale, calls, cost_usd from ledger where state = 'scored' and revision = 0 order by seq"
    )
    assert len({(row["value"], row["rationale"]) for row in results}) == 1
    tried = project.run("try", "--judge", "concrete", "--cache")
    assert "from the cache, no call was made" in tried.out
    assert "from the cache" not in project.run("try", "--judge", "concrete").out


def test_a_broken_cache_costs_calls_and_no_result(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)
    (tmp_path / ".evaluator").mkdir(exist_ok=True)
    (tmp_path / ".evaluator" / "cache-1.sqlite").write_bytes(b"no database" * 1_000)
    project.append(answer("a"), answer("b", "Bye"))

    ran = project.run("once", "--json")

    assert (ran.code, ran.json()["results"], ran.json()["calls"]) == (0, 2, 2)
    assert ran.err.count("the cache cannot be used") == 1


def test_judges_of_a_group_are_one_unit_to_the_cache(tmp_path: Path, stub: StubProvider) -> None:
    guidelines = """
judges:
  - {name: one, guidelines: Be kind., batch: joint}
  - {name: two, guidelines: Be brief., batch: joint}
"""
    project = a_project(tmp_path, stub, guidelines)
    project.append(answer("a"))
    first = project.run("once", "--json").json()
    project.append(answer("b"))

    second = project.run("once", "--json").json()

    assert (first["results"], first["calls"]) == (2, 1)
    assert (second["results"], second["calls"], second["cached"]) == (2, 0, 2)


def test_a_model_without_a_price_is_a_mistake_under_a_cap_in_usd_and_runs_with_a_warning(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = a_project(tmp_path, stub, model="openai/our-own")
    project.append(answer("a"))

    checked, ran = project.run("check"), project.run("once")

    assert (checked.code, ran.code) == (2, 0)
    for said in (checked.err, ran.err):
        assert "nobody knows the price of openai/our-own, so judge.budget.usd_per_day cannot be held" in said
        assert "judge.price" in said
        assert "tokens_per_day" in said
    line = next(
        number
        for number, text in enumerate((tmp_path / "evaluator.yaml").read_text().splitlines(), start=1)
        if "our-own" in text
    )
    assert f"evaluator.yaml:{line}:" in checked.err
    assert "unknown cost" in ran.out
    assert project.run("status").code == 0
    for way_out in (
        {"price": {"input_per_million": 0, "output_per_million": 0}},
        {"price": None, "budget": {"tokens_per_day": 10**6}},
        {"budget": {"usd_per_day": None}},
    ):
        judge_settings(project, **way_out)
        assert project.run("check").code == 0
    judge_settings(project, budget={"usd_per_day": 5, "tokens_per_day": 10**6})
    assert project.run("check").code == 2


def test_a_dry_run_knows_the_cache_and_learns_from_what_was_taken(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)
    project.append(*many(10))
    assert project.run("once").code == 0
    project.append(*[answer(f"again {number}", "Answer 3") for number in range(4)])
    project.append(*[answer(f"more {number}", f"Another answer {number % 5}") for number in range(10)])

    expected = project.run("eval", *RANGE, "--dry-run", "--json").json()
    asked = len(stub.requests)
    told = project.run("eval", *RANGE, "--json").json()

    assert asked == 10
    assert (expected["reused"], expected["cached"], expected["calls"]) == (10, 9, 5)
    assert (told["reused"], told["cached"], told["calls"]) == (10, 9, 5)
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        assert expected[name] == pytest.approx(told[name], rel=0.1)


def test_a_dry_run_tells_each_judge_s_part_of_a_joint_call_and_what_is_a_guess(
    tmp_path: Path, stub: StubProvider
) -> None:
    guidelines = """
judges:
  - {name: one, guidelines: Be kind., batch: joint}
  - {name: two, guidelines: Be brief., batch: joint}
  - {name: alone, guidelines: Be right.}
"""
    project = a_project(tmp_path, stub, guidelines)
    project.append(*many(9))

    guessed = project.run("eval", *RANGE, "--dry-run", "--json").json()
    shown = project.run("eval", *RANGE, "--dry-run").out
    told = project.run("eval", *RANGE, "--limit", "5", "--json").json()
    learned = project.run("eval", *RANGE, "--dry-run", "--json").json()
    taken = project.run("eval", *RANGE, "--json").json()

    one, two, alone = (guessed["scorers"][name] for name in ("one", "two", "alone"))
    assert (guessed["calls"], one["calls"] + two["calls"], alone["calls"]) == (18, 9, 9)
    assert one["cost_usd"] == pytest.approx(two["cost_usd"])
    assert abs(one["input_tokens"] - two["input_tokens"]) <= 1
    assert (one["joint_with"], alone["joint_with"]) == (["two"], [])
    assert one["guessed"]
    assert alone["guessed"]
    assert "output tokens are a guess" in guessed["notes"][0]
    assert "output tokens are a guess" in shown
    assert (told["calls"], learned["calls"], taken["calls"], learned["notes"]) == (10, 8, 8, [])
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        assert learned[name] == pytest.approx(taken[name], rel=0.1)
