"""What the ledger holds, kept beside it commit by commit, and the protocol's invariants over it."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import pyarrow as pa

from evaluator.tables.rows import Key, Row, from_arrow

Spans = Mapping[str, frozenset[str]]
"""The ids of the spans of each trace."""

UNKNOWN_COMMIT = -1
FIXED = {"seq", "at", "open", "layout", "floor"}


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
        self.forgotten: set[str] = set()
        """Traces that were deleted before everybody has read them."""
        self.ended: dict[str, datetime] = {}
        """When each span ended, of several of one id the earliest."""
        self.decided: dict[str, frozenset[str]] = {}
        """What had to be seen of each trace when it was decided."""
        self.commits = 0
        self.origin = -1
        """Up to where the spans table was before scoring began."""
        self._live = f"live/{spans_id}/0of1"
        self._fixed = FIXED | {self._live, f"live_at/{spans_id}/0of1", "sink/memory"}
        self._scored: Counter[tuple[str, str | None]] = Counter()
        self._finals: Counter[tuple[Key, str]] = Counter()

    @property
    def cursor(self) -> int:
        return self.transactions.get(self._live, -1)

    def spans_upto(self, trace_id: str, version: int) -> frozenset[str]:
        """The spans of a trace in scope that the commits since the start up to a version brought, without deleted ones."""
        commits = (spans for at, spans in self.content.items() if self.origin < at <= version)
        brought = (spans.get(trace_id, frozenset()) for spans in commits)
        floor = datetime.fromtimestamp(self.transactions.get("floor", 0) / 1000, UTC)
        old = {span for span, ended in self.ended.items() if ended < floor}
        return frozenset().union(*brought) - self.deleted - old

    def commit(self, data: pa.Table, transactions: Mapping[str, int]) -> list[Row]:
        """One commit of the ledger; the rows it brought."""
        before = dict(self.transactions)
        rows = from_arrow(data)
        self.commits += 1
        self.transactions.update(transactions)
        if "seq" in transactions or rows:
            self._order(rows, before, transactions)
        for app_id, value in transactions.items():
            moves = app_id not in ("open", "seq", "at") and not app_id.startswith("live_at")
            check(not moves or value >= before.get(app_id, value), f"5: {app_id} went back to {value}")
        check(set(self.transactions) <= self._fixed, f"5: another app id among {sorted(transactions)}")
        if "floor" in transactions and self._live in transactions and self._live not in before:
            self.origin = self.cursor
        for row in rows:
            self.latest[row.key] = row
            self._count(row)
        self.rows += rows
        self._opens()
        self._units(rows)
        if self._live in transactions or any(row.state == "waiting" for row in rows):
            self._behind_the_cursor()
        return rows

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
        self._finals[row.key, row.state] += 1
        check(self._finals[row.key, row.state] == 1, f"2: {row.state} twice: {row.key}")
        if row.state == "scored" and row.scope == "live":
            self._scored[row.target_id, row.scorer] += 1
            check(
                self._scored[row.target_id, row.scorer] == 1, f"8: live scored {row.key} by another version"
            )

    def _opens(self) -> None:
        least = min((row.seq for row in self.latest.values() if row.due), default=None)
        opens = self.transactions.get("open", 0)
        check(least is None or least >= opens, f"4: an open row has seq {least}, open is {opens}")

    def _units(self, rows: Iterable[Row]) -> None:
        told: dict[str, set[str | None]] = defaultdict(set)
        for row in rows:
            told[row.target_id].add(row.scorer)
        for row in rows:
            if row.scorer is None and row.state == "done" and row.target_type == "TRACE":
                for name, version in json.loads(row.set or "{}").items():
                    known = self.latest.get(Key("TRACE", row.target_id, name, version))
                    scored = known is not None and known.state == "scored"
                    skipped = name in json.loads(row.skipped or "{}")
                    check(skipped or scored or name in told[row.target_id], f"6: {row.key} without {name}")

    def _behind_the_cursor(self) -> None:
        for version, spans in self.content.items():
            if not self.origin < version <= self.cursor:
                continue
            for trace_id in spans.keys() - self.forgotten:
                row = self.latest.get(Key("TRACE", trace_id))
                old = not self.spans_upto(trace_id, version)
                check(row is not None or old, f"1: cursor {self.cursor} passed {trace_id} of {version}")
                if row is not None and row.state == "waiting" and UNKNOWN_COMMIT not in row.commits:
                    listed = (self.content.get(commit, {}).get(trace_id, ()) for commit in row.commits)
                    lost = self.spans_upto(trace_id, self.cursor).difference(*listed)
                    check(not lost, f"1: {row.key} waits without {len(lost)} of its spans ({row.commits})")


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)
