"""Records and scorers in, results out."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.errors import ModelError
from evaluator.feedback import Reason, Scored, Unscored, Usage
from evaluator.scorers.scorer import Scorer, UnusableModelError
from evaluator.tables.rows import Row

BEGUN_AT_ONCE = 8
UNDERWAY = 2_000
"""How many calls are prepared at most: each holds its prompt, and one trace may bring a thousand spans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """A scorer in force, whom it looks at, and whether it is paused (then nothing is tried again for it).

    `affords` tells of an open row that waits for the budget whether there may be room for it now. `since`: how far it
    catches up on the past; `spares` tells whether the budget has enough left for that.
    """

    scorer: Scorer
    rule: SelectionRule
    paused: bool = False
    affords: Callable[[Row], bool] = lambda row: True
    since: timedelta | None = None
    spares: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One scorer's work on one record."""

    scorer: Scorer
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One result for each assignment, in their order.

    `failure` says what the operator has to mend; what that kept from being judged is MISCONFIGURED, and nobody's attempt.
    """

    results: Sequence[Scored]
    failure: ModelError | None = None


async def score(assignments: Sequence[Assignment], line: asyncio.Lock | None = None) -> Scores:
    """Every assignment's result; a scorer whose configuration has to be mended does not hold up the others.

    What waits on a model goes out in the order of the assignments, one record a call, many at once; each
    scorer of code gets all its records together. `line` is shared by those who score at the same time: whose
    turn is first asks first.
    """
    results: dict[int, Scored] = {}
    failures: list[ModelError] = []
    batches: dict[int, list[int]] = {}
    underway = asyncio.Semaphore(UNDERWAY)
    for index, assignment in enumerate(assignments):
        alone = assignment.scorer.waits
        batches.setdefault(-index - 1 if alone else id(assignment.scorer), []).append(index)

    async def run(indexes: list[int]) -> None:
        scorer = assignments[indexes[0]].scorer
        try:
            scored = await scorer.score([assignments[index].record for index in indexes])
        except ModelError as failure:
            failures.append(failure)
            unscored = Unscored(reason=Reason.MISCONFIGURED, detail=str(failure))
            usage = failure.usage if isinstance(failure, UnusableModelError) else Usage()
            scored = [Scored(outcome=unscored, usage=usage)] * len(indexes)
        finally:
            underway.release()
        results.update(zip(indexes, scored, strict=True))

    async with asyncio.TaskGroup() as group, line or asyncio.Lock():
        for begun, indexes in enumerate(batches.values(), start=1):
            await underway.acquire()
            group.create_task(run(indexes))
            if begun % BEGUN_AT_ONCE == 0:
                await asyncio.sleep(0)  # Each renders a prompt first: answers to others are read in between.
    # One misconfigured judge says the same a thousand times.
    return Scores(
        results=[results[index] for index in range(len(assignments))],
        failure=failures[0] if failures else None,
    )


def is_held_up(scored: Scored) -> bool:
    """Whether the configuration kept a scorer from this."""
    return isinstance(scored.outcome, Unscored) and scored.outcome.reason.configuration
