"""Who may reach what listens: loopback is open, elsewhere a token is asked for."""

import hmac
import ipaddress

from evaluator.errors import ConfigurationError


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(host: str, token: str | None) -> None:
    """Raises ConfigurationError when the address is reachable from elsewhere and no token guards it."""
    if not is_loopback(host) and not token:
        raise ConfigurationError(
            f"{host} is reachable from other machines: set EVALUATOR_HTTP__TOKEN, which clients then send as "
            "`Authorization: Bearer …` (OTEL_EXPORTER_OTLP_HEADERS), or bind to 127.0.0.1"
        )


def allowed(token: str | None, authorization: str | None) -> bool:
    """Whether a request's Authorization header carries the token; anything is right where there is none."""
    return not token or hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())
