"""The lease: one at a time on a good day, and no harm on a bad one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evaluator.errors import TableError
from evaluator.lease import LIFETIME, Held, Lease


class Integers:
    """A ledger's integers in memory. `broken`: it cannot be reached."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.broken = False
        self.now = datetime(2026, 11, 20, tzinfo=UTC)

    def open(self) -> "Integers":
        if self.broken:
            raise TableError("the store is away")
        return self

    def lease(self, scope: str) -> int:
        return self.values.get(f"lease/{scope}", 0)

    def mark(self, app_id: str, value: int) -> bool:
        self.values[app_id] = value
        return True

    def clock(self) -> datetime:
        return self.now


def a_lease(integers: Integers, folder: Path) -> Lease:
    return Lease(integers.open, "live", folder, integers.clock)


async def test_a_second_worker_is_told_who_works_and_may_after_the_first(tmp_path: Path) -> None:
    integers = Integers()

    async with a_lease(integers, tmp_path).held(wait=False):
        with pytest.raises(Held, match="process"):
            async with a_lease(integers, tmp_path).held(wait=False):
                raise AssertionError("held twice")

    async with a_lease(integers, tmp_path).held(wait=False):
        pass
    assert integers.values == {"lease/live": 0}


async def test_the_lease_of_a_worker_elsewhere_is_respected_until_it_ends(tmp_path: Path) -> None:
    integers = Integers()
    elsewhere = a_lease(integers, tmp_path / "elsewhere")
    assert elsewhere._try() is None

    with pytest.raises(Held, match="a worker elsewhere"):
        async with a_lease(integers, tmp_path).held(wait=False):
            raise AssertionError("held twice")
    integers.now += LIFETIME + timedelta(seconds=1)

    async with a_lease(integers, tmp_path).held(wait=False):
        pass


async def test_a_dead_holder_on_this_host_is_noticed_at_once(tmp_path: Path) -> None:
    integers = Integers()
    dead = a_lease(integers, tmp_path)
    dead._folder.mkdir(parents=True)
    dead._file(dead._holder).write_text("process 1 on here")
    assert dead._try() is None

    async with a_lease(integers, tmp_path).held(wait=False):
        pass


async def test_a_store_that_is_away_at_the_end_costs_nothing_but_the_leases_time(tmp_path: Path) -> None:
    integers = Integers()

    async with a_lease(integers, tmp_path).held(wait=False):
        integers.broken = True

    assert integers.values["lease/live"] != 0


async def test_a_renewal_that_fails_while_the_lease_lasts_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr("evaluator.lease.RENEWED_EVERY", timedelta(milliseconds=5))
    integers = Integers()
    lease = a_lease(integers, tmp_path)

    async with lease.held(wait=False):
        integers.broken = True
        await asyncio.sleep(0.05)
        still_held = not lease.lost
        integers.now += LIFETIME + timedelta(seconds=1)
        await asyncio.sleep(0.05)
        lost = lease.lost

    assert (still_held, lost) == (True, True)


async def test_a_lease_that_a_wrong_clock_took_far_ahead_is_not_waited_for(tmp_path: Path) -> None:
    """Its holder was killed elsewhere, so that nobody can tell that it is dead; a little skew is respected."""
    integers = Integers()
    for ahead, respected in ((timedelta(minutes=5), True), (timedelta(days=1), False)):
        elsewhere = Lease(integers.open, "live", tmp_path / "elsewhere", lambda by=ahead: integers.now + by)
        integers.values.clear()
        assert elsewhere._try() is None

        assert (a_lease(integers, tmp_path)._try() is not None) == respected
