"""How things stand, told by `status` and `explain`: of what is current, and of what is out of scope for good."""

from datetime import timedelta
from pathlib import Path

import pytest

from evaluator.commands.explanation import Explained, explain
from evaluator.commands.status import status
from evaluator.feedback import Reason
from evaluator.notes import EVERY_JUDGE, pause_units
from evaluator.tables.delta import DeltaStore
from tests.bench import Bench, Greets
from tests.project import CODE_ONLY, Project
from tests.traffic import NOON, answer, append, span, spans_store, trace_id

BOTH = f"{CODE_ONLY}  - name: short\n    regex: ^.{{1,9}}$\n"


def scorers(project: Project) -> dict[str, tuple[int, int, bool]]:
    told = project.run("status", "--json").json()["scorers"]
    return {one["name"]: (one["scored"], one["passed"], one["in_force"]) for one in told}


def test_a_result_that_was_judged_anew_counts_once(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a", at=NOON), answer("b", at=NOON))
    assert project.run("once").code == 0

    assert project.run("eval", "--judge", "greets", "--rescore").code == 0

    assert scorers(project) == {"greets": (2, 2, True)}


async def test_a_revision_that_is_open_leaves_the_older_result_in_its_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    await bench.tick(Greets(), rescore_late=True)
    bench.append(span("a", "late", parent="root"))
    await bench.tick(Greets(fails=Reason.UNAVAILABLE), rescore_late=True)

    told = await status(bench.spans, bench.ledger, list, {}, [], bench.now)

    [greets] = told.scorers
    assert (greets["scored"], greets["passed"], greets["unscored"], greets["open"]) == (1, 1, 0, 1)


def test_a_scorer_that_has_said_nothing_yet_is_told_too(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a", at=NOON))
    assert project.run("once").code == 0
    project.guide(BOTH)

    assert scorers(project) == {"greets": (1, 1, True), "short": (0, 0, True)}
    assert "short" in project.run("status").out


def test_of_several_shards_the_one_that_never_ran_is_named(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a", at=NOON), answer("b", at=NOON), answer("c", at=NOON))
    fresh = project.run("status")
    assert project.run("once", "--shard", "0/2").code == 0

    told = project.run("status")

    assert "no tick has come to its end yet" in fresh.err
    assert "annotations: up to date" in fresh.out
    assert "spans: nothing read yet by shard 1/2" in told.out
    assert "no tick" not in told.err
    assert "1/2 has read nothing yet" in told.err


def told_of(bench: Bench, name: str, version: str = "v1") -> tuple[str, str, Explained]:
    explained = explain(trace_id(name), bench.spans, bench.ledger, {"greets": version})
    [scorer] = explained.scorers
    return explained.state, explained.why, scorer


async def test_a_trace_that_ended_before_the_floor_is_out_of_scope_for_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a", at=bench.now - timedelta(days=9)))
    await bench.tick(Greets(), start=timedelta(days=7))

    state, why, scorer = told_of(bench, "a")

    assert state == scorer.state == "out of scope"
    assert why.startswith(f"it ended before {bench.now - timedelta(days=7):%Y-%m-%d %H:%M:%S}Z")


async def test_what_was_there_before_scoring_began_is_told_from_what_is_not_read_yet(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    foreign = DeltaStore(str(tmp_path / "foreign"))
    foreign.create(spans_store(tmp_path / "x").open().schema)
    bench.spans_store = bench.spans.store = foreign
    append(foreign, [answer("a", at=bench.now - timedelta(days=9))])
    await bench.tick(Greets())

    before = told_of(bench, "a")
    append(foreign, [answer("b", at=bench.now)])
    unread = told_of(bench, "b")

    assert (before[0], before[1][:37]) == ("out of scope", "it was there before scoring began at ")
    assert unread[0] == "not read"


async def test_a_result_says_that_another_version_is_in_force(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    await bench.tick(Greets())

    [old, new] = explain(trace_id("a"), bench.spans, bench.ledger, {"greets": "v2"}).scorers

    assert (old.version, old.why.partition("; ")[2]) == ("v1", "version v2 is in force now")
    assert (new.version, new.state) == ("v2", "not scored")


@pytest.mark.parametrize("name", ["greets", EVERY_JUDGE])
async def test_what_is_tried_again_says_that_its_judge_is_paused(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("a"))
    await bench.tick(Greets(fails=Reason.TIMEOUT))
    before = told_of(bench, "a")[2].why

    bench.ledger.open().commit(pause_units([name], on=True))

    assert "paused" not in before
    assert told_of(bench, "a")[2].why == f"{before}; paused: after `evaluator resume`"
