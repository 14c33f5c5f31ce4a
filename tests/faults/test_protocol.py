"""The ledger's protocol, held by the real code on real tables through random histories, and missed by each mutant.

A seed tells the whole history only with PYTHONHASHSEED=0, as `make test` has it.
"""

from pathlib import Path
from random import Random

import pytest

from evaluator.errors import ModelError
from evaluator.tables.rows import Key
from tests.a_trace import a_record, a_tool_call
from tests.faults.baton import Worker
from tests.faults.history import Tally, run_history
from tests.faults.mutants import MUTANTS
from tests.faults.protocol import caught
from tests.faults.world import Judge, World

HISTORIES = 5
STEPS = 60
TRIES = 6
FIRST = {"forgetting_without_the_sinks": 1, "no_unit_rule": 49}
"""Where to begin, for mutants that only few histories notice."""
SELDOM = {
    "a_decision_ends_what_others_know_of_late_spans",
    "a_plan_brings_back_what_was_forgotten",
    "retention_by_age_alone",
    "a_session_stands_though_a_turn_came",
    "a_turn_after_the_decision_opens_nothing",
    "a_wait_is_told_by_its_times",
    "blind_after_its_own_commit",
    "cursor_goes_back",
    "cursor_passes_a_wait_that_yields",
    "known_targets_are_as_they_were",
    "replaced_not_final",
    "shares_begin_where_the_first_one_is",
    "spans_are_not_looked_up",
}
"""Mutants that take more histories than there is time for here: the long form runs them, `test_found`, `test_known`,
`test_old_ledgers`, `test_sessions` and `test_shards` tell each."""


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_the_invariants_hold_after_every_commit_and_when_all_is_quiet(seed: int) -> None:
    tally = Tally()

    run_history(seed, STEPS, tally)

    assert tally.counts["ledger commits"] > 0


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - SELDOM))
def test_a_rule_that_is_broken_is_noticed(name: str) -> None:
    assert caught(name, TRIES, 80, FIRST.get(name, 0)) is not None


def test_what_a_judge_was_shown_counts_though_its_configuration_kept_it_from_an_answer(
    tmp_path: Path,
) -> None:
    """A decision with a span more is told by the last thing shown: an older one would seem to lack that span."""
    world = World(tmp_path, Random(0))
    world.broken = {"J"}
    step = a_tool_call()
    record = a_record(steps=(step,))
    worker = Worker(
        "live-1", "live", lambda worker: Judge(world, worker, "J", "v1", waits=False).score([record])
    )

    while not worker.done:
        worker.resume()

    key = Key("TRACE", record.trace.trace_id, "J", "v1")
    assert isinstance(worker.error, ModelError)
    assert worker.notes["shown"] == {key: {step.span.span_id}}
