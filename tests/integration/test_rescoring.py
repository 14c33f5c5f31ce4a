"""A judge that was edited: from then on a new version, and the past judged anew where somebody asks for it."""

from pathlib import Path
from typing import Any

from tests.project import Project
from tests.traffic import NOON, answer, trace_id

EDITED = """
scorers:
  - name: greets
    regex: Hello|Good
"""
RESCORE = ("eval", "--judge", "greets", "--rescore", "--json")


def a_project(folder: Path) -> Project:
    project = Project.create(folder)
    project.append(answer("a", at=NOON), answer("b", "Good day", at=NOON.replace(hour=15)))
    assert project.run("once").code == 0
    project.guide(EDITED)
    return project


def assessments(project: Project) -> list[tuple[Any, ...]]:
    rows = project.sql(
        "select trace_id, version, revision, passed, is_current from assessments order by updated_at, trace_id"
    )
    first = rows[0]["version"]
    return [
        (
            row["trace_id"],
            row["version"] == first,
            *[row[name] for name in ("revision", "passed", "is_current")],
        )
        for row in rows
    ]


def test_an_edit_counts_from_then_on_and_leaves_the_past_as_it_was(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    project.append(answer("c", "Good night", at=NOON))

    told = project.run("once", "--json").json()

    assert told["results"] == 1
    assert assessments(project) == [
        (trace_id("a"), True, 0, True, True),
        (trace_id("b"), True, 0, False, True),
        (trace_id("c"), False, 0, True, True),
    ]


def test_rescoring_says_what_it_would_take_and_then_supersedes_the_older_version(tmp_path: Path) -> None:
    project = a_project(tmp_path)

    asked = project.run(*RESCORE, "--dry-run").json()
    before = assessments(project)
    told = project.run(*RESCORE).json()

    assert (asked["traces"], asked["scorers"]["greets"]["records"]) == (2, 2)
    assert [row[-1] for row in before] == [True, True]
    assert (told["traces"], told["results"]) == (2, 2)
    assert assessments(project) == [
        (trace_id("a"), True, 0, True, False),
        (trace_id("b"), True, 0, False, False),
        (trace_id("a"), False, 0, True, True),
        (trace_id("b"), False, 0, True, True),
    ]
    by_version = project.run("status", "--json").json()["scorers"]
    assert sorted((one["in_force"], one["passed"], one["failed"]) for one in by_version) == [
        (False, 1, 1),
        (True, 2, 0),
    ]


def test_a_dry_run_says_how_many_results_would_be_superseded(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    project.append(answer("c", at=NOON))
    all_of = ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--dry-run")

    missing = project.run(*all_of).out
    project.run(*all_of[:-1])
    there = project.run(*all_of).out
    again, told = project.run(*all_of, "--rescore").out, project.run(*all_of, "--rescore", "--json").json()

    assert "3 traces in the range, 2 results would be superseded" in missing
    assert "3 traces in the range, 3 results there already; nothing was called" in there
    assert "3 traces in the range, 3 results would be superseded; nothing was called" in again
    assert told["superseded"] == 3


def test_rescoring_by_the_same_version_makes_its_next_revision(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    project.run(*RESCORE)

    project.run(*RESCORE)

    assert [row[2:] for row in assessments(project)] == [
        (0, True, False),
        (0, False, False),
        (1, True, True),
        (1, True, True),
    ]


def test_what_was_open_for_the_older_version_is_not_judged_twice_after_a_rescore(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    project.run(*RESCORE)

    once = project.run("once", "--json").json()
    again = project.run(
        "eval", "--judge", "greets", "--from", "2026-11-20", "--to", "2026-11-21", "--json"
    ).json()

    assert (once["results"], again["results"], again["reused"]) == (0, 0, 2)


def test_rescoring_without_any_result_asks_for_a_range(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    ran = project.run(*RESCORE)

    assert ran.code == 2
    assert "there is no result by greets yet" in ran.err
