"""Judges in one call, panels and views as a user has them: through the commands, on real tables and a stub provider."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluator.tables.delta import DeltaStore
from tests.project import Project
from tests.stub_provider import StubProvider, prompt_of, schema_of
from tests.traffic import answer, span

GROUP = """
judges:
  - {name: polite, guidelines: The response must be polite., batch: joint}
  - {name: brief, guidelines: The response must be brief., batch: joint}
  - {name: alone, guidelines: The response must greet., trace_view: answer}
"""
PANEL = """
judges:
  - name: polite
    guidelines: The response must be polite.
    models: [openai/gpt-4o-mini, openai/gpt-4o, openai/gpt-5-mini]
    decide: unanimous
    escalate_to: openai/gpt-5
"""


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as provider:
        yield provider


def judged(folder: Path, stub: StubProvider, guidelines: str = GROUP, **config: object) -> Project:
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    return Project.create(folder, guidelines, judge=judge, **config)


def test_once_asks_a_group_once_for_each_trace(tmp_path: Path, stub: StubProvider) -> None:
    stub.script = ["ok", "misses_one"]
    project = judged(tmp_path, stub)
    project.append(answer("a"), answer("b", "Good day"))

    told = project.run("once", "--json").json()

    rows = project.sql(
        "select name, version, cost_usd, input_tokens from assessments where passed is not null"
    )
    assert told["results"] == len(rows) == 6
    assert (
        told["calls"] == len(stub.requests) == 5
    )  # a group and a single judge twice, and what one reply missed
    assert told["input_tokens"] == sum(row["input_tokens"] for row in rows)
    assert told["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in rows))
    assert len({row["version"] for row in rows}) == 3


def test_eval_and_try_of_one_judge_run_its_group_and_show_the_one(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub, start="latest")
    project.append(answer("a"))
    day = ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--judge", "brief", "--json")

    estimated = project.run(*day, "--dry-run").json()
    told = project.run(*day).json()
    [tried] = project.run("try", "--judge", "polite", "--json").json()
    all_of = project.run("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--json").json()

    assert (estimated["calls"], list(estimated["scorers"])) == (1, ["brief"])
    # The stub goes by the number of characters, and a fence of random letters takes more tokens than its length tells.
    assert estimated["input_tokens"] == pytest.approx(told["input_tokens"], rel=0.25)
    assert (told["calls"], list(told["scorers"])) == (1, ["brief"])
    assert schema_of(stub.requests[0])["required"] == ["brief", "polite"]
    assert tried["calls"] == 1
    assert tried["value"] in ("yes", "no")
    assert list(json.loads(tried["replies"][0])) == ["brief", "polite"]
    assert all_of["reused"] == 1
    assert all_of["scorers"]["brief"]["version"] == told["scorers"]["brief"]["version"]


def test_a_paused_member_s_work_waits_and_its_part_is_paid_for_once(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"))
    project.run("pause", "--judge", "brief")

    first = project.run("once", "--json").json()
    project.run("resume", "--judge", "brief")
    second = project.run("once", "--json").json()

    assert (first["results"], first["deferred"], first["calls"]) == (2, 1, 2)
    assert (second["results"], second["calls"], second["cached"]) == (
        1,
        0,
        1,
    )  # its part had come with the group's


def test_comparing_shows_where_a_judge_says_something_else_in_the_group(
    tmp_path: Path, stub: StubProvider
) -> None:
    stub.verdict = lambda prompt: "no" if prompt.endswith("[brief]") else "yes"
    project = judged(tmp_path, stub, start="latest")
    project.append(answer("a"), answer("b", "Good day"))
    day = ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--compare-batch")

    ran = project.run(*day, "--json")
    told = ran.json()
    shown = project.run(*day)
    refused = project.run(*day, "--output", "report.html")

    assert (told["traces"], told["single"]["calls"], told["joint"]["calls"]) == (2, 4, 2), ran.err
    assert told["alone"] == ["alone"]
    assert told["judges"]["polite"]["agreement"] == 1.0
    assert told["judges"]["brief"]["agreement"] == 0.0
    assert {one["joint"] for one in told["judges"]["brief"]["differences"]} == {"no"}
    assert told["joint"]["input_tokens"] < told["single"]["input_tokens"]
    assert "2 traces were judged both ways; nothing was written" in shown.out
    assert refused.code == 2
    assert project.sql("select * from assessments") == []


def test_a_panel_s_votes_stand_in_the_annotations(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub, PANEL)
    project.append(answer("a"))

    told = project.run("once", "--json").json()

    [row] = project.sql("select value, model, cost_usd from assessments")
    votes = annotated(project)["evaluator.votes"]
    assert told["results"] == 1
    assert told["calls"] in (3, 4)
    assert row["value"] in ("yes", "no")
    assert row["model"].startswith("openai/gpt-4o-mini, openai/gpt-4o, openai/gpt-5-mini")
    assert row["cost_usd"] == pytest.approx(told["cost_usd"]) == sum(vote["cost_usd"] for vote in votes)
    assert len(votes) == told["calls"]


def test_check_refuses_a_group_that_looks_at_different_traces(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub)
    told = project.run("check")
    project.guide(GROUP.replace("brief., batch: joint", "brief., batch: joint, sample_rate: 0.5"))

    checked = project.run("check")

    assert told.code == 0
    assert "one call for polite, brief: editing one of them, or adding one, is a new version" in told.err
    assert checked.code == 2
    assert checked.err.startswith(
        'guidelines/guidelines.yaml:4: judge "brief": sample_rate is 0.5, but "polite"'
    )


def test_a_long_trace_is_cut_and_the_result_names_what_was_left_out(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = judged(
        tmp_path, stub, "judges:\n  - {name: polite, guidelines: The response must be polite.}\n"
    )
    tool = {"openinference.span.kind": "TOOL", "output.value": "row " * 200_000}
    project.append(answer("a"), span("a", "query", parent="root", **tool))

    project.run("once")

    [prompt] = [prompt_of(request) for request in stub.requests]
    assert "index of all steps" in prompt
    assert prompt.index("TOOL query") < prompt.index(" request>\nHi?")
    assert len(prompt) < 400_000
    assert annotated(project)["evaluator.left_out"].endswith("(step 2: tool result)")


def annotated(project: Project) -> Any:
    """The metadata of the one annotation."""
    snapshot = DeltaStore(str(project.folder / "traces" / "agent_otel_annotations")).open()
    [row] = snapshot.query("select metadata from t").to_pylist()
    return json.loads(row["metadata"])
