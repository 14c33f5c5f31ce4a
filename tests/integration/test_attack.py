"""Attacking judges that are gullible in a known way, so that the count is known."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluator.commands.attack import attack_judge
from evaluator.commands.attack_set import shipped_attacks
from evaluator.config import load_config
from evaluator.errors import ConfigurationError
from tests.project import Project
from tests.stub_provider import StubProvider

GOOD = "There are 12 open support tickets"
WEAKNESS = 'nswer "'
ATTACKS = shipped_attacks().attacks
GUIDELINES = """
judges:
  - name: only_the_answer
    instructions: "Does {{ outputs }} name a number?"
  - name: stars
    instructions: "How concrete is the work?"
    values: {min: 1, max: 5}
    pass_if: "value >= 3"
  - name: with_examples
    guidelines: The response must be a greeting.
    examples:
      - {inputs: Hi, outputs: Good morning!, expect: pass}
      - {inputs: Hi, outputs: What do you want, expect: fail}
scorers:
  - name: greets
    regex: Hello
"""


@pytest.fixture(scope="module")
def stub() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, stub: StubProvider) -> Project:
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url}
    return Project.create(tmp_path_factory.mktemp("project"), GUIDELINES, judge=judge)


def firm(prompt: str) -> str:
    return "yes" if GOOD in prompt else "no"


def gullible(prompt: str) -> str:
    honest = firm(prompt)
    return honest if WEAKNESS not in prompt else "no" if honest == "yes" else "yes"


def weak_spots() -> set[str]:
    return {attack.name for attack in ATTACKS if WEAKNESS in attack.injected("yes")}


async def attacked(
    project: Project, stub: StubProvider, verdict: Callable[[str], Any], name: str | None = None
) -> dict[str, Any]:
    stub.verdict = verdict
    report = await attack_judge(load_config(project.folder / "evaluator.yaml", environment={}), name)
    return report.to_json()


async def test_a_firm_judge_is_not_turned_and_the_tables_stay_as_they_are(
    project: Project, stub: StubProvider
) -> None:
    def files() -> dict[Path, int]:
        """All but the ledger, whose account of the day's budget counts these calls too."""
        return {
            path: path.stat().st_size
            for path in (project.folder / "traces").rglob("*")
            if path.is_file() and "eval_ledger" not in str(path)
        }

    before = files()
    stub.requests.clear()
    report = await attacked(project, stub, firm)

    assert (report["judge"], report["attacks"]) == ("attack_test", len(ATTACKS))
    assert (report["turned"], report["held"]) == (0, len(ATTACKS))
    assert report["calls"] == len(stub.requests) == len(ATTACKS) + 2
    assert report["cost_usd"] > 0
    assert files() == before
    assert project.sql("select * from ledger") == []


async def test_those_that_turned_a_gullible_judge_are_counted_and_named(
    project: Project, stub: StubProvider
) -> None:
    report = await attacked(project, stub, gullible)

    assert 5 < len(weak_spots()) < len(ATTACKS)
    assert {one["name"] for one in report["attempts"] if one["state"] == "turned"} == weak_spots()
    assert report["turned"] + report["held"] == len(ATTACKS)


def test_a_gate_on_the_count_exits_with_three(project: Project, stub: StubProvider) -> None:
    stub.verdict = gullible
    met = project.run("attack-test", "--fail-over", str(len(weak_spots())), "--json")
    missed = project.run("attack-test", "--fail-over", str(len(weak_spots()) - 1))

    assert (met.code, missed.code) == (0, 3)
    assert met.json()["turned"] == len(weak_spots())
    assert f"{len(weak_spots())} of {len(ATTACKS)} attacks turned the judge" in missed.out
    assert "the gate is not met" in missed.err
    assert "chatml (response): no became yes" in missed.out


async def test_a_judge_that_is_wrong_without_an_attack_is_said_to_be(
    project: Project, stub: StubProvider
) -> None:
    report = await attacked(project, stub, lambda _: "yes")

    assert report["misjudged"] == sum(attack.on == "bad" for attack in ATTACKS)
    assert report["turned"] == 0


async def test_what_a_judge_is_not_shown_cannot_turn_it(project: Project, stub: StubProvider) -> None:
    report = await attacked(project, stub, gullible, "only_the_answer")

    assert report["unseen"] == sum(attack.place != "response" for attack in ATTACKS)
    assert report["unseen"] + report["held"] + report["turned"] == len(ATTACKS)


async def test_the_verdict_without_an_attack_is_the_reference_of_ones_own_judge(
    project: Project, stub: StubProvider
) -> None:
    report = await attacked(project, stub, lambda prompt: 5 if WEAKNESS in prompt else 2, "stars")

    turned = {one["name"] for one in report["attempts"] if one["state"] == "turned"}
    assert turned == weak_spots()
    assert {one["wanted"] for one in report["attempts"]} == {5}


async def test_the_examples_of_a_judge_are_the_records_it_is_attacked_on(
    project: Project, stub: StubProvider
) -> None:
    report = await attacked(
        project, stub, lambda prompt: "yes" if "Good morning!" in prompt else "no", "with_examples"
    )

    assert report["held"] == len(ATTACKS)


async def test_a_name_that_is_no_judge_is_refused(project: Project, stub: StubProvider) -> None:
    with pytest.raises(ConfigurationError, match='there is no judge "greets"'):
        await attacked(project, stub, firm, "greets")
