"""What a spans table may be made of and what may happen to it: read as it is, or refused in words at opening."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from evaluator.errors import TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.schemas import SPANS
from evaluator.tables.spans import SHORTER, SpansTable
from evaluator.tick import look
from evaluator.traces.assembly import Arrival
from tests.bench import Bench, Greets
from tests.column_mapping import write_mapped
from tests.traffic import NOON, answer, append, spans_store, trace_id


def enable(path: Path, *features: str) -> None:
    """Give a table reader features, in a commit of its own."""
    version = len(list((path / "_delta_log").glob("*.json")))
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    lists = {"readerFeatures": list(features), "writerFeatures": list(features)}
    (path / "_delta_log" / f"{version:020d}.json").write_text(json.dumps({"protocol": protocol | lists}))


def ids(arrivals: list[Arrival]) -> list[str]:
    return sorted(arrival.span.trace_id for arrival in arrivals)


def opened(store: DeltaStore) -> SpansTable:
    return SpansTable(store, lambda: datetime.now(UTC))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.now = datetime.now(UTC) + timedelta(seconds=5)
    return bench


@pytest.mark.parametrize(
    ("feature", "way_out"),
    [
        ("typeWidening", "ALTER TABLE … DROP FEATURE takes it off"),
        ("typeWidening-preview", "ALTER TABLE … DROP FEATURE takes it off"),
        ("geospatial", "ALTER TABLE … DROP FEATURE takes it off"),
        ("catalogManaged", "ALTER TABLE … DROP FEATURE catalogManaged"),
        ("catalogOwned-preview", "ALTER TABLE … DROP FEATURE catalogManaged"),
    ],
)
def test_what_cannot_be_read_is_refused_when_it_is_opened(tmp_path: Path, feature: str, way_out: str) -> None:
    store = spans_store(tmp_path)
    append(store, [answer("a")])
    enable(Path(store.uri), feature)

    with pytest.raises(TableError) as raised:
        opened(store).open()

    told = str(raised.value)
    assert told.startswith(f"{store.uri}: the table ")
    assert way_out in told
    assert "\n" not in told


@pytest.mark.parametrize("feature", ["timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "columnMapping"])
def test_what_changes_nothing_for_a_reader_is_read(tmp_path: Path, feature: str) -> None:
    store = spans_store(tmp_path)
    append(store, [answer("a")])
    enable(Path(store.uri), feature)
    spans = opened(store).open()

    assert ids(list(spans.since(-1, None).arrivals)) == [trace_id("a")]
    assert spans.everything().num_rows == 1


def test_mapped_columns_are_read_by_the_table_s_names(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([answer("a"), answer("b")], schema=SPANS)
    write_mapped(tmp_path / "spans", rows)
    spans = opened(DeltaStore(str(tmp_path / "spans"))).open()

    batch = spans.since(-1, None)

    assert ids(batch.arrivals) == [trace_id("a"), trace_id("b")]
    assert {arrival.span.attributes["output.value"] for arrival in batch.arrivals} == {"Hello"}
    assert spans.everything().column_names == SPANS.names


def test_a_column_that_was_added_later_is_null_in_what_was_there_before(tmp_path: Path) -> None:
    store = spans_store(tmp_path)
    append(store, [answer("a")])
    wider = pa.schema([*SPANS, pa.field("team", pa.string())])
    store.open().append(pa.Table.from_pylist([{**answer("b"), "team": "billing"}], schema=wider))
    spans = opened(store).open()

    assert ids(list(spans.since(-1, None).arrivals)) == [trace_id("a"), trace_id("b")]
    assert sorted(map(str, spans.everything().column("team").to_pylist())) == ["None", "billing"]


async def test_a_table_made_anew_is_another_table_and_begins_where_start_says(bench: Bench) -> None:
    bench.append(answer("a"), answer("b"))
    scorer = Greets()
    await bench.tick(scorer)
    shutil.rmtree(bench.spans_store.uri)
    bench.spans_store.create(SPANS, description="Provisioned by evaluator")
    bench.append(answer("c"), answer("a"))

    summary = await bench.tick(scorer)

    assert (summary.traces, summary.results, summary.late) == (1, 1, 1)
    assert sorted(scorer.seen) == [trace_id("a"), trace_id("b"), trace_id("c")]


async def test_a_restored_table_loses_nothing_and_doubles_nothing(bench: Bench) -> None:
    """RESTORE is a commit of its own: what it brings back is added anew, and the ledger knows it."""
    first = bench.append(answer("a"))
    bench.append(answer("b"))
    scorer = Greets()
    await bench.tick(scorer)
    bench.append(answer("c"))
    DeltaTable(bench.spans_store.uri).restore(first)
    bench.append(answer("d"))

    later = await bench.tick(scorer)
    DeltaTable(bench.spans_store.uri).restore(first + 1)
    again = await bench.tick(scorer)

    assert sorted(scorer.seen) == [trace_id(name) for name in "abcd"]  # c had arrived, and may be judged
    assert (later.results, again.results) == (2, 0)


def test_a_log_that_was_put_back_is_caught_up_by_age(tmp_path: Path) -> None:
    store = spans_store(tmp_path)
    append(store, [answer("a", at=NOON)])
    spans = opened(store).open()

    batch = spans.since(7, datetime.now(UTC))

    assert (batch.caught_up, batch.upto, batch.more) == (SHORTER, 1, False)
    assert ids(list(batch.arrivals)) == [trace_id("a")]


@pytest.mark.parametrize("ticks_between", [False, True])
async def test_what_came_after_an_older_copy_was_put_back_is_judged(
    bench: Bench, tmp_path: Path, ticks_between: bool
) -> None:
    folder, copy = Path(bench.spans_store.uri), tmp_path / "copy"
    bench.append(answer("a"))
    scorer = Greets()
    await bench.tick(scorer)
    shutil.copytree(folder, copy)
    bench.append(answer("b"))
    bench.append(answer("c"))
    await bench.tick(scorer)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    for name in "defg":  # the second of these is as far on as the cursor
        bench.append(answer(name))
        if ticks_between:
            await bench.tick(scorer)
    await bench.tick(scorer)
    quiet = await bench.tick(scorer)

    assert sorted(scorer.seen) == [trace_id(name) for name in "abcdefg"]
    assert (quiet.notes, look(bench.parts(scorer)).work) == ([], False)


@pytest.mark.parametrize("stamp", [{"timestamp": 32503680000000}, {"inCommitTimestamp": -(2**62)}])
def test_nothing_arrives_later_than_now_whatever_a_commit_says(tmp_path: Path, stamp: dict[str, int]) -> None:
    store = spans_store(tmp_path)
    version = append(store, [answer("a")])
    log = Path(store.uri) / "_delta_log" / f"{version:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    told = [{"commitInfo": stamp} if "commitInfo" in action else action for action in actions]
    log.write_text("\n".join(json.dumps(action) for action in told))

    batch = opened(store).open().since(-1, None)

    assert ids(batch.arrivals) == [trace_id("a")]
    assert all(arrival.arrived <= datetime.now(UTC) for arrival in batch.arrivals)
    assert batch.upto_at <= datetime.now(UTC)
