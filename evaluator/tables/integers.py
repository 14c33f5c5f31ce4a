"""The ledger's integers: application transactions, which are committed with the rows and read from the snapshot.

Few and fixed, never expired: `seq` (the guard), `at`, `open`, `floor`, `layout`, `shards`, the live cursors with their
times and marks, leases, and the cursors of sinks that have none of their own.
"""

from datetime import datetime, timedelta

from evaluator.shards import Shard, shards_of
from evaluator.tables.rows import EPOCH, Moved
from evaluator.tables.snapshot import Snapshot

SEQ, OPEN, FLOOR, AT, LAYOUT, SHARDS = "seq", "open", "floor", "at", "layout", "shards"
LAYOUT_NUMBER = 1


class Integers:
    """What a ledger's snapshot says in integers, and what a commit is to say."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @property
    def shards(self) -> int:
        """Among how many workers the live work is shared out."""
        return self._snapshot.transaction(SHARDS) or 1

    def cursor(self, table_id: str, shard: Shard | None = None) -> int | None:
        """The version of the spans table up to which every trace (of a shard) has a target row, None before the start."""
        return self._least(f"live/{table_id}", shard)

    def cursor_at(self, table_id: str, shard: Shard | None = None) -> datetime | None:
        """When the cursor's commit was made."""
        return _moment(self._least(f"live_at/{table_id}", shard))

    def cursor_mark(self, table_id: str, shard: Shard) -> int | None:
        """What tells the cursor's commit from that of another copy of the table, None where nobody has said it."""
        return self._snapshot.transaction(f"live_mark/{table_id}/{shard.name}") or None

    def _least(self, name: str, shard: Shard | None) -> int | None:
        """What an integer of a shard says; of all, the lowest, None when one of them says nothing."""
        parts = [shard] if shard else shards_of(self.shards)
        told = [self._snapshot.transaction(f"{name}/{part.name}") for part in parts]
        return None if None in told else min(value for value in told if value is not None)

    @property
    def floor(self) -> datetime | None:
        """What ended before is out of scope."""
        value = self._snapshot.transaction(FLOOR)
        return None if value is None else EPOCH + timedelta(milliseconds=value)

    def sink_cursor(self, sink: str) -> int:
        return self._snapshot.transaction(f"sink/{sink}") or 0

    def lease(self, scope: str) -> int:
        return self._snapshot.transaction(f"lease/{scope}") or 0

    @property
    def open_from(self) -> int:
        """The lowest `seq` of an open row, so far as the integers say."""
        return self._snapshot.transaction(OPEN) or 0

    @property
    def last_at(self) -> datetime | None:
        """The time of the newest guarded commit."""
        return _moment(self._snapshot.transaction(AT))

    # --- what a commit says

    @staticmethod
    def _guard(seq: int, at: datetime) -> dict[str, int]:
        """What every guarded commit says."""
        return {SEQ: seq, AT: _micros(at), LAYOUT: LAYOUT_NUMBER}

    def _shared_out(self, count: int, table_id: str) -> dict[str, int]:
        """That so many shards go on where the last of those now is."""
        marks = {SHARDS: count}
        for name in ("live", "live_at"):
            least = self._least(f"{name}/{table_id}", None)
            if least is not None:
                marks |= {f"{name}/{table_id}/{shard.name}": least for shard in shards_of(count)}
        last = min(shards_of(self.shards), key=lambda shard: self.cursor(table_id, shard) or -1)
        mark = self.cursor_mark(table_id, last)
        if mark is not None:
            marks |= {f"live_mark/{table_id}/{shard.name}": mark for shard in shards_of(count)}
        return marks

    def _marks(self, moved: Moved | None, floor: datetime | None) -> dict[str, int]:
        """That the live cursor, and the floor, are somewhere else now; never that they go back."""
        marks: dict[str, int] = {}
        if moved is not None:
            # Where scoring starts is said for all shards at once: else what came before the last one began is lost.
            shards = shards_of(self.shards) if moved.begins else [moved.shard]
            for shard in shards:
                known = self.cursor(moved.table_id, shard)
                mark = self.cursor_mark(moved.table_id, shard)
                on = known is None or moved.cursor > known
                elsewhere = moved.cursor == known and moved.cursor_mark != mark
                if (known is not None and moved.begins) or not (on or elsewhere):
                    continue
                marks[f"live/{moved.table_id}/{shard.name}"] = moved.cursor
                marks[f"live_at/{moved.table_id}/{shard.name}"] = _micros(moved.cursor_at)
                if moved.cursor_mark != mark:
                    marks[f"live_mark/{moved.table_id}/{shard.name}"] = moved.cursor_mark or 0
            if moved.begins and not marks:
                return {}
        if floor is not None and (self.floor is None or floor > self.floor):
            marks[FLOOR] = int(floor.timestamp() * 1000)
        return marks


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def _moment(value: int | None) -> datetime | None:
    return None if value is None else EPOCH + timedelta(microseconds=value)
