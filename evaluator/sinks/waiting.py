"""What a sink could not place yet, kept on disk until it is due for another try."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(minutes=15)

_WHOLE = 1
"""The `user_version` of a file that has all that waits."""
_TABLE = "CREATE TABLE IF NOT EXISTS waiting (id TEXT PRIMARY KEY, since REAL, due REAL, item BLOB)"


class Waiting:
    """Items by id, each with the time it came and the time of its next try; processes may share the file.

    The pauses grow with the wait: a minute at first, at most a quarter of an hour. An item that is found
    missing again after `patience` is given up. A file that was lost is told from one that is `whole`.
    """

    def __init__(self, file: Path, patience: timedelta) -> None:
        self.file = file
        self.patience = patience

    def due(self, now: datetime) -> dict[str, bytes]:
        """The items that are to be tried again."""
        if not self.file.exists():
            return {}
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT id, item FROM waiting WHERE due <= ? ORDER BY rowid", (now.timestamp(),)
            )
            return dict(rows.fetchall())

    def count(self) -> int:
        """How many items wait."""
        if not self.file.exists():
            return 0
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def whole(self) -> bool:
        """Whether all that was to be kept is here: not so at first, nor after the file was lost."""
        if not self.file.exists():
            return False
        with self._connection() as connection:
            return bool(connection.execute("PRAGMA user_version").fetchone()[0] == _WHOLE)

    def mark_whole(self) -> None:
        """All that was to be kept is here from now on."""
        if not self.whole():
            with self._connection() as connection:
                connection.execute(f"PRAGMA user_version = {_WHOLE}")

    def settle(self, *, missing: Mapping[str, bytes], placed: Iterable[str], now: datetime) -> int:
        """Keep what is still missing, forget what was placed; returns how many were given up."""
        if not missing and not self.file.exists():
            return 0
        given_up = 0
        with self._connection() as connection:
            connection.executemany("DELETE FROM waiting WHERE id = ?", ((key,) for key in placed))
            for key, item in missing.items():
                row = connection.execute("SELECT since FROM waiting WHERE id = ?", (key,)).fetchone()
                waited = timedelta(seconds=now.timestamp() - row[0]) if row else timedelta(0)
                if row is not None and waited >= self.patience:
                    connection.execute("DELETE FROM waiting WHERE id = ?", (key,))
                    given_up += 1
                    continue
                pause = min(max(waited, FIRST_PAUSE), LONGEST_PAUSE)
                connection.execute(
                    "INSERT INTO waiting VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET due = excluded.due",
                    (key, now.timestamp(), (now + pause).timestamp(), item),
                )
        return given_up

    def drop(self, wanted: Callable[[bytes], bool]) -> None:
        """Forget the items of which this is true; the file keeps nothing of them."""
        if not self.file.exists():
            return
        with self._connection() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            rows = connection.execute("SELECT id, item FROM waiting").fetchall()
            gone = [(key,) for key, item in rows if wanted(item)]
            connection.executemany("DELETE FROM waiting WHERE id = ?", gone)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.file, timeout=10)) as connection, connection:
            connection.execute(_TABLE)
            yield connection
