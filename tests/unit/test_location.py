"""Keys to a store are renewed before they end, and no request to one is waited for without end."""

import time

import pytest

from evaluator.tables.delta import DeltaStore
from evaluator.tables.location import PATIENCE, Location, fresh_until


@pytest.mark.parametrize(("life", "before"), [(3600, 300), (60, 12), (5, 1), (-10, 0)])
def test_a_key_is_renewed_in_the_last_fifth_of_its_life_or_five_minutes(life: float, before: float) -> None:
    now = time.time()

    assert fresh_until(now + life) == pytest.approx(now + life - before, abs=0.5)


def test_a_key_is_fresh_until_then_and_one_without_an_end_for_ever() -> None:
    place = {"uri": "s3://bucket/table", "storage_options": {}}

    assert Location(**place).fresh  # type: ignore[arg-type]
    assert Location(**place, fresh_until=time.time() + 5).fresh  # type: ignore[arg-type]
    assert not Location(**place, fresh_until=time.time() - 1).fresh  # type: ignore[arg-type]


def test_requests_to_a_store_elsewhere_are_bounded_unless_the_configuration_says_how() -> None:
    assert DeltaStore("s3://bucket/table", {"timeout": "5s"}).storage_options == {**PATIENCE, "timeout": "5s"}
    assert DeltaStore("/folder/table").storage_options == {}
    assert DeltaStore("file:///folder/table").storage_options == {}
