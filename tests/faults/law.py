"""The law over the real tables: every commit of the ledger by the protocol's invariants, and what holds at rest."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow.compute as pc

from evaluator.tables.actions import commit_path
from evaluator.tables.annotations import annotation_id
from evaluator.tables.delta import DeltaStore
from evaluator.tables.rows import COLUMNS, Row, from_arrow, newest_of_each
from tests.faults.mirror import Mirror, check
from tests.faults.steps import transactions_of

Wanted = Mapping[tuple[str, str, str], bool | None]
"""What each scorer has to say in the end, by the target's type, its id and the scorer's name; None where any will do."""


class Law:
    """Follows the ledger's log, which has to be read before it is cleaned up."""

    def __init__(self, spans: DeltaStore, ledger: DeltaStore, annotations: DeltaStore) -> None:
        self._spans = spans.open().table_id
        self._ledger = ledger
        self._annotations = annotations
        self._version = -1
        self._seq = 0
        self.mirror = Mirror(self._spans)
        self.follow()

    def brought(self, version: int, rows: Sequence[dict[str, Any]]) -> None:
        """Told of each commit of spans."""
        spans: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            spans[row["trace_id"]].add(row["span_id"])
        self.mirror.content[version] = {trace: frozenset(ids) for trace, ids in spans.items()}

    def follow(self) -> None:
        """The invariants after every commit since the last look."""
        snapshot = self._ledger.open()
        table = snapshot.query(f"select {', '.join(COLUMNS)} from t where seq > {self._seq}")
        for version in range(self._version + 1, snapshot.version + 1):
            marks = transactions_of(self._actions(version))
            rows = table.filter(pc.equal(table.column("seq"), marks.get("seq", -1)))
            guarded = {name: value for name, value in marks.items() if not name.startswith("lease/")}
            if guarded:
                self.mirror.commit(rows, guarded)
        self._version, self._seq = snapshot.version, snapshot.transaction("seq") or 0

    def at_rest(self, wanted: Wanted) -> None:
        """What holds when nothing is left to do: one result and one annotation for every target and scorer."""
        self.follow()
        ledger, annotations = self._ledger.open(), self._annotations.open()
        rows = from_arrow(ledger.query(f"select {', '.join(COLUMNS)} from t"))
        targets = [row for row in rows if row.target_type != "CONTROL"]
        check(Counter(rows_of(rows)) == Counter(rows_of(self.mirror.rows)), "12: the table holds other rows")
        newest = self.mirror.latest.values()
        check(not [row for row in newest if row.due], "7: there are open rows")
        done = Counter(row.key for row in targets if row.state == "done" and self.mirror.first_told(row))
        twice = [key for key, times in done.items() if times > 1]
        check(not twice, f"2: decided twice: {twice[:3]}")
        decided = {(key.target_type, key.target_id) for key in done}
        due = {(kind, target) for kind, target, _ in wanted if kind != "SPAN"}
        check(decided == due, f"7: not decided or not there: {sorted(decided ^ due)[:3]}")
        for row in newest_of_each("SESSION", self.mirror.latest).values():
            self.mirror.covers(row)
        scored = sorted((row for row in targets if row.state == "scored"), key=lambda row: row.seq)
        self._scored(scored, wanted)
        query = "select annotation_id, updated_at, value from t order by updated_at"
        published = annotations.query(query).to_pylist()
        told = {annotation_id(row.target, row.scorer or "", row.version or ""): row.value for row in scored}
        times = Counter((row["annotation_id"], row["updated_at"]) for row in published)
        check(len(times) == len(published), f"9: an annotation twice: {times.most_common(1)}")
        check({row["annotation_id"]: row["value"] for row in published} == told, "9: other annotations")
        check(len(published) <= len(scored), f"9: {len(published)} annotations of {len(scored)} results")
        reached = annotations.transaction(ledger.table_id)
        check(reached == ledger.transaction("seq"), f"9: annotations reach {reached}")
        read, brought = self.mirror.cursor, max(self.mirror.content)
        check(read >= brought, f"1: the cursor is at {read}, spans came until {brought}")
        self.mirror.content = {
            brought: self.mirror.content[brought]
        }  # what is decided need not be looked at again

    def _scored(self, scored: Sequence[Row], wanted: Wanted) -> None:
        versions = Counter(row.key for row in scored)
        check(max(versions.values()) == 1, f"2: scored twice: {versions.most_common(1)}")
        live = Counter(row.key._replace(version=None) for row in scored if row.scope == "live")
        check(max(live.values()) == 1, f"8: live scored by two versions: {live.most_common(1)}")
        ordered = sorted(scored, key=lambda row: (row.revision, row.seq))
        last = {(row.target_type, row.target_id, row.scorer or ""): row.passed for row in ordered}
        lost, more = wanted.keys() - last.keys(), last.keys() - wanted.keys()
        check(not lost and not more, f"7: {len(lost)} results are lost, {len(more)} too many")
        other = [one for one, passed in wanted.items() if passed is not None and last[one] != passed]
        check(not other, f"not the last word, of all that came: {other[:3]}")

    def _actions(self, version: int) -> list[dict[str, Any]]:
        filesystem = self._ledger.filesystem(self._ledger.location())
        with filesystem.open_input_file(commit_path(version)) as file:
            return [orjson.loads(line) for line in bytes(file.read()).splitlines()]


def rows_of(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """What makes each row this one."""
    return [(row.seq, *row.key, row.state, row.value) for row in rows]
