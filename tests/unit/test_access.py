"""Loopback is open; elsewhere a token is asked for."""

import pytest

from evaluator.access import allowed, check_binding
from evaluator.errors import ConfigurationError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_token(host: str) -> None:
    check_binding(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_elsewhere_a_token_is_required(host: str) -> None:
    with pytest.raises(ConfigurationError, match="EVALUATOR_HTTP__TOKEN"):
        check_binding(host, None)
    check_binding(host, "secret")


def test_only_the_whole_token_is_right() -> None:
    assert allowed(None, None)
    assert allowed("secret", "Bearer secret")
    assert not any(
        allowed("secret", given) for given in (None, "", "Bearer", "Bearer secre", "secret", "Bearer sécret")
    )
