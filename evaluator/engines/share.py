"""One worker's part of limits that hold for all workers together."""

from evaluator.config import JudgeSettings


def share_of(settings: JudgeSettings, number: int, count: int) -> JudgeSettings:
    """The part of worker `number`, from 0, of `count` of them; what the parts allow adds up to the whole.

    A day's budget is not parted: the ledger keeps it for all who spend. `count` is at most `max_concurrency`, or some
    would have none.
    """

    def whole(total: int) -> int:
        return (total + number) // count

    return settings.model_copy(
        update={
            "max_concurrency": whole(settings.max_concurrency),
            "requests_per_minute": _part(settings.requests_per_minute, count),
            "tokens_per_minute": _part(settings.tokens_per_minute, count),
            "budget": settings.budget.model_copy(
                update={
                    "usd_per_run": _part(settings.budget.usd_per_run, count),
                    "tokens_per_run": None
                    if settings.budget.tokens_per_run is None
                    else whole(settings.budget.tokens_per_run),
                }
            ),
        }
    )


def _part(total: float | None, count: int) -> float | None:
    return None if total is None else total / count
