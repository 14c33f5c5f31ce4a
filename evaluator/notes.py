"""What the ledger keeps beside its decisions: what is paused, which scorers there were, who catches up on what."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import orjson

from evaluator.errors import ConfigurationError
from evaluator.ports import LedgerPort
from evaluator.scorers.scorer import Scorer
from evaluator.shards import WHOLE, Shard, shards_of
from evaluator.tables.ledger import FENCE_KEY, PAUSE_NOTE, SCORER_NOTE, note
from evaluator.tables.rows import Row, Unit

EVERY_JUDGE = "*"
SINCE_NOTE = "since/"
BEGUN_NOTE = "begun/"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUp:
    """The past that a version of a scorer catches up on: what began in [start, end), done with up to `upto`."""

    scorer: str
    version: str
    start: datetime
    end: datetime
    upto: datetime

    @property
    def done(self) -> bool:
        return self.upto >= self.end


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


def catch_ups(notes: Mapping[str, Row], shards: Iterable[Shard] = (WHOLE,)) -> list[CatchUp]:
    """The catch-ups that were begun, oldest first, each as far as the slowest of some shards has come.

    What all the shards of another number looked through was looked through for these, too.
    """
    parts = list(shards)
    found = []
    for name, row in notes.items():
        words = name.removeprefix(SINCE_NOTE).split("/")
        if not name.startswith(SINCE_NOTE) or len(words) != 2 or row.first is None or row.last is None:
            continue
        together = _reached(notes, name, row.first)
        upto = min(
            (max(together, _upto(notes.get(f"{name}/{shard.name}"), row.first)) for shard in parts),
            default=row.first,
        )
        scorer, version = words
        found.append(CatchUp(scorer=scorer, version=version, start=row.first, end=row.last, upto=upto))
    return sorted(found, key=lambda one: (one.start, one.scorer))


def _reached(notes: Mapping[str, Row], name: str, start: datetime) -> datetime:
    """How far a range was looked through by all the shards of any number."""
    counts = {int(other.rpartition("of")[2]) for other in notes if other.startswith(f"{name}/")}
    layouts = (
        [_upto(notes.get(f"{name}/{shard.name}"), start) for shard in shards_of(count)] for count in counts
    )
    return max(map(min, layouts), default=start)


def _upto(reached: Row | None, start: datetime) -> datetime:
    return start if reached is None or reached.upto is None else reached.upto


def scoring_begun(notes: Mapping[str, Row], table_id: str) -> datetime | None:
    """From when on scoring takes in what arrives in a spans table; None where it began with all, or some days back."""
    row = notes.get(f"{BEGUN_NOTE}{table_id}")
    return None if row is None else row.first


def scoring_begun_unit(table_id: str, at: datetime) -> Unit:
    """The commit that says so, beside the cursor."""
    return [replace(note(f"{BEGUN_NOTE}{table_id}", state="done"), first=at)]


def begun_unit(scorer: str, version: str, start: datetime, end: datetime) -> Unit:
    """The commit that fixes a range for good: who is first says it."""
    return [replace(note(f"{SINCE_NOTE}{scorer}/{version}", state="done"), first=start, last=end)]


def reached_unit(one: CatchUp, upto: datetime, shard: Shard) -> Unit:
    """The commit that tells how far a shard's part of a range was looked through."""
    name = f"{SINCE_NOTE}{one.scorer}/{one.version}/{shard.name}"
    return [replace(note(name, state="done"), first=one.start, last=one.end, upto=upto)]
