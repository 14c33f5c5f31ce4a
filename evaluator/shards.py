"""Which worker decides which traces, where several share the work."""

import hashlib
import re
from dataclasses import dataclass

MOST_SHARDS = 256


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal parts of all traces, by a hash of their ids (sessions: of theirs)."""

    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """As the ledger's integers have it, such as `0of1`."""
        return f"{self.index}of{self.count}"

    def holds(self, target_id: str) -> bool:
        """Whether a trace or session is this shard's. Not the hash of sampling: else a shard would have no sample."""
        if self.count == 1:
            return True
        digest = hashlib.sha256(b"shard:" + target_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index


WHOLE = Shard()


def shards_of(count: int) -> list[Shard]:
    """All parts that the work is shared out in."""
    return [Shard(index, count) for index in range(count)]


def parse_shard(text: str) -> Shard:
    """`i/n`, with i from 0 to n-1. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text.strip())
    shard = Shard(*map(int, match.groups())) if match else None
    if shard is None or not 0 <= shard.index < shard.count <= MOST_SHARDS:
        raise ValueError(
            f"{text!r} is no shard: write i/n, such as 0/4, with i from 0 to n-1 and n up to {MOST_SHARDS}"
        )
    return shard
