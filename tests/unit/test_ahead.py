"""Reading ahead: in order, in bounds, and every error where its result would have stood."""

import threading
import time

import pytest

from evaluator.tables.ahead import AT_ONCE, HELD_BYTES, read_ahead


class Reader:
    """Reads numbers slowly, and remembers how many, and of what size, were on their way at once."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.read: list[int] = []
        self.at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> int:
        with self._lock:
            self._running += 1
            self.at_once = max(self.at_once, self._running)
        time.sleep(0.01 if number % 2 else 0.03)
        with self._lock:
            self._running -= 1
            self.read.append(number)
        if number == 13:
            raise FileNotFoundError(str(number))
        return number * 10

    def sized(self, _: int) -> int:
        return self.size


def test_what_is_read_at_once_is_given_in_order() -> None:
    reader = Reader()

    assert list(read_ahead(reader, range(12), reader.sized)) == [number * 10 for number in range(12)]
    assert 1 < reader.at_once <= AT_ONCE
    assert reader.read != sorted(reader.read)


def test_large_things_are_not_held_beside_each_other() -> None:
    for size, most in ((HELD_BYTES // 2, 2), (HELD_BYTES * 3, 1)):
        reader = Reader(size)

        assert list(read_ahead(reader, range(5), reader.sized)) == [0, 10, 20, 30, 40]
        assert reader.at_once <= most


def test_an_error_comes_after_what_was_before_it() -> None:
    reader = Reader()
    given: list[int] = []

    with pytest.raises(FileNotFoundError, match="13"):
        given.extend(read_ahead(reader, range(40), reader.sized))

    assert given == [number * 10 for number in range(13)]


def test_who_stops_early_leaves_nothing_running() -> None:
    reader = Reader()
    reading = read_ahead(reader, range(1000), reader.sized)

    assert next(reading) == 0
    reading.close()

    assert len(reader.read) <= AT_ONCE
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
