"""The rule by which a plan yields, as laws over all plans and all that others may have committed."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from evaluator.tables.rows import UNDATED, Key, Row, State, Unit
from evaluator.tables.yielding import FINAL, Tail, gone_on, rebase

STATES = list(get_args(State))
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def a_row(state: State, target: str = "a", scorer: str | None = None) -> Row:
    return Row(
        day=UNDATED,
        scope="live",
        target_type="TRACE",
        target_id=target,
        scorer=scorer,
        version=scorer and "v1",
        state=state,
    )


states = st.sampled_from(STATES)
rows = st.builds(a_row, states, st.sampled_from("abc"), st.sampled_from([None, "x", "y"]))
units: st.SearchStrategy[list[Unit]] = st.lists(st.lists(rows, min_size=1, max_size=4), max_size=5)
tails = st.dictionaries(
    st.builds(lambda row, revision: row.key._replace(revision=revision), rows, st.sampled_from([0, 0, 0, 1])),
    st.lists(states, min_size=1, max_size=3),
    max_size=6,
)


@given(units, tails)
def test_nothing_final_comes_twice_and_a_plan_holds_one_row_a_key(
    plan: list[Unit], tail: dict[Key, Sequence[State]]
) -> None:
    kept = rebase(plan, Tail(tail))

    assert len({row.key for row in kept}) == len(kept)
    for row in kept:
        since = tail.get(row.key, ())
        assert not (row.state in FINAL and any(state in FINAL for state in since))
        assert not (row.state not in FINAL and since)


@given(units)
def test_with_nothing_since_every_key_of_the_plan_is_kept(plan: list[Unit]) -> None:
    assert {row.key for row in rebase(plan, Tail())} == {row.key for unit in plan for row in unit}


@given(units, tails)
def test_what_is_kept_comes_from_units_whose_head_did_not_yield(
    plan: list[Unit], tail: dict[Key, Sequence[State]]
) -> None:
    fallen = [
        unit
        for unit in plan
        if unit[0].state in ("done", "replaced")
        and any(state in FINAL for state in tail.get(unit[0].key, ()))
    ]
    standing = [row for unit in plan if unit not in fallen for row in unit]

    assert all(row in standing for row in rebase(plan, Tail(tail)))


def test_a_whole_unit_yields_with_its_first_row() -> None:
    unit = [a_row("done"), a_row("scored", scorer="x")]

    assert rebase([unit], Tail({unit[0].key: ["done"]})) == []


def a_revision(number: int) -> Unit:
    """A new revision of a trace, which ends what is open of the one before."""
    result = replace(a_row("scored", scorer="x"), revision=number)
    ended = replace(a_row("replaced", scorer="y"), revision=number - 1)
    return [replace(a_row("done"), revision=number), result, ended]


def test_a_new_revision_stands_though_an_older_open_result_that_it_ends_was_scored() -> None:
    done, result, ended = a_revision(1)

    kept = rebase([[done, result, ended]], Tail({ended.key: ["scored"]}), decisions_yield=True)

    assert kept == [done, result]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
def test_a_new_revision_is_decided_only_with_its_results(scored: list[int]) -> None:
    unit = a_revision(1)
    tail = {unit[1].key._replace(revision=number): ["scored"] for number in scored}

    kept = rebase([unit], Tail(tail), decisions_yield=True)

    assert kept == ([] if max(scored) >= 1 else unit)


@given(tails)
def test_the_newest_revision_that_others_scored_is_known(tail: dict[Key, list[State]]) -> None:
    told = Tail(tail)

    for key in tail:
        scored = [one.revision for one in tail if one[:4] == key[:4] and "scored" in tail[one]]
        assert told.scored(key._replace(revision=9)) == max(scored, default=-1)


def test_a_result_that_another_scored_falls_out_of_a_unit_that_stands() -> None:
    unit = [a_row("done"), a_row("scored", scorer="x"), a_row("scored", scorer="y")]

    assert rebase([unit], Tail({unit[1].key: ["scored"]})) == [unit[0], unit[2]]


# --- sessions


def a_session(state: State, revision: int = 0, *, begun: int = 0, due: int | None = None) -> Row:
    return Row(
        day=UNDATED,
        scope="live",
        target_type="SESSION",
        target_id="s",
        trace_id=f"t{begun}",
        session_id="s",
        revision=revision,
        state=state,
        trace_start=NOON + timedelta(minutes=begun),
        first=NOON + timedelta(minutes=begun),
        last=NOON + timedelta(minutes=begun),
        due=None if due is None else NOON + timedelta(minutes=due),
    )


TURN = a_row("done", "t")


@given(st.lists(st.tuples(st.sampled_from(["waiting", "done"]), st.integers(0, 3)), max_size=8))
def test_a_turn_always_opens_its_session_and_never_as_a_revision_that_was_decided(
    others: list[tuple[State, int]],
) -> None:
    rows = [a_session(state, revision) for state, revision in others]
    since = {row.key: row for row in rows}
    tail = {key: [row.state] for key, row in since.items()}
    newest = {row.target_id: row for row in sorted(since.values(), key=lambda row: row.revision)}
    unit = gone_on([TURN, a_session("waiting", due=1)], newest)

    kept = rebase([unit], Tail(tail))

    assert [row.state for row in kept] == ["done", "waiting"]
    assert since.get(kept[1].key, kept[1]).state == "waiting"


@given(st.lists(st.sampled_from(["waiting", "done"]), min_size=1, max_size=3))
def test_a_decision_on_a_session_yields_to_any_row_of_it(others: list[State]) -> None:
    done = a_session("done")
    result = a_row("scored", scorer="x")

    assert rebase([[done, result]], Tail({done.key: others})) == []
    assert rebase([[done, result]], Tail()) == [done, result]


def test_the_wait_of_a_turn_that_yields_yields_with_it() -> None:
    assert rebase([[TURN, a_session("waiting")]], Tail({TURN.key: ["done"]})) == []


def test_a_wait_that_is_only_told_again_yields() -> None:
    wait = a_session("waiting")

    assert rebase([[wait]], Tail({wait.key: ["done"]})) == []


def test_a_session_knows_what_others_knew_of_it() -> None:
    mine = a_session("waiting", begun=5, due=9)
    theirs = a_session("waiting", begun=2, due=12)

    [_, row] = gone_on([TURN, mine], {theirs.target_id: theirs})

    assert (row.trace_id, row.trace_start, row.first) == ("t2", theirs.trace_start, theirs.first)
    assert (row.last, row.due) == (mine.last, theirs.due)
