"""The rule by which a plan yields to what others committed since it was made.

Source of the rules: the ledger's protocol (R5, R6); the numbers in the comments are its own.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from evaluator.tables.rows import Key, Row, State, Unit, widened

FINAL: frozenset[State] = frozenset({"done", "scored", "replaced"})


class Tail:
    """What others committed since: by key, the states of their rows in their order; of results, what they scored."""

    def __init__(self, states: Mapping[Key, Iterable[State]] | None = None) -> None:
        self._states: dict[Key, list[State]] = {}
        self._scored: dict[tuple[object, ...], int] = {}
        for key, of_key in (states or {}).items():
            for state in of_key:
                self.add(key, state)

    def add(self, key: Key, state: State) -> None:
        self._states.setdefault(key, []).append(state)
        if state == "scored":
            self._scored[key[:4]] = max(key.revision, self.scored(key))

    def states(self, key: Key) -> Sequence[State]:
        """The states of the rows of a key."""
        return self._states.get(key, ())

    def scored(self, key: Key) -> int:
        """The newest revision that they scored of a result, whatever the key's own; -1 for none."""
        return self._scored.get(key[:4], -1)


def rebase(units: Iterable[Unit], tail: Tail, *, decisions_yield: bool = False) -> list[Row]:
    """What is left of a plan after others committed `tail`.

    R5: a final row yields to a final row of its key, any other row to any row of its key; a plan holds one
    row a key. R6: when the first row of a unit (done, replaced) yields, the whole unit does. A decision on a session
    yields to any row of its key: a turn came, and it is judged anew with it. So does, with `decisions_yield`, that on a
    trace: whoever wrote that it waits may know a span more. The wait of a session, within the unit of a turn, yields to
    nothing (see `gone_on`).

    What was scored meanwhile as a newer revision stands. A session, or a revision of a trace, of which some was scored
    meanwhile, with fewer turns or spans, is decided again, above that.
    """
    kept: list[Row] = []
    mine: set[Key] = set()
    wary = ("TRACE", "SESSION") if decisions_yield else ("SESSION",)
    for whole in units:
        unit = [row for row in whole if row.state == "replaced" or row.revision >= tail.scored(row.key)]
        if not unit or _lags(unit[0], whole[1:], tail, decisions_yield):
            continue
        head = unit[0]
        if head.state in ("done", "replaced") and _yields(head, tail.states(head.key), wary):
            continue
        for row in unit:
            goes_on = row.goes_on and row is not head
            if row.key not in mine and (goes_on or not _yields(row, tail.states(row.key), wary)):
                mine.add(row.key)
                kept.append(row)
    return kept


def _lags(head: Row, rest: Iterable[Row], tail: Tail, decisions_yield: bool) -> bool:
    """Whether a unit decides what may be decided more than once, and some of its results were scored meanwhile: of as
    new a revision, by who knew fewer turns or spans. What it only ends says nothing of that."""
    again = head.target_type == "SESSION" or (decisions_yield and head.revision > 0)
    results = (row for row in rest if row.scorer is not None and row.state != "replaced")
    return head.state == "done" and again and any(row.revision <= tail.scored(row.key) for row in results)


def _yields(row: Row, since: Sequence[State], wary: Collection[str]) -> bool:
    """Whether a row yields; decisions on `wary` types of targets do so to any row."""
    if row.state in FINAL and not (row.target_type in wary and row.scorer is None):
        return any(state in FINAL for state in since)
    return bool(since)


def waits_stand(units: Iterable[Unit], tail: Tail) -> bool:
    """Whether no trace's wait yields: what decided or waited for the trace meanwhile may know fewer of its spans.

    Only then may the cursor pass the commits that brought them.
    """
    return not any(unit[0].state == "waiting" and tail.states(unit[0].key) for unit in units)


def gone_on(unit: Unit, since: Mapping[str, Row]) -> Unit:
    """The unit of a turn with its session's wait as it has to be after others' rows (the newest since, by session).

    What they know of the session is kept; was it decided meanwhile, without this turn, the wait is that of the next
    revision.
    """
    return [*unit[:1], *(_gone_on(row, since) if row.goes_on else row for row in unit[1:])]


def _gone_on(row: Row, since: Mapping[str, Row]) -> Row:
    other = since.get(row.target_id)
    if other is None or other.revision < row.revision:
        return row
    revision = other.revision if other.state == "waiting" else other.revision + 1
    return replace(widened(row, other), revision=revision)
