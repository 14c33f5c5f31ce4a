"""Judges and scorers of spans as a user has them: through the commands, on real tables and a stub provider."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project
from tests.stub_provider import StubProvider, prompt_of, schema_of
from tests.traffic import answer, span, span_id, trace_id

GUIDELINES = """
judges:
  - name: right_query
    guidelines: The query must be about tickets.
    target: span
    span_filter: span_type = 'TOOL' AND tool_name = 'sql'
    batch: joint
  - name: safe_query
    guidelines: The query must not write.
    target: span
    span_filter: span_type = 'TOOL' AND tool_name = 'sql'
    batch: joint
scorers:
  - {name: quick, sql: duration_ms < 100, target: span, span_filter: span_type = 'TOOL'}
  - {name: worked, builtin: tool_errors, target: span, span_filter: span_type = 'TOOL'}
  - {name: counts, regex: '\\d', target: span, span_filter: span_type = 'TOOL'}
  - {name: named, python: "own:named", target: span, span_filter: span_type = 'TOOL'}
  - {name: whole, regex: Hello}
"""
OWN = """
def named(span, outputs, trace):
    return span["tool_name"] == "sql" and outputs == span["output"] and len(trace["spans"]) == 4
"""


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as provider:
        yield provider


def a_tool(name: str, tool: str, **values: Any) -> dict[str, Any]:
    attributes = {
        "openinference.span.kind": "TOOL",
        "tool.name": tool,
        "input.value": f"select {name}",
        **values,
    }
    return span("a", name, parent="root", **attributes)


def a_project(folder: Path, stub: StubProvider) -> Project:
    (folder / "own.py").write_text(OWN)
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    project = Project.create(folder, GUIDELINES, judge=judge, python_modules=["own"])
    project.append(
        answer("a"),
        a_tool("one", "sql", **{"output.value": "12"}),
        a_tool("two", "sql", **{"output.value": "none"}),
        a_tool("three", "mail", **{"output.value": "sent"}),
        answer("b"),
    )
    return project


def test_each_span_is_judged_with_its_trace_around_it_and_told_of(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)

    ran = project.run("once", "--json")
    assert ran.code == 0, ran.err
    told = ran.json()

    rows = project.sql("select name, span_id, passed from assessments order by name, span_id")
    by_name: dict[str, dict[str, bool]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["span_id"]] = row["passed"]
    one, two, three = (span_id("a", name) for name in ("one", "two", "three"))
    assert set(by_name["right_query"]) == set(by_name["safe_query"]) == {one, two}
    assert by_name["counts"] == {one: True, two: False, three: False}
    assert by_name["quick"] == {one: False, two: False, three: False}
    assert by_name["worked"] == {one: True, two: True, three: True}
    assert by_name["named"] == {one: True, two: True, three: False}
    assert list(by_name["whole"]) == [None]
    assert (told["traces"], told["calls"]) == (2, len(stub.requests)) == (2, 2)
    assert told["results"] == len(rows) == 18
    prompts = sorted(map(prompt_of, stub.requests))
    assert all(prompt.index("select") < prompt.index("trace: request") for prompt in prompts)
    assert all(schema_of(request)["required"] == ["right_query", "safe_query"] for request in stub.requests)


def test_explain_try_and_eval_know_of_spans(tmp_path: Path, stub: StubProvider) -> None:
    project = a_project(tmp_path, stub)
    day = ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--judge", "right_query")

    tried = project.run("try", "--judge", "right_query", trace_id("a"), "--json").json()
    nothing = project.run("try", "--judge", "right_query", trace_id("b"))
    estimated = project.run(*day, "--dry-run", "--json").json()
    told = project.run(*day, "--json").json()
    project.run("once")
    rescoring = project.run(*day, "--rescore", "--dry-run", "--json").json()
    rescored = project.run(*day, "--rescore", "--json").json()
    explained = project.run("explain", trace_id("a"), "--json").json()
    shown = project.run("explain", trace_id("a")).out

    assert [one["span_id"] for one in tried] == [span_id("a", "one"), span_id("a", "two")]
    assert nothing.code == 1
    assert "no span matches" in nothing.err
    assert (estimated["calls"], told["calls"], told["results"]) == (2, 2, 2)
    assert (rescoring["calls"], rescored["calls"], rescored["results"]) == (2, 2, 2)
    of_judge = [one for one in explained["scorers"] if one["scorer"] == "right_query"]
    assert sorted((one["span_id"], one["revision"]) for one in of_judge) == sorted(
        (span_id("a", name), revision) for name in ("one", "two") for revision in (0, 1)
    )
    assert "span" in shown.splitlines()[2]
