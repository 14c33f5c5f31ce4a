"""Judges and scorers of sessions as a user has them: through the commands, on real tables and a stub provider."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project
from tests.stub_provider import StubProvider, prompt_of
from tests.traffic import NOON, answer, span, trace_id

GUIDELINES = """
judges:
  - name: resolved
    guidelines: The user's problem must be solved in the end.
    target: session
  - name: patient
    instructions: "Do {{ outputs }} stay patient with {{ inputs }}?"
    target: session
scorers:
  - {name: short, sql: turns <= 2, target: session, filter: turns > 1}
  - {name: greets, regex: Hello, target: session}
  - {name: counts, python: "own:counts", target: session}
  - {name: no_secret, builtin: pii, target: session}
"""
OWN = """
def counts(session, outputs, trace):
    return [turn["trace_id"] for turn in session] and len(session) == outputs.count("Hello") == trace["span_count"]
"""


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as provider:
        yield provider


def a_turn(name: str, session: str = "s", minutes: int = 0, **values: Any) -> dict[str, Any]:
    at = NOON + timedelta(minutes=minutes)
    return answer(name, f"Hello, {name}", f"Why {name}?", at=at, **{"session.id": session}, **values)


def a_project(folder: Path, stub: StubProvider, **config: Any) -> Project:
    (folder / "own.py").write_text(OWN)
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    return Project.create(
        folder, GUIDELINES, judge=judge, python_modules=["own"], **{"session_idle": "0s", **config}
    )


def test_a_session_is_judged_whole_and_told_of(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)
    project.append(a_turn("two", minutes=3), a_turn("one"), a_turn("alone", "t", minutes=5), answer("none"))

    ran = project.run("once", "--json")
    assert ran.code == 0, ran.err
    told = ran.json()

    rows = project.sql("select name, session_id, trace_id, passed, is_current from assessments")
    of_session = {row["name"]: row for row in rows if row["session_id"] == "s"}
    assert {row["trace_id"] for row in of_session.values()} == {trace_id("one")}
    assert set(of_session) == {"resolved", "patient", "short", "greets", "counts", "no_secret"}
    assert all(row["is_current"] for row in rows)
    assert all(of_session[name]["passed"] for name in ("short", "greets", "counts", "no_secret"))
    assert (told["traces"], told["sessions"], told["results"], told["calls"]) == (4, 2, 11, 4)
    prompts = [prompt for prompt in map(prompt_of, stub.requests) if "Why one?" in prompt]
    assert len(prompts) == 2
    for prompt in prompts:
        places = [
            prompt.index(text)
            for text in ("turn 1: request", "Why one?", "Hello, one", "Why two?", "Hello, two")
        ]
        assert places == sorted(places)
        assert "one conversation between a user and the agent" in prompt
    assert any("Do the responses of all turns in the material" in prompt for prompt in prompts)
    assert any("the agent's work over the whole conversation" in prompt for prompt in prompts)


def test_explain_try_and_eval_know_of_sessions(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub, session_idle="1h")
    project.append(a_turn("one"), a_turn("two", minutes=3), answer("none"))
    day = ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--judge", "resolved", "--judge", "short")

    project.run("once")
    waits = project.run("explain", trace_id("two"), "--json").json()
    nothing = project.run("explain", trace_id("none"), "--json").json()
    early = project.run(*day, "--json").json()
    [tried] = project.run("try", "--judge", "resolved", trace_id("two"), "--json").json()
    [last] = project.run("try", "--judge", "short", "--last", "1", "--json").json()
    project.configure(session_idle="0s")  # the live wait stands as it was told
    estimated = project.run(*day, "--dry-run", "--json").json()
    scored = project.run(*day, "--json").json()
    shown = project.run("explain", trace_id("two")).out

    assert waits["session_id"] == "s"
    assert waits["session"].startswith("waiting: it may go on; judged 2")
    assert {one["state"] for one in waits["scorers"]} == {"waiting"}
    assert {one["why"] for one in nothing["scorers"]} == {"the trace names no session"}
    assert (early["sessions"], early["results"], early["waiting"]) == (0, 0, 1)
    assert (tried["trace_id"], last["passed"]) == (trace_id("one"), True)
    assert "Why two?" in str(tried["messages"])
    assert (estimated["calls"], estimated["scorers"]["resolved"]["records"]) == (1, 1)
    assert (scored["sessions"], scored["results"], scored["calls"]) == (1, 2, 1)
    assert "its session s: waiting" in shown
    assert "scored" in shown


def test_late_spans_are_judged_again_where_that_is_configured(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub, rescore_late=True)
    project.guide("scorers: [{name: small, sql: span_count < 2}]")
    project.append(a_turn("one"))
    project.run("once")
    project.append(span("one", "late", parent="root"))

    told = project.run("once", "--json").json()

    [row] = project.sql("select revision, passed, is_current from assessments")
    assert row == {"revision": 1, "passed": False, "is_current": True}
    assert told["traces"] == 1
    [small] = project.run("explain", trace_id("one"), "--json").json()["scorers"][-1:]
    assert (small["revision"], small["passed"]) == (1, False)


def test_a_judged_session_is_told_of_while_a_turn_waits_for_late_spans(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = a_project(tmp_path, stub, rescore_late=True)
    project.append(a_turn("one"))
    project.run("once")
    project.configure(settle="1h")
    project.append(span("one", "late", parent="root"))
    project.run("once")

    told = project.run("explain", trace_id("one"), "--json").json()

    assert (told["state"], told["session_id"]) == ("waiting", "s")
    assert told["session"].startswith("decided")
    assert {one["state"] for one in told["scorers"] if one["scorer"] == "greets"} == {"scored"}


def test_a_session_of_which_a_turn_is_forgotten_keeps_its_turns_of_days_before(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = a_project(tmp_path, stub)
    project.guide("scorers: [{name: long, sql: turns > 2, target: session}]")
    project.append(a_turn("zero", minutes=-26 * 60), a_turn("one"), a_turn("two", minutes=5))
    project.run("once")
    project.run("forget", trace_id("one"))
    project.append(a_turn("four", minutes=12))
    project.run("once")

    rows = project.sql("select trace_id, revision, passed from assessments")
    assert rows == [{"trace_id": trace_id("zero"), "revision": 1, "passed": True}]
