"""When a turn has nothing to do, and how little it takes to know that nothing came since."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from evaluator.sinks.sink import Sink
from evaluator.tick import Outlook
from evaluator.wiring import Tables

LOOKED_AT_EVERY = 20
"""After so many turns of rest the tables are opened all the same: what no new commit tells may have changed."""


@dataclass(slots=True)
class Rest:
    """A worker at rest after a look that found nothing: it lasts until a table has another commit, or something is due."""

    outlook: Outlook
    sinks: Sequence[Sink]
    turns: int = 0

    def lasts(self, tables: Tables, now: datetime) -> bool:
        """Whether there is still nothing to do, at the price of three requests to the store.

        The third asks whether the spans table's newest known commit is still there: one made anew begins at 0.
        """
        self.turns += 1
        due, spans = self.outlook.due, tables.spans.store
        return (
            self.turns < LOOKED_AT_EVERY
            and (due is None or now < due)
            and not any(sink.due() for sink in self.sinks)
            and not spans.has_commit_after(self.outlook.spans_version)
            and spans.has_commit(self.outlook.spans_version)
            and not tables.ledger.store.has_commit_after(self.outlook.ledger_version)
        )


def rest_after(outlook: Outlook, sinks: Sequence[Sink], now: datetime) -> Rest | None:
    """The rest that a look allows, if it found nothing to do now."""
    if outlook.work or (outlook.due is not None and outlook.due <= now):
        return None
    return Rest(outlook, sinks)
