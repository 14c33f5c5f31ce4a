"""What every scorer that is code owes: one result for each record, in order, never an exception, a true version."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Scored, Unscored
from evaluator.guidelines.definitions import (
    BuiltinDefinition,
    PythonDefinition,
    RegexDefinition,
    ScorerDefinition,
    SqlDefinition,
)
from evaluator.scorers.builtin import BUILTINS, BuiltinScorer
from evaluator.scorers.code import CodeScorer
from evaluator.scorers.process import ScorerProcess
from evaluator.scorers.regex import RegexScorer
from evaluator.scorers.scorer import Scorer
from evaluator.scorers.sql import SqlScorer
from tests.a_trace import a_record, a_tool_call


@dataclass(frozen=True)
class Case:
    """A kind of scorer: a definition, and parts of it whose change has to make another version."""

    definition: ScorerDefinition
    changes: tuple[dict[str, Any], ...] = ()


CASES = {
    "sql": Case(SqlDefinition(name="a", sql="duration_ms < 1000"), ({"sql": "duration_ms < 999"},)),
    "sql that fails": Case(SqlDefinition(name="a", sql="response::INTEGER > 1"), ()),
    "regex": Case(RegexDefinition(name="a", regex=r"\d"), ({"regex": r"\w"}, {"on": "request"})),
    "python": Case(PythonDefinition(name="a", python="mine:judge"), ({"python": "mine:other"},)),
    "python that fails": Case(PythonDefinition(name="a", python="mine:broken"), ()),
    **{name: Case(BuiltinDefinition(name="a", builtin=name)) for name in BUILTINS},
}
RECORDS = [
    a_record(trace_id="1" * 32),
    a_record(
        trace_id="2" * 32, request=None, response=None, duration_ms=None, total_tokens=None, start_time=None
    ),
    a_record(trace_id="3" * 32, request="", response="", tools=(), tags={}, attributes={}),
    a_record(trace_id="4" * 32, response="12", status="ERROR", duration_ms=-1.0, incomplete=True),
    a_record(trace_id="5" * 32, response="é☃\x00 " * 1000, steps=(a_tool_call(failed=True),) * 3),
]
Build = Callable[[ScorerDefinition], Scorer]


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    source = (
        "def judge(): return True\ndef other(): return True\ndef broken(trace): return trace['nothing']\n"
    )
    (tmp_path / "mine.py").write_text(source)
    process = ScorerProcess("mine", tmp_path)

    def build(definition: ScorerDefinition) -> Scorer:
        match definition:
            case SqlDefinition():
                return SqlScorer(definition)
            case RegexDefinition():
                return RegexScorer(definition)
            case PythonDefinition():
                return CodeScorer(definition, process, tmp_path)
            case BuiltinDefinition():
                return BuiltinScorer(definition)

    yield build
    await process.close()


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def told(scored: Scored) -> tuple[str, object]:
    match scored.outcome:
        case Feedback(value=value, passed=passed, rationale=rationale):
            assert passed is None or value == ("yes" if passed else "no")
            return rationale, value
        case Unscored(reason=reason, detail=detail):
            return detail, reason


async def test_each_record_has_its_own_result_in_order(build: Build, case: Case) -> None:
    scorer = build(case.definition)

    together = await scorer.score(RECORDS)

    alone = [(await scorer.score([record]))[0] for record in RECORDS]
    assert list(together) == alone
    assert list(await scorer.score(RECORDS[::-1])) == alone[::-1]
    assert list(await scorer.score([])) == []


async def test_every_result_says_why(build: Build, case: Case) -> None:
    for scored in await build(case.definition).score(RECORDS):
        assert told(scored)[0]


def test_a_scorer_that_is_code_says_so_and_waits_for_nothing(build: Build, case: Case) -> None:
    scorer = build(case.definition)

    assert (scorer.name, scorer.source_type, scorer.waits) == ("a", "CODE", False)
    assert scorer.definition["kind"] == case.definition.__class__.__name__.removesuffix("Definition").lower()


def test_a_version_is_not_changed_by_a_name_a_filter_or_a_rate(build: Build, case: Case) -> None:
    other = replace(case.definition, name="b", filter="true", sample_rate=0.5, path="elsewhere", line=9)

    assert build(other).version == build(case.definition).version


def test_a_version_changes_with_what_can_change_a_result(build: Build, case: Case) -> None:
    versions = [build(replace(case.definition, **change)).version for change in ({}, *case.changes)]

    assert len(set(versions)) == len(versions)


def test_no_two_kinds_share_a_version(build: Build) -> None:
    versions = {name: build(case.definition).version for name, case in CASES.items()}

    assert len(set(versions.values())) == len(versions)


async def test_a_rationale_shows_the_condition_and_the_values_it_looked_at(build: Build) -> None:
    record: Record = a_record(duration_ms=1500.0, service_name="x" * 200)
    scorer = build(SqlDefinition(name="a", sql="duration_ms < 1000 OR service_name = 'y'"))

    [scored] = await scorer.score([record])

    assert told(scored)[0] == (
        "duration_ms < 1000 OR service_name = 'y' does not hold: duration_ms = 1500.0, "
        f"service_name = '{'x' * 80}…'"
    )
