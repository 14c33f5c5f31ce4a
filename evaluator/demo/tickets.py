"""The support desk that the demo's agent manages: a table of tickets, the same on every machine."""

import random
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

TICKETS = 2000
TODAY = datetime(2026, 11, 2, 9)  # noqa: DTZ001 -- the desk's own clock, as its table keeps it
"""The desk's own today, a Monday: what is open, old or of this week is told from here."""

CATEGORIES = {"billing": 0.24, "login": 0.2, "api": 0.18, "shipping": 0.16, "data export": 0.12, "other": 0.1}
PRODUCTS = {"Atlas": 0.45, "Beacon": 0.35, "Compass": 0.2}
CHANNELS = {"e-mail": 0.5, "chat": 0.35, "phone": 0.15}
PRIORITIES = {"low": 0.3, "normal": 0.45, "high": 0.18, "urgent": 0.07}
AGENTS = {"Amara": 0.14, "Ben": 0.16, "Chloe": 0.18, "Dmitri": 0.16, "Noor": 0.24, "Yuki": 0.12}

_FIRST_RESPONSE_MINUTES = {"low": 190, "normal": 95, "high": 40, "urgent": 14}
_SLOWNESS = {"billing": 1.9, "data export": 1.5, "api": 1.2}
_LIKED = {"billing": -1.1, "data export": -0.4, "login": 0.4, "shipping": 0.2}


def make_tickets(seed: int = 7) -> list[dict[str, Any]]:
    """Tickets of the twenty weeks before TODAY; billing is slow and disliked, and Noor holds too much."""
    chance = random.Random(seed)  # noqa: S311 -- example data, not a secret
    return [_ticket(number, chance) for number in range(1, TICKETS + 1)]


def open_desk(seed: int = 7) -> duckdb.DuckDBPyConnection:
    """A database in memory with the table `tickets`."""
    rows = pa.Table.from_pylist(make_tickets(seed))
    connection = duckdb.connect()
    connection.register("rows", rows)
    connection.execute("CREATE TABLE tickets AS SELECT * FROM rows")
    connection.unregister("rows")
    return connection


def _ticket(number: int, chance: random.Random) -> dict[str, Any]:
    category, priority = _pick(CATEGORIES, chance), _pick(PRIORITIES, chance)
    agent = _pick(AGENTS, chance)
    created = TODAY - timedelta(minutes=chance.randint(30, 20 * 7 * 24 * 60))
    first_response = round(chance.expovariate(1 / _FIRST_RESPONSE_MINUTES[priority])) + 1
    hours = round(chance.lognormvariate(2.6, 0.9) * _SLOWNESS.get(category, 1.0), 1)
    resolved = created + timedelta(hours=hours * (2.5 if agent == "Noor" else 1))
    is_open = resolved > TODAY or chance.random() < (0.09 if agent == "Noor" else 0.04)
    rated = not is_open and chance.random() < 0.6
    liking = 4.0 + _LIKED.get(category, 0.0) - 0.01 * hours + chance.gauss(0, 0.8)
    return {
        "ticket_id": f"T-{number:04d}",
        "created_at": created,
        "resolved_at": None if is_open else resolved,
        "status": "open" if is_open else "resolved",
        "category": category,
        "product": _pick(PRODUCTS, chance),
        "channel": _pick(CHANNELS, chance),
        "priority": priority,
        "agent": agent,
        "customer": f"customer{chance.randint(1, 400):03d}@example.com",
        "first_response_minutes": first_response,
        "resolution_hours": None if is_open else round((resolved - created).total_seconds() / 3600, 1),
        "reopened": not is_open and chance.random() < (0.16 if category == "data export" else 0.05),
        "csat": min(5, max(1, round(liking))) if rated else None,
    }


def _pick(shares: dict[str, float], chance: random.Random) -> str:
    return chance.choices(list(shares), list(shares.values()))[0]
