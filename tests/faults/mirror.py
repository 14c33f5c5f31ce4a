"""What the ledger holds, kept beside it commit by commit, and the protocol's invariants over it."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa

from evaluator.notes import BEGUN_NOTE
from evaluator.shards import Shard, shards_of
from evaluator.tables.rows import Key, Row, from_arrow

Spans = Mapping[str, frozenset[str]]
"""The ids of the spans of each trace."""

UNKNOWN_COMMIT = -1
FIXED = {"seq", "at", "open", "layout", "floor", "shards", "sink/memory"}


class Violation(AssertionError):  # noqa: N818 -- what a history is run for
    """An invariant does not hold."""


class Mirror:
    """The ledger's rows and integers in the order of their commits. Raises Violation at the commit that is wrong."""

    def __init__(self, spans_id: str) -> None:
        self.rows: list[Row] = []
        self.transactions: dict[str, int] = {}
        self.latest: dict[Key, Row] = {}
        self.content: dict[int, Spans] = {}
        """What each commit of the spans table brought; compactions are not in it."""
        self.deleted: set[str] = set()
        """Spans that were deleted from the table: they may be seen, and need not be."""
        self.far: set[str] = set()
        """Spans more than a day from the rest of their trace, which was decided before they came."""
        self.forgotten: set[str] = set()
        """Traces that were deleted before everybody has read them."""
        self.ended: dict[str, datetime] = {}
        """When each span ended."""
        self.erased: set[str] = set()
        """Traces that were to be forgotten: not a row of theirs may follow."""
        self.turns: dict[str, dict[str, datetime]] = defaultdict(dict)
        """Of each session, when the turns were decided that it has to be judged with."""
        self.covered: dict[str, frozenset[str]] = {}
        """What the newest decision on a trace has seen of it, where a scorer told."""
        self.expired: list[Row] = []
        """Rows that were taken out for their age."""
        self.decided: dict[str, frozenset[str]] = {}
        """What had to be seen of each trace when it was decided."""
        self.commits = 0
        self.origin = -1
        """Up to where the spans table was before scoring began."""
        self.begun: datetime | None = None
        """When that was, where it did not begin with all."""
        self._live = f"live/{spans_id}/"
        self._of_shards = re.compile(rf"live(_at|_mark)?/{re.escape(spans_id)}/\d+of\d+")
        self._scored: Counter[tuple[object, ...]] = Counter()
        self._done: dict[Key, list[Row]] = {}
        self._restated: set[tuple[Key, int]] = set()
        self._finals: Counter[tuple[Key, str]] = Counter()

    @property
    def shards(self) -> list[Shard]:
        """Those among whom the work is shared out now."""
        return shards_of(self.transactions.get("shards", 1))

    @property
    def cursor(self) -> int:
        """How far all shards have read."""
        return min(map(self.cursor_of, self.shards))

    def cursor_of(self, shard: Shard) -> int:
        return self.transactions.get(self._live + shard.name, -1)

    def cursor_for(self, trace_id: str) -> int:
        """How far the shard has read that a trace is of."""
        return next(self.cursor_of(shard) for shard in self.shards if shard.holds(trace_id))

    def spans_upto(self, trace_id: str, version: int) -> frozenset[str]:
        """The spans of a trace in scope that the commits since the start up to a version brought, without deleted ones."""
        commits = (spans for at, spans in self.content.items() if self.origin < at <= version)
        brought = (spans.get(trace_id, frozenset()) for spans in commits)
        return frozenset().union(*brought) - self.deleted - self.far - self.out_of_scope()

    def out_of_scope(self) -> set[str]:
        """Spans that ended before the floor, or before scoring began, which may be judged or not."""
        floor = datetime.fromtimestamp(self.transactions.get("floor", 0) / 1000, UTC)
        floor = max(floor, self.begun or floor)
        return {span for span, ended in self.ended.items() if ended < floor}

    def began_anew(self) -> set[str]:
        """Traces whose newest decision was taken out for its age, while something is left that may be taken for another:
        a span more than a day after the others, or an older decision in a later day (an earlier span came late)."""
        gone = {row.target_id: row.revision for row in self.expired if row.scorer is None}
        left = {key.target_id: key.revision for key in self.latest if key.scorer is None}
        older = {trace for trace, revision in gone.items() if left.get(trace, revision) < revision}
        return self.with_far_spans() & gone.keys() | older

    def with_far_spans(self) -> set[str]:
        """Traces that have a span more than a day after the others."""
        return {trace for spans in self.content.values() for trace, ids in spans.items() if ids & self.far}

    def commit(self, data: pa.Table, transactions: Mapping[str, int]) -> list[Row]:
        """One commit of the ledger; the rows it brought."""
        before, reached = dict(self.transactions), self.cursor
        rows = from_arrow(data)
        self.commits += 1
        self.transactions.update(transactions)
        moved = any(app_id.startswith(self._live) for app_id in transactions)
        begun = any(app_id.startswith(self._live) for app_id in before)
        back = [row.key for row in rows if row.trace_id in self.erased and not row.forgotten]
        check(not back, f"forgotten: {back} came back")
        if "seq" in transactions or rows:
            self._order(rows, before, transactions)
        for app_id, value in transactions.items():
            moves = app_id not in ("open", "seq", "at", "shards") and not app_id.startswith(
                ("live_at", "live_mark")
            )
            # A worker of another layout may have gone on with its own: where all stand is what is shared out.
            moves = moves and not ("shards" in transactions and app_id.startswith(self._live))
            check(not moves or value >= before.get(app_id, value), f"5: {app_id} went back to {value}")
        check(self.cursor >= reached, f"5: the cursor went back from {reached} to {self.cursor}")
        others = [app_id for app_id in self.transactions if not self._of_shards.fullmatch(app_id)]
        check(FIXED.issuperset(others), f"5: another app id among {sorted(transactions)}")
        said = [row.first for row in rows if row.target_id.startswith(BEGUN_NOTE)]
        if said and moved and not begun:
            self.origin, self.begun = self.cursor, said[0]
        for row in rows:
            self._count(row)
            self.latest[row.key] = row
        self.rows += rows
        self._sessions(rows)
        self._opens()
        self._units(rows)
        if moved or any(row.state == "waiting" for row in rows):
            self._behind_the_cursor()
        return rows

    def replace(self, where: str, data: pa.Table, transactions: Mapping[str, int]) -> list[Row]:
        """A commit that put rows in the place of others: tombstones in that of all that was known of some traces,
        or nothing in that of some days."""
        tombstones = from_arrow(data)
        erased = {row.trace_id or "" for row in tombstones if row.target_type == "TRACE"}
        sessions = {row.target_id for row in tombstones if row.target_type == "SESSION"}
        days = set() if tombstones else set(re.findall(r"\d{4}-\d\d-\d\d", where))
        gone = [
            row
            for row in self.rows
            if row.trace_id in erased
            or str(row.day) in days
            or (row.target_type == "SESSION" and row.target_id in sessions)
        ]
        still_open = [row for row in gone if days and row.due and self.latest[row.key] is row]
        check(not still_open, f"retention: took out what is open: {still_open}")
        was_open = {key for key, row in self.latest.items() if row.due}
        taken = {id(row) for row in gone}
        self.rows = [row for row in self.rows if id(row) not in taken]
        self.expired += gone if days else []
        self.erased |= erased
        for session in sessions:
            self.turns.pop(session, None)
        for row in gone:
            self.turns[row.session_id or ""].pop(row.target_id, None)
            self.latest.pop(row.key, None)
            self._done.pop(row.key, None)
            self._finals.pop((row.key, row.state), None)
            self._scored.pop((*row.key[:3], row.revision), None)
        for (
            row
        ) in self.rows:  # what an ended wait said on another day is below `open`: nobody reads it any more
            if row.key not in self.latest and (row.due is None or row.key in was_open):
                self.latest[row.key] = max(
                    (one for one in self.rows if one.key == row.key), key=lambda one: one.seq
                )
        return self.commit(data, transactions)

    def _order(self, rows: list[Row], before: Mapping[str, int], transactions: Mapping[str, int]) -> None:
        seq = transactions.get("seq", 0)
        check(seq == before.get("seq", 0) + 1, f"3: seq {before.get('seq')} is followed by {seq}")
        check(all(row.seq == seq for row in rows), f"3: a row's seq is not its commit's {seq}")
        check(transactions["at"] > before.get("at", 0), "3: at fell")
        keys = Counter(row.key for row in rows)
        check(len(keys) == len(rows), f"2: a commit with two rows of a key: {keys.most_common(1)}")

    def _count(self, row: Row) -> None:
        if row.target_type == "CONTROL" or row.state not in ("done", "scored"):
            return
        if self._ends_a_wait(row):
            self._restated.add((row.key, row.seq))
            return
        self._done.setdefault(row.key, []).append(row)
        self._finals[row.key, row.state] += 1
        once = self._finals[row.key, row.state] == 1
        check(once or row.target_id in self.began_anew(), f"2: {row.state} twice: {row.key}")
        if row.state == "scored" and row.scope == "live":
            self._scored[*row.key[:3], row.revision] += 1
            once = self._scored[*row.key[:3], row.revision] == 1
            check(once or row.target_id in self.began_anew(), f"8: live scored {row.key} by another version")

    def _ends_a_wait(self, row: Row) -> bool:
        """Whether a decision is told again, word by word, to end the wait for late spans."""
        known = self.latest.get(row.key)
        told = any(
            replace(row, seq=old.seq, at=old.at, day=old.day) == old for old in self._done.get(row.key, [])
        )
        return told and known is not None and known.state == "waiting"

    def _opens(self) -> None:
        least = min((row.seq for row in self.latest.values() if row.due), default=None)
        opens = self.transactions.get("open", 0)
        check(least is None or least >= opens, f"4: an open row has seq {least}, open is {opens}")

    def _units(self, rows: Iterable[Row]) -> None:
        told: dict[str, set[str | None]] = defaultdict(set)
        for row in rows:
            told[trace_of(row)].add(row.scorer)
        for row in rows:
            if (row.key, row.seq) in self._restated:
                continue
            if row.scorer is None and row.state == "done" and row.target_type != "CONTROL":
                for name, version in json.loads(row.set or "{}").items():
                    known = self.results(row, name, version)
                    scored = any(one.state == "scored" for one in known)
                    skipped = name in json.loads(row.skipped or "{}")
                    check(skipped or scored or name in told[row.target_id], f"6: {row.key} without {name}")

    def results(self, target: Row, name: str, version: str) -> list[Row]:
        """What a scorer version has said of a row's target, or of a trace's spans, in all revisions."""
        wanted = (target.target_id, name, version)
        kinds = {"TRACE": ("TRACE", "SPAN")}.get(target.target_type, (target.target_type,))
        return [
            row
            for key, row in self.latest.items()
            if (trace_of(row), *key[2:4]) == wanted and key.target_type in kinds
        ]

    def first_told(self, row: Row) -> bool:
        """Whether a row decides, and does not only tell again what was decided."""
        return row.state == "done" and row.scorer is None and (row.key, row.seq) not in self._restated

    def _sessions(self, rows: Iterable[Row]) -> None:
        """10: a decision on a session covers all of its turns that were decided before."""
        rows = list(rows)
        went_on = {row.target_id for row in rows if row.goes_on}
        for row in rows:
            if row.target_type == "TRACE" and self.first_told(row) and row.session_id in went_on and row.at:
                self.turns[row.session_id or ""][row.target_id] = row.at
            if row.target_type == "SESSION" and self.first_told(row) and not row.forgotten:
                self.covers(row)

    def covers(self, row: Row) -> None:
        """Raises Violation unless a session's decision covers the turns that there are; one of which no span is left
        covers nothing."""
        turns = self.turns[row.target_id]
        if row.upto is None and row.reason is not None:
            turns.clear()
        late = [turn for turn, at in turns.items() if row.upto is None or at > row.upto]
        check(not late, f"10: {row.key} without its turns {late}")

    def _behind_the_cursor(self) -> None:
        for version, spans in self.content.items():
            for trace_id in spans.keys() - self.forgotten:
                cursor = self.cursor_for(trace_id)
                if not self.origin < version <= cursor:
                    continue
                row = self.latest.get(Key("TRACE", trace_id))
                old = not self.spans_upto(trace_id, version)
                check(row is not None or old, f"1: cursor {cursor} passed {trace_id} of {version}")
                waits = row is not None and row.state == "waiting" and trace_id not in self.decided
                if row is not None and waits and UNKNOWN_COMMIT not in row.commits:
                    listed = (self.content.get(commit, {}).get(trace_id, ()) for commit in row.commits)
                    lost = self.spans_upto(trace_id, cursor).difference(*listed)
                    check(not lost, f"1: {row.key} waits without {len(lost)} of its spans ({row.commits})")


def trace_of(row: Row) -> str:
    """The trace that a row is about, or whose span it is about; the session of one."""
    return (row.trace_id or "") if row.target_type == "SPAN" else row.target_id


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)
