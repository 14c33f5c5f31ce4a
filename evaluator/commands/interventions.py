"""What an operator does to the backlog: put up for retry, pause, resume."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from evaluator.config import Config, nearest
from evaluator.decisions import days_beside, newest_revisions, without_spend
from evaluator.errors import ConfigurationError
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.notes import EVERY_JUDGE, pause_units, paused
from evaluator.portions import portions
from evaluator.tables.ledger import Book
from evaluator.tables.rows import Key, Row
from evaluator.wiring import build_tables, definitions_of, utc_now

ROWS_A_COMMIT = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What becomes of unscored results: so many were `put_up` again, are `due` as it is, or `later`."""

    put_up: int
    due: int
    later: int


def retry_unscored(config: Config, since: datetime | None, judge: str | None) -> Retried:
    """Give finally unscored results a new due time, and a fresh count of attempts; the others are only counted."""
    if judge is not None:
        _known_judge(config, judge)
    book = build_tables(config).ledger.open()
    now = utc_now()
    unscored = [
        row
        for row in _last_words(book, book.rows("scorer is not null and state = 'unscored'"))
        if (judge is None or row.scorer == judge)
        and (since is None or (row.at is not None and row.at >= since))
    ]
    put_up = 0
    for rows in portions([row for row in unscored if row.due is None], ROWS_A_COMMIT):
        units = [[replace(without_spend(row), due=now, attempts=0)] for row in rows]
        put_up += len(book.commit(units))
    times = [row.due for row in unscored if row.due is not None]
    due = sum(time <= now for time in times)
    return Retried(put_up=put_up, due=due, later=len(times) - due)


def _last_words(book: Book, unscored: Mapping[Key, Row]) -> list[Row]:
    """Those of some rows that are the last word on their target: nothing was said after, and no revision came."""
    targets = {key.target_id for key in unscored}
    sessions = {key.target_id for key in unscored if key.target_type == "SESSION"}
    states = book.states(targets, days_beside(row.day for row in unscored.values()))
    states |= book.of_sessions(sessions) if sessions else {}
    newest = newest_revisions(states)
    return [
        row for key, row in unscored.items() if states[key].seq == row.seq and row.revision == newest[key[:4]]
    ]


def set_pause(config: Config, judge: str | None, *, on: bool) -> list[str]:
    """Pause or resume one judge, or all; the names whose state changed."""
    book = build_tables(config).ledger.open()
    now_paused = paused(book.notes())
    if judge is not None and judge not in now_paused:
        _known_judge(config, judge)
        if not any(isinstance(one, JudgeDefinition) and one.name == judge for one in definitions_of(config)):
            raise ConfigurationError(
                f'--judge: "{judge}" is a scorer of code, which costs nothing: judges are paused'
            )
    if on:
        names = {judge or EVERY_JUDGE} - now_paused
    else:
        names = now_paused if judge is None else now_paused & {judge}
        if judge is not None and EVERY_JUDGE in now_paused:
            raise ConfigurationError("every judge is paused: `evaluator resume` lets all of them go on")
    if names:
        book.commit(pause_units(sorted(names), on=on))
    return sorted(names)


def _known_judge(config: Config, judge: str) -> None:
    """Raises ConfigurationError for a name that no judge or scorer has."""
    known = [definition.name for definition in definitions_of(config)]
    if judge not in known:
        raise ConfigurationError(f'--judge: there is no judge or scorer "{judge}"{nearest(judge, known)}')
