"""`since` in a guideline file, through the commands: the past is judged, and status and explain tell of it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.project import CODE_ONLY, Project
from tests.traffic import answer, trace_id

NEW = """
scorers:
  - {name: short, sql: length(response) < 10, since: 7d, filter: response <> 'Bye'}
"""
PASSING_OVER = """
scorers:
  - {name: never, sql: length(response) < 10, since: 7d, sample_rate: 0}
  - {name: tools, sql: duration_ms < 10, since: 7d, target: span, span_filter: span_type = 'TOOL'}
"""


def test_a_new_scorer_in_a_file_catches_up_on_its_week(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    project = Project.create(tmp_path, CODE_ONLY)
    for name, text, days in (("old", "Hello", 9), ("week", "Hello", 3), ("bye", "Bye", 2)):
        project.append(answer(name, text, at=now - timedelta(days=days)))
    project.run("once")
    project.guide(NEW, "new.yaml")

    told = project.run("once", "--json").json()
    again = project.run("once", "--json").json()

    rows = project.sql("select trace_id, passed from assessments where name = 'short'")
    assert (told["results"], again["results"]) == (1, 0)
    assert rows == [{"trace_id": trace_id("week"), "passed": True}]
    [past] = project.run("status", "--json").json()["catch_ups"]
    assert (past["scorer"], past["done"], past["share"], past["in_force"]) == ("short", True, 1.0, True)
    why = {
        name: next(
            one["why"]
            for one in project.run("explain", trace_id(name), "--json").json()["scorers"]
            if one["scorer"] == "short"
        )
        for name in ("old", "week", "bye")
    }
    assert why["old"].startswith("this version came into force after the trace was decided")
    assert why["week"].startswith("scored")
    assert why["bye"] == "the catch-up on the past (`since`) passed it over: filtered"


def test_explain_asks_the_rule_why_a_catch_up_passed_a_trace_over(tmp_path: Path) -> None:
    at = datetime.now(UTC) - timedelta(days=3)
    project = Project.create(tmp_path, CODE_ONLY)
    project.append(answer("week", at=at))
    project.run("once")
    project.guide(PASSING_OVER, "new.yaml")
    project.run("once")

    told = {
        one["scorer"]: one for one in project.run("explain", trace_id("week"), "--json").json()["scorers"]
    }
    project.guide(PASSING_OVER.replace("sample_rate: 0", "sample_rate: 1"), "new.yaml")
    raised = {
        one["scorer"]: one for one in project.run("explain", trace_id("week"), "--json").json()["scorers"]
    }

    assert told["never"]["why"].endswith("passed it over: sampled out")
    assert told["tools"]["why"].endswith("passed it over: no span matches")
    assert raised["never"]["why"].endswith(
        "it was not in the table then, or the filter or the rate was another one"
    )


def test_status_tells_how_far_a_catch_up_is_and_that_an_edit_ended_it(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    project = Project.create(tmp_path, CODE_ONLY)
    # Whoever began after it waits for its root, and the past for it.
    rootless = answer("rootless", at=now - timedelta(days=3))
    project.append(
        {**rootless, "parent_span_id": "00000000000000ff"}, answer("a", at=now - timedelta(days=5))
    )
    project.guide(NEW, "new.yaml")
    project.run("once")

    shown = project.run("status").out
    project.guide(NEW.replace("< 10", "< 12"), "new.yaml")
    edited = project.run("status").out
    explained = project.run("explain", trace_id("rootless"), "--json").json()

    [line] = [line for line in shown.splitlines() if line.startswith("catching up: short")]
    assert "%)" in line
    assert "ended" not in line
    assert "ended: this version is no longer in force" in edited
    assert explained["state"] == "waiting"
