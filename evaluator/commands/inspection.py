"""What is in force, and how things stand, for the commands that only look."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluator.commands.status import Status, status
from evaluator.config import Config, DailyBudget
from evaluator.errors import ConfigurationError
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.models.account import ALL
from evaluator.notes import paused
from evaluator.wiring import Entry, Tables, build_scorers, build_sinks, build_tables, definitions_of, utc_now

SILENT: Mapping[str, Any] = {
    **dict.fromkeys(("scored", "passed", "failed", "unscored", "open"), 0),
    **dict.fromkeys(("coverage", "last_at")),
}
"""What is told of a scorer in force that has said nothing yet."""


def entries_in_force(config: Config, tables: Tables) -> Sequence[Entry]:
    """Today's scorers and whom they look at; no key and no model is needed to tell."""
    return build_scorers(config, definitions_of(config), tables.ledger.open(), keys_needed=False).entries


def versions_in_force(entries: Iterable[Entry]) -> Mapping[str, str]:
    """The versions of scorers by name."""
    return {entry.scorer.name: entry.scorer.version for entry in entries}


def _daily(budget: DailyBudget) -> Mapping[str, Any]:
    return {"usd_per_day": budget.usd_per_day, "tokens_per_day": budget.tokens_per_day}


async def current_status(config: Config) -> Status:
    """How things stand. Broken guideline files are part of it. Raises TableError."""
    tables = build_tables(config)
    in_force: Mapping[str, str] = {}
    caps = {ALL: _daily(config.judge.budget)}
    notes = []
    try:
        in_force = versions_in_force(entries_in_force(config, tables))
        judges = (one for one in definitions_of(config) if isinstance(one, JudgeDefinition))
        caps |= {judge.name: _daily(judge.budget) for judge in judges if judge.budget}
    except ConfigurationError as error:
        notes.append(f"the guidelines or the configuration have mistakes: {error}")
    told = await status(
        tables.spans,
        tables.ledger,
        lambda: build_sinks(config, tables),
        caps,
        sorted(paused(tables.ledger.open().notes())),
        utc_now(),
    )
    known = {(one["name"], one["version"]) for one in told.scorers}
    silent = [
        {**SILENT, "name": name, "version": one} for name, one in in_force.items() if (name, one) not in known
    ]
    scorers = [
        {**one, "in_force": in_force.get(one["name"]) == one["version"]} for one in [*told.scorers, *silent]
    ]
    past = [{**one, "in_force": in_force.get(one["scorer"]) == one["version"]} for one in told.catch_ups]
    return replace(told, scorers=scorers, catch_ups=past, notes=[*told.notes, *notes])
