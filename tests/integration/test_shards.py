"""Several workers share the work out among them; however many they are, each trace is decided once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from evaluator.errors import SharedOutError
from evaluator.live.arrivals import Arrivals
from evaluator.live.work import Parts, Work
from evaluator.shards import WHOLE, Shard, parse_shard
from evaluator.summary import Summary
from evaluator.tick import look, tick
from tests.bench import Bench, Greets
from tests.project import Project
from tests.traffic import answer

JUDGES = "scorers:\n  - {name: quick, sql: 'duration_ms < 5000'}\n"


def test_every_trace_is_held_by_one_shard() -> None:
    shards = [Shard(index, 3) for index in range(3)]
    held = Counter(
        shard.index for number in range(3_000) for shard in shards if shard.holds(f"{number:032x}")
    )

    assert held.total() == 3_000
    assert min(held.values()) > 900


@pytest.mark.parametrize("text", ["", "1", "1/1", "2/2", "-1/2", "0/0", "a/b", "0/1000"])
def test_what_is_no_shard_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no shard"):
        parse_shard(text)


def parts(bench: Bench, shard: Shard) -> Parts:
    return bench.parts(Greets(), shard=shard)


async def test_shards_decide_all_there_is_between_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ledger.open().share_out(2, bench.spans.open().table_id)
    bench.append(*(answer(f"t{number}") for number in range(20)))
    summaries = await asyncio.gather(*(tick(parts(bench, Shard(index, 2)), "run") for index in range(2)))

    assert sum(summary.traces for summary in summaries) == 20
    assert all(summary.traces for summary in summaries)
    assert bench.ledger.open().cursor(bench.spans.open().table_id) == bench.spans.open().version
    assert not any(look(parts(bench, Shard(index, 2))).work for index in range(2))


async def test_who_takes_the_work_over_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table_id = bench.spans.open().table_id
    bench.append(*(answer(f"t{number}") for number in range(20)))
    bench.ledger.open().share_out(2, table_id)
    first = await tick(parts(bench, Shard(0, 2)), "run")
    bench.ledger.open().share_out(3, table_id)
    later = [await tick(parts(bench, Shard(index, 3)), "run") for index in range(3)]
    bench.ledger.open().share_out(1, table_id)
    last = await tick(parts(bench, WHOLE), "run")
    scored = Counter(row["trace_id"] for row in bench.ledger.open().table("state = 'scored'").to_pylist())

    assert first.traces + sum(summary.traces for summary in later) == 20
    assert last.traces == 0
    assert set(scored.values()) == {1}


async def test_where_scoring_starts_is_said_for_all_shards(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append(answer("old"))
    bench.ledger.open().share_out(2, bench.spans.open().table_id)
    await tick(bench.parts(Greets(), shard=Shard(0, 2), start="latest"), "run")
    bench.append(*(answer(f"t{number}") for number in range(20)))
    summaries = [
        await tick(bench.parts(Greets(), shard=Shard(index, 2), start="latest"), "run") for index in range(2)
    ]

    assert sum(summary.traces for summary in summaries) == 20


def test_a_worker_of_another_layout_says_how_to_start(tmp_path: Path) -> None:
    project = Project.create(tmp_path, JUDGES)
    project.append(*(answer(f"t{number}") for number in range(8)))
    halves = [project.run("once", "--json", "--shard", f"{index}/2").json() for index in (0, 1)]
    refused = project.run("once", "--json")
    whole = project.run("once", "--json", "--shard", "0/1").json()

    assert sum(told["traces"] for told in halves) == 8
    assert refused.code == 2
    assert "--shard i/2" in refused.err
    assert (whole["traces"], project.run("once", "--json").json()["traces"]) == (0, 0)


async def test_a_worker_stops_when_the_work_is_shared_out_anew(tmp_path: Path) -> None:
    from evaluator.config import load_config
    from evaluator.wiring import build_tables
    from evaluator.worker.turns import Worker

    project = Project.create(tmp_path, JUDGES)
    config = load_config(project.folder / "evaluator.yaml")
    tables = build_tables(config)
    old, new = Worker(config, tables), Worker(config, tables, shard=Shard(0, 2))
    await old.turn(wait=True)
    await new.turn(wait=True)
    with pytest.raises(SharedOutError, match="among 2 workers"):
        await old.turn(wait=True)
    await old.close()
    await new.close()


async def test_who_begins_while_the_work_is_shared_out_anew_takes_no_shard_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table_id = bench.spans.open().table_id
    late = Work(bench.parts(Greets(), start="latest"), "run", Summary(run_id="run"))
    bench.ledger.open().share_out(2, table_id)
    first = bench.parts(Greets(), shard=Shard(0, 2), start="latest")
    await tick(first, "run")
    bench.append(answer("a"))
    await tick(first, "run")
    await Arrivals(late).decide()

    assert bench.ledger.open().cursor(table_id, Shard(0, 2)) == bench.spans.open().version
