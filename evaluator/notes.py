"""What the ledger keeps beside its decisions: what is paused, which scorers there were, the fence's key."""

from collections.abc import Iterable, Mapping

import orjson

from evaluator.errors import ConfigurationError
from evaluator.ports import LedgerPort
from evaluator.scorers.scorer import Scorer
from evaluator.tables.ledger import FENCE_KEY, PAUSE_NOTE, SCORER_NOTE, note
from evaluator.tables.rows import Row, Unit

EVERY_JUDGE = "*"


def fence_key(notes: Mapping[str, Row]) -> bytes:
    """The key that `init` made, for the markers around judged text. Raises ConfigurationError without one."""
    row = notes.get(FENCE_KEY)
    if row is None or not row.value:
        raise ConfigurationError("the ledger has no fence key yet: run `evaluator init`, which makes one")
    return bytes.fromhex(row.value)


def paused(notes: Mapping[str, Row]) -> set[str]:
    """The names of the paused judges; "*" stands for all of them."""
    return {
        name.removeprefix(PAUSE_NOTE)
        for name, row in notes.items()
        if name.startswith(PAUSE_NOTE) and row.value == "true"
    }


def pause_units(names: Iterable[str], *, on: bool) -> list[Unit]:
    """The commit that pauses or resumes judges."""
    return [[note(f"{PAUSE_NOTE}{name}", state="done", value="true" if on else "false")] for name in names]


def note_scorers(ledger: LedgerPort, scorers: Iterable[Scorer]) -> None:
    """Remember the definitions of scorer versions that the ledger has not seen. Raises TableError."""
    book = ledger.open()
    units = scorer_units(scorers, book.notes())
    if units:
        book.commit(units)


def scorer_units(scorers: Iterable[Scorer], notes: Mapping[str, Row]) -> list[Unit]:
    """The commit that notes the definitions of scorer versions that the ledger has not seen."""
    units: list[Unit] = []
    for scorer in scorers:
        name = f"{SCORER_NOTE}{scorer.name}/{scorer.version}"
        if name not in notes:
            definition = {
                "name": scorer.name,
                "version": scorer.version,
                "definition": dict(scorer.definition),
            }
            units.append([note(name, state="done", metadata=orjson.dumps(definition).decode())])
    return units
