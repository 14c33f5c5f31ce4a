"""The ledger's protocol, held by the real code on real tables through random histories, and missed by each mutant.

A seed tells the whole history only with PYTHONHASHSEED=0, as `make test` has it.
"""

import pytest

from tests.faults.history import Tally, run_history
from tests.faults.mutants import MUTANTS
from tests.faults.protocol import caught

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
