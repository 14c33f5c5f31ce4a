"""What the demo's agent can do: questions to the ticket table, and two tools with troubles of their own."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from evaluator.demo.tickets import TODAY

DIMENSIONS = {
    "category": "category",
    "product": "product",
    "channel": "channel",
    "priority": "priority",
    "agent": "agent",
    "week": "strftime(date_trunc('week', created_at), '%Y-%m-%d')",
}
MEASURES = {
    "tickets": "count(*)",
    "open": "count(*) FILTER (status = 'open')",
    "csat": "round(avg(csat), 2)",
    "first_response_minutes": "round(median(first_response_minutes))",
    "resolution_hours": "round(median(resolution_hours), 1)",
    "reopened_percent": "round(100.0 * avg(reopened::int), 1)",
}
FILTERS = ("status", "category", "product", "priority", "agent", "ticket_id")
ARCHIVE_SECONDS = 11.0
"""How long the archive takes: more than an impatient user, and a latency scorer, will stand."""


class ToolFailed(Exception):  # noqa: N818 -- what happened to a tool call, as its span says it
    """A tool could not do what it was asked."""


class Toolbox:
    """The tools by name, over one desk; each takes and gives JSON values."""

    def __init__(self, desk: duckdb.DuckDBPyConnection, archive_seconds: float = ARCHIVE_SECONDS) -> None:
        self._desk = desk
        self._archive_seconds = archive_seconds

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Run one tool. Raises ToolFailed for an unknown tool or argument, and where a tool does."""
        tool = getattr(self, name, None) if name in SPECIFICATIONS else None
        if tool is None:
            raise ToolFailed(f"there is no tool {name}")
        try:
            return await tool(**arguments)
        except (TypeError, KeyError, duckdb.Error) as error:
            raise ToolFailed(f"{name} does not take these arguments: {error}") from error

    async def breakdown(self, by: str, measure: str = "tickets", limit: int = 30) -> list[dict[str, Any]]:
        columns = f"{DIMENSIONS[by]} AS {by}, {MEASURES[measure]} AS {measure}, count(*) AS of_tickets"
        order = "1" if by == "week" else "2 DESC NULLS LAST, 1"
        return self._select(columns, f"GROUP BY 1 ORDER BY {order} LIMIT ?", [limit])

    async def query_tickets(self, limit: int = 5, **filters: str) -> dict[str, Any]:
        columns = "ticket_id, strftime(created_at, '%Y-%m-%d') AS created, category, product, priority, agent"
        where = "WHERE " + (" AND ".join(f"{name} = ?" for name in _known(filters)) or "true")
        values = list(filters.values())
        [counted] = self._select("count(*) AS tickets", where, values)
        rows = self._select(
            f"{columns}, status, customer", f"{where} ORDER BY created_at LIMIT ?", [*values, limit]
        )
        return {"total": counted["tickets"], "oldest": rows}

    async def agent_workload(self) -> list[dict[str, Any]]:
        measures = ("open", "tickets", "resolution_hours", "csat")
        columns = ", ".join(f"{MEASURES[name]} AS {name}" for name in measures)
        return self._select(f"agent, {columns}", "GROUP BY 1 ORDER BY 2 DESC, 1")

    async def csat_by_category(self) -> list[dict[str, Any]]:
        measures = ("csat", "open", "resolution_hours")
        columns = ", ".join(f"{MEASURES[name]} AS {name}" for name in measures)
        return self._select(f"category, {columns}, count(csat) AS ratings", "GROUP BY 1 ORDER BY 2, 1")

    async def search_archive(self, year: int) -> dict[str, Any]:
        await asyncio.sleep(self._archive_seconds)
        return {"year": year, "tickets": 6140, "csat": 3.7}

    async def export_report(self, name: str) -> Any:
        raise ToolFailed(f"the report service refused {name}: quota exceeded")

    def _select(self, columns: str, rest: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        query = f"SELECT {columns} FROM tickets {rest}"  # noqa: S608 -- this file's own words; values are bound
        cursor = self._desk.cursor().execute(query, list(values))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _known(filters: Mapping[str, str]) -> list[str]:
    for name in filters:
        if name not in FILTERS:
            raise TypeError(f"unknown filter {name}")
    return list(filters)


def _specification(name: str, description: str, /, **parameters: dict[str, Any]) -> dict[str, Any]:
    optional = ("limit", "measure", *FILTERS)
    schema = {
        "type": "object",
        "properties": parameters,
        "required": [key for key in parameters if key not in optional],
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


_TEXT = {"type": "string"}
_COUNT = {"type": "integer"}
SPECIFICATIONS = {
    entry["function"]["name"]: entry
    for entry in (
        _specification(
            "breakdown",
            "One measure of all tickets by one dimension.",
            by={"enum": list(DIMENSIONS)},
            measure={"enum": list(MEASURES)},
            limit=_COUNT,
        ),
        _specification(
            "query_tickets",
            "How many tickets match, and the oldest of them.",
            **dict.fromkeys(FILTERS, _TEXT),
            limit=_COUNT,
        ),
        _specification("agent_workload", "Open tickets, resolution time and satisfaction of each agent."),
        _specification("csat_by_category", "Customer satisfaction (1 to 5) of each category."),
        _specification("search_archive", "Figures of an earlier year. Slow.", year=_COUNT),
        _specification("export_report", "Export a report by its name.", name=_TEXT),
    )
}
"""The tools as a model is told of them, in OpenAI's form."""

INSTRUCTIONS = (
    "You help the manager of a support desk. Answer from the tickets: use the tools, give the numbers, and end "
    f"with one concrete recommendation that follows from them. Today is {TODAY:%Y-%m-%d}. "
    "Never repeat a customer's contact data."
)
