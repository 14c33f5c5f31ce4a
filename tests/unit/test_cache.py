"""The same judge and the same prompt: the same result. A cache that fails costs a call, never a result."""

import asyncio
import logging
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evaluator.feedback import Feedback
from evaluator.models.cache import FILE, Cache, cache_key, cache_keys

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)
KEY = cache_key("v1", [{"role": "user", "content": "Is it good?"}])
GOOD = Feedback(value="yes", passed=True, rationale="It names a number.")


def a_cache(folder: Path, now: Callable[[], datetime] = lambda: NOON, **options: Any) -> Cache:
    options = {"max_age": timedelta(days=30), "max_size": 10**9, **options}
    return Cache(folder, clock=now, **options)


async def kept(folder: Path, *results: tuple[bytes, Feedback, str], **options: Any) -> None:
    cache = a_cache(folder, **options)
    for result in results:
        cache.put(*result)
    await cache.close()


def files(folder: Path) -> list[tuple[bytes, int]]:
    """What the folder's files hold, and who may read them."""
    return [(file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) for file in folder.iterdir()]


@pytest.mark.parametrize(
    "result",
    [
        GOOD,
        Feedback(value=3.5, passed=None, rationale=""),
        Feedback(value=False, passed=False, rationale='Él dijo: "no" \u2014 \U0001f600'),
    ],
)
async def test_a_result_is_found_again_by_other_processes(tmp_path: Path, result: Feedback) -> None:
    await kept(tmp_path, (KEY, result, "a"))

    cache = a_cache(tmp_path)

    assert cache.get(KEY, "b") == result
    assert cache.get(cache_key("v2", [{"role": "user", "content": "Is it good?"}]), "b") is None
    await cache.close()


async def test_a_result_is_found_before_it_is_written(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)

    cache.put(KEY, GOOD, "a")

    assert cache.get(KEY, "a") == GOOD
    await cache.close()


async def test_nothing_of_the_prompt_is_in_the_file_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    await kept(tmp_path, (KEY, GOOD, "a"))

    for content, mode in files(tmp_path):
        assert b"Is it good?" not in content
        assert mode == 0o600


async def test_what_is_too_old_is_not_found_and_goes(tmp_path: Path) -> None:
    other = cache_key("v1", [])
    await kept(tmp_path, (KEY, GOOD, "a"))
    later = NOON + timedelta(days=30)
    cache = a_cache(tmp_path, now=lambda: later)

    assert cache.get(KEY, "a") is None
    cache.put(other, GOOD, "b")
    await cache.close()

    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("select trace from sources").fetchall() == [("b",)]
        assert database.execute("select key from results").fetchall() == [(other,)]


async def test_it_stays_within_its_size_and_the_oldest_go_first(tmp_path: Path) -> None:
    now = [NOON]
    long = Feedback(value="yes", passed=True, rationale="x" * 2_000)
    keys = [cache_key("v1", [{"role": "user", "content": str(number)}]) for number in range(300)]
    for some in (keys[:250], keys[250:]):
        now[0] += timedelta(seconds=1)
        results = [(key, long, f"trace {number}") for number, key in enumerate(some)]
        await kept(tmp_path, *results, now=lambda: now[0], max_size=200_000)

    [(content, _)] = files(tmp_path)
    size = len(content)
    assert 100_000 < size <= 200_000 + 4_096
    again = a_cache(tmp_path, now=lambda: now[0])
    assert again.get(keys[-1], "a") == long
    assert again.get(keys[0], "a") is None
    await again.close()


async def test_a_file_that_somebody_is_just_laying_out_holds_nothing_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).touch()
    cache = a_cache(tmp_path)

    assert cache.get(KEY, "a") is None
    cache.put(KEY, GOOD, "a")
    await cache.close()

    assert cache.get(KEY, "b") == GOOD
    assert not caplog.records
    await cache.close()


async def test_versions_that_share_a_prompt_have_results_of_their_own() -> None:
    prompt = [{"role": "user", "content": "Is it good?"}]

    keys = cache_keys(["v1", "v2"], prompt)

    assert keys == [KEY, cache_key("v2", prompt)]
    assert len(set(keys)) == 2


async def test_a_question_that_is_being_asked_is_not_asked_twice(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    asked = []

    async def judged(number: int) -> Feedback:
        async with cache.turn(KEY):
            known = cache.get(KEY, str(number))
            if known is None:
                asked.append(number)
                await asyncio.sleep(0)
                known = GOOD
                cache.put(KEY, known, str(number))
            return known

    results = await asyncio.gather(*(judged(number) for number in range(5)))

    assert results == [GOOD] * 5
    assert asked == [0]
    await cache.close()


async def test_asked_afresh_the_new_result_takes_the_old_one_s_place(tmp_path: Path) -> None:
    bad = Feedback(value="no", passed=False, rationale="It does not.")
    await kept(tmp_path, (KEY, GOOD, "a"))
    fresh = a_cache(tmp_path, fresh=True)

    assert fresh.get(KEY, "a") is None
    fresh.put(KEY, bad, "a")
    await fresh.close()

    cache = a_cache(tmp_path)
    assert cache.get(KEY, "a") == bad
    await cache.close()


async def test_what_is_forgotten_goes_also_where_it_came_from_the_cache(tmp_path: Path) -> None:
    other = cache_key("v1", [])
    await kept(tmp_path, (KEY, GOOD, "first"), (other, GOOD, "other"))
    cache = a_cache(tmp_path)
    assert cache.get(KEY, "again") == GOOD
    await cache.close()

    cache.forget(["again"])

    assert cache.get(KEY, "a") is None
    assert cache.get(other, "other") == GOOD
    assert b"first" not in (tmp_path / FILE).read_bytes()
    await cache.close()


def broken(file: Path) -> None:
    file.write_bytes(b"This is no database. " * 1_000)


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5_000] + b"\xff" * 8_000)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def strange(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("update results set result = '{\"answer\": 42}'")


@pytest.mark.parametrize("damage", [broken, torn, a_folder, strange])
async def test_a_broken_file_costs_a_call_and_is_said_once(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await kept(tmp_path, (KEY, GOOD, "a"))
    damage(tmp_path / FILE)
    cache = a_cache(tmp_path)

    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY, "a") is None
        cache.put(KEY, GOOD, "a")
        await cache.close()
        cache.put(KEY, GOOD, "a")
        await cache.close()

    assert [record.getMessage() for record in caplog.records] == [
        "the cache cannot be used: judging goes on without it (delete the file to begin anew)"
    ]


async def test_a_locked_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluator.models.cache.WRITE_PATIENCE", 0.05)
    await kept(tmp_path, (KEY, GOOD, "a"))
    cache = a_cache(tmp_path)
    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
        other.execute("begin exclusive")

        assert cache.get(KEY, "b") == GOOD
        cache.put(cache_key("v1", []), GOOD, "b")
        await cache.close()
        other.execute("rollback")


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from datetime import UTC, datetime, timedelta\n"
        "from pathlib import Path\n"
        "from evaluator.feedback import Feedback\n"
        "from evaluator.models.cache import Cache, cache_key\n"
        "async def main():\n"
        "    cache = Cache(Path(sys.argv[1]), max_age=timedelta(days=1), max_size=10**9, clock=lambda: datetime.now(UTC))\n"
        "    for number in range(200):\n"
        "        key = cache_key(sys.argv[2], [{'role': 'user', 'content': str(number)}])\n"
        "        cache.put(key, Feedback(value='yes', passed=True, rationale=''), 'a')\n"
        "        await asyncio.sleep(0)\n"
        "    await cache.close()\n"
        "    assert not cache._warned\n"
        "asyncio.run(main())\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)]) for number in range(3)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]

    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("select count(*) from results").fetchone() == (600,)


async def test_who_waited_for_a_call_that_failed_asks_without_waiting_for_the_others(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    at_once, most = 0, 0

    async def failed(number: int) -> None:
        nonlocal at_once, most
        async with cache.turn(KEY):
            assert cache.get(KEY, str(number)) is None
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.01)
            at_once -= 1

    await asyncio.gather(*(failed(number) for number in range(5)))

    assert most == 4
    await cache.close()
