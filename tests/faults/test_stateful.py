"""The histories with their steps chosen by hypothesis, which finds the shortest of those that break the law.

The long form draws them from seeds (`tests.faults.protocol`), with the same steps and the same law.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.history import AT_ONCE, FATES, HAPPENS, KINDS, STOP, History, Tally, silence
from tests.faults.mirror import Violation
from tests.faults.mutants import mutated
from tests.faults.world import small_portions

SHORT = settings(
    max_examples=5,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
MOSTLY_WELL = st.sampled_from([*[None] * 40, *FATES, STOP])
STEPS = st.lists(st.tuples(st.integers(0, AT_ONCE - 1), MOSTLY_WELL), min_size=1, max_size=12)
"""Whose turn it is, and what goes wrong there."""


class Protocol(RuleBasedStateMachine):
    """Workers of all kinds on real tables. Every commit is held to the invariants; at the end all comes to rest."""

    def __init__(self) -> None:
        super().__init__()
        self._around = ExitStack()
        self._folder = Path(self._around.enter_context(TemporaryDirectory()))
        self._around.enter_context(small_portions())
        self._around.enter_context(silence())
        self._is_whole = False
        """Whether every step until now was taken to its end."""

    @initialize(seed=st.integers(0, 9_999), race=st.booleans())
    def tables_are_made(self, seed: int, race: bool) -> None:
        """The seed says what each commit of spans holds, what is edited, and what the judges answer."""
        self._history = History(self._folder, seed, Tally(), race=race)
        self._around.callback(self._history.end)
        self._is_whole = True

    @precondition(lambda self: len(self._history.workers) < AT_ONCE)
    @rule(kind=st.sampled_from(KINDS), beside=st.booleans())
    def a_worker_starts(self, kind: str, beside: bool) -> None:
        self._take(partial(self._history.begin, "live" if self._history.race else kind))
        if beside and len(self._history.workers) < AT_ONCE:
            self._take(self._history.begin_beside)

    @precondition(lambda self: self._history.workers)
    @rule(steps=STEPS)
    def workers_go_on(self, steps: Sequence[tuple[int, str | None]]) -> None:
        for number, fate in steps:
            if number < len(self._history.workers):
                self._take(partial(self._history.go_on, self._history.workers[number], fate))

    @rule(what=st.sampled_from([name for name, _ in HAPPENS]))
    def something_happens(self, what: str) -> None:
        self._take(partial(self._history.happen, what))

    def teardown(self) -> None:
        with self._around:
            if self._is_whole:
                self._history.rest()

    def _take(self, step: Callable[[], object]) -> None:
        self._is_whole = False
        step()
        self._is_whole = True


def test_the_law_holds_whatever_steps_are_taken() -> None:
    run_state_machine_as_test(Protocol, settings=SHORT)


@pytest.mark.parametrize("name", ["cursor_on_the_first_chunk", "no_shared_guard", "open_forgotten"])
def test_a_rule_that_is_broken_is_noticed(name: str) -> None:
    """Those that few steps show; `test_protocol` and the long form have all of them."""
    longer = settings(SHORT, max_examples=40, stateful_step_count=40)

    with mutated(name), pytest.raises(Violation):
        run_state_machine_as_test(Protocol, settings=longer)
