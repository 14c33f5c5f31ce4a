"""What all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How fast a busy machine makes examples is no property of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _databases_end_before_the_interpreter() -> Iterator[None]:
    """DuckDB lists what it calls leaks on stderr when a connection outlives the interpreter's modules."""
    yield
    from evaluator.dataset import conditions

    if conditions._database.cache_info().currsize:
        conditions._database().close()
        conditions._database.cache_clear()
