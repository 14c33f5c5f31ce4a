"""The command with its clock moved: `python -m tests.faults.shifted SECONDS once` lives so many seconds from now.

Only what the program calls now is moved; the times of its files and commits are the store's.
"""

import sys
from datetime import datetime, timedelta, tzinfo

from evaluator import wiring
from evaluator.cli import main, options
from evaluator.models import budget, openai

SHIFT = timedelta(seconds=float(sys.argv.pop(1)))


class Shifted(datetime):
    """`datetime` as the modules know it that ask for the time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # what is told is an ordinary time
        return datetime.now(tz) + SHIFT


if __name__ == "__main__":
    for module in (wiring, options, budget, openai):
        module.datetime = Shifted  # type: ignore[attr-defined]  # where `utc_now` and the like look it up
    main.main()
