"""Records and scorers in, results out."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from evaluator.dataset.records import Record
from evaluator.dataset.selection import SelectionRule
from evaluator.feedback import Scored
from evaluator.scorers.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """A scorer in force, whom it looks at, and whether it is paused (then nothing is tried again for it)."""

    scorer: Scorer
    rule: SelectionRule
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One scorer's work on one record."""

    scorer: Scorer
    record: Record


async def score(assignments: Sequence[Assignment]) -> list[Scored]:
    """One result for each assignment, in their order.

    What waits on a model goes out in the order of the assignments, one record a call, many at once; each
    scorer of code gets all its records together. Raises ModelError when the configuration has to be
    mended before anything can be judged; then nothing of this call counts.
    """
    results: dict[int, Scored] = {}
    batches: dict[int, list[int]] = {}
    for index, assignment in enumerate(assignments):
        alone = assignment.scorer.waits
        batches.setdefault(-index - 1 if alone else id(assignment.scorer), []).append(index)

    async def run(indexes: list[int]) -> None:
        scorer = assignments[indexes[0]].scorer
        scored = await scorer.score([assignments[index].record for index in indexes])
        results.update(zip(indexes, scored, strict=True))

    try:
        async with asyncio.TaskGroup() as group:
            for indexes in batches.values():
                group.create_task(run(indexes))
    except* Exception as failures:
        raise _first(failures) from failures
    return [results[index] for index in range(len(assignments))]


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of a group: one misconfigured judge says the same a thousand times."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
