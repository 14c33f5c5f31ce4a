"""What every layout of a spans table owes: the same spans, whoever made the table and however it is read."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from evaluator.errors import TableError
from evaluator.tables.decoding import spans_of
from evaluator.tables.delta import DeltaStore
from evaluator.tables.schemas import SPANS
from evaluator.tables.spans import SpansSnapshot, SpansTable
from evaluator.traces.assembly import Arrival
from evaluator.traces.trace import Span
from tests.databricks_tables import write_v1, write_v2_variant
from tests.deletion_vectors import delete_rows, enable
from tests.traffic import NOON, answer, append, span, trace_id

Write = Callable[[Path, Sequence[Span]], None]
FIRST = [answer("a"), span("a", "tool", parent="root"), answer("b", at=NOON + timedelta(days=3))]
SECOND = [answer("c", at=NOON + timedelta(hours=1))]


def ours(path: Path, spans: Sequence[Span]) -> None:
    raise NotImplementedError("rows are appended as they are")


LAYOUTS: dict[str, Write] = {
    "ours": ours,
    "v1 MAP": write_v1,
    "v2 VARIANT": write_v2_variant,
    "v2 VARIANT, shredded": partial(write_v2_variant, shredded=True),
}


def decoded(rows: Sequence[dict[str, object]]) -> list[Span]:
    import pyarrow as pa

    return spans_of(pa.Table.from_pylist(list(rows), schema=SPANS))


@pytest.fixture(params=LAYOUTS)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> SpansTable:
    """Two commits of spans, in one of the layouts."""
    path = tmp_path / "spans"
    store = DeltaStore(str(path))
    if request.param == "ours":
        store.create(SPANS)
        append(store, FIRST)
        append(store, SECOND)
    else:
        LAYOUTS[request.param](path, decoded(FIRST))
        LAYOUTS[request.param](path, decoded(SECOND))
    return SpansTable(store, lambda: datetime.now(UTC))


def names(arrivals: Sequence[Arrival]) -> set[tuple[str, str]]:
    return {(arrival.span.trace_id, arrival.span.name) for arrival in arrivals}


def everything(spans: SpansSnapshot) -> set[tuple[str, str]]:
    return names(spans.since(-1, None).arrivals)


def test_everything_is_new_before_the_first_cursor_and_nothing_after_the_last(table: SpansTable) -> None:
    spans = table.open()

    batch = spans.since(-1, None)

    assert names(batch.arrivals) == {
        (trace_id("a"), "root"), (trace_id("a"), "tool"), (trace_id("b"), "root"), (trace_id("c"), "root"),
    }  # fmt: skip
    assert (batch.upto, batch.more) == (spans.version, False)
    assert spans.since(batch.upto, batch.upto_at).arrivals == []


def test_a_cursor_between_the_commits_gives_the_later_one(table: SpansTable) -> None:
    spans = table.open()

    assert names(spans.since(spans.version - 1, None).arrivals) == {(trace_id("c"), "root")}


def test_attributes_events_and_status_read_the_same(table: SpansTable) -> None:
    read = {arrival.span.span_id: arrival.span for arrival in table.open().since(-1, None).arrivals}

    for written in decoded([*FIRST, *SECOND]):
        found = read[written.span_id]
        assert (found.attributes, found.status, found.service_name) == (
            written.attributes, written.status, written.service_name,
        )  # fmt: skip
        assert (found.start_time_unix_nano, found.parent_span_id) == (
            written.start_time_unix_nano, written.parent_span_id,
        )  # fmt: skip


def test_one_trace_is_found_by_its_commits_and_by_its_time(table: SpansTable) -> None:
    spans = table.open()
    commits = {
        arrival.commit for arrival in spans.since(-1, None).arrivals if arrival.span.trace_id == trace_id("a")
    }
    wanted = {(trace_id("a"), "root"), (trace_id("a"), "tool")}

    assert names(spans.of_traces({trace_id("a")}, commits, None)) == wanted
    assert names(spans.around({trace_id("a")}, (NOON, NOON))) == wanted
    assert names(spans.around({trace_id("a")}, None)) == wanted
    assert names(spans.of_traces({trace_id("a")}, [99], (NOON, NOON))) == wanted


def test_a_range_of_time_tells_the_traces_in_it_in_order(table: SpansTable) -> None:
    spans = table.open()

    portions = list(spans.ids_between(NOON, NOON + timedelta(hours=2)))
    until = list(spans.ids_between(NOON, NOON + timedelta(hours=1)))

    assert [trace for ids, _ in portions for trace in ids] == [trace_id("a"), trace_id("c")]
    assert [trace for ids, _ in until for trace in ids] == [trace_id("a")]


def test_that_spans_can_be_read_is_tried_on_the_smallest_file(tmp_path: Path) -> None:
    store = DeltaStore(str(tmp_path / "spans"))
    store.create(SPANS)
    spans = SpansTable(store, lambda: datetime.now(UTC))
    spans.open().try_out()
    append(store, [answer("a")])
    small = {file.path for file in store.open().files("time")}
    append(store, [answer(f"large{number}") for number in range(500)])
    [large] = {file.path for file in store.open().files("time")} - small

    (tmp_path / "spans" / large).unlink()
    spans.open().try_out()
    (tmp_path / "spans" / small.pop()).unlink()

    with pytest.raises(TableError, match="VACUUM"):
        spans.open().try_out()


def test_sql_sees_every_row(table: SpansTable) -> None:
    assert table.open().everything().num_rows == 4


def test_a_deleted_row_is_not_read_and_an_old_file_does_not_come_anew(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    store = DeltaStore(str(path))
    store.create(SPANS)
    first, second = append(store, FIRST), append(store, SECOND)
    enable(path)
    delete_rows(path, first, [1])
    spans = SpansTable(store, lambda: datetime.now(UTC)).open()

    assert everything(spans) == {(trace_id("a"), "root"), (trace_id("b"), "root"), (trace_id("c"), "root")}
    assert names(spans.since(first, None).arrivals) >= {(trace_id("c"), "root")}
    assert names(spans.since(second, None).arrivals) <= {(trace_id("a"), "root"), (trace_id("b"), "root")}
    assert names(spans.around(None, None)) == everything(spans)
    assert spans.everything().num_rows == 3


def test_ids_of_several_forms_in_one_file_are_all_found(tmp_path: Path) -> None:
    """Base64 as some exporters write it, and what is no id of OpenTelemetry at all."""
    store = DeltaStore(str(tmp_path / "spans"))
    store.create(SPANS)
    raw = bytes(range(1, 17))
    in_base64 = {**answer("b"), "trace_id": b64encode(raw).decode(), "span_id": b64encode(raw[:8]).decode()}
    append(store, [answer("a"), in_base64, {**answer("c"), "trace_id": "Req-17"}])
    spans = SpansTable(store, lambda: datetime.now(UTC)).open()
    ids = {trace_id("a"), raw.hex(), "Req-17"}

    assert {arrival.span.trace_id for arrival in spans.of_traces(ids, [1], None)} == ids
    assert {arrival.span.trace_id for arrival in spans.around(ids, None)} == ids


def test_a_span_without_a_time_is_found_beside_spans_that_have_one(tmp_path: Path) -> None:
    """Of the column by which files are left out; the span's own start is known."""
    store = DeltaStore(str(tmp_path / "spans"))
    store.create(SPANS)
    append(store, [{**answer("a"), "time": None}, answer("old", at=NOON - timedelta(days=30))])
    spans = SpansTable(store, lambda: datetime.now(UTC)).open()

    [(found, _)] = spans.ids_between(NOON - timedelta(days=1), NOON + timedelta(days=1))

    assert list(found) == [trace_id("a")]
