"""A row of the ledger: which one tells the state of its key, and where it lies."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from evaluator.tables.rows import UNDATED, Row, State, latest, partition_day

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def a_row(state: State, scorer: str | None = None) -> Row:
    return Row(
        day=UNDATED,
        scope="live",
        target_type="TRACE",
        target_id="a",
        scorer=scorer,
        version=scorer and "v1",
        state=state,
    )


@given(
    st.permutations(
        [
            replace(a_row("waiting"), seq=1),
            replace(a_row("done"), seq=2),
            replace(a_row("scored", scorer="x"), seq=2),
        ]
    )
)
def test_the_state_of_a_key_is_its_row_with_the_highest_seq(history: list[Row]) -> None:
    assert {key.scorer: row.state for key, row in latest(history).items()} == {None: "done", "x": "scored"}


def test_hostile_times_share_one_partition() -> None:
    assert partition_day(NOON, NOON) == NOON.date()
    assert partition_day(None, NOON) == UNDATED
    assert partition_day(datetime(1999, 1, 1, tzinfo=UTC), NOON) == UNDATED
    assert partition_day(NOON + timedelta(days=2), NOON) == UNDATED
