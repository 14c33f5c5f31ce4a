"""The accounts of the budget in the ledger: one note a day, changed by commits that yield to each other."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import orjson

from evaluator.models.account import Account, Amount, Block
from evaluator.tables.ledger import Book, Ledger
from evaluator.tables.reading import CONTROL
from evaluator.tables.rows import Row

BUDGET_NOTE = "budget/"
_COLUMNS = ["seq", "target_type", "target_id", "state", "metadata"]


class LedgerAccounts:
    """Accounts that all processes with the same ledger share.

    A day's account is a note of the ledger in the partition of that day, so that it goes when the day does. Its row
    is not final: one that was planned before another's was committed yields (R5), and the step is made anew.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def read(self, day: date) -> Account:
        return account_of(self._ledger.open(), day)

    def update(self, day: date, change: Callable[[Account], Account]) -> Account:
        while True:
            book = self._ledger.open()
            known = account_of(book, day)
            changed = change(known)
            if changed == known or book.commit([[_row(day, changed)]]):
                return changed


def account_of(book: Book, day: date) -> Account:
    """A day's account as a ledger has it. Raises TableError."""
    name = f"{BUDGET_NOTE}{day}"
    rows = book.rows(f"day = '{day}' and target_type = '{CONTROL}' and target_id = '{name}'", _COLUMNS)
    return next((_account(row.metadata) for row in rows.values()), Account())


def _row(day: date, account: Account) -> Row:
    content = {
        "spent": _told(account.spent),
        "blocks": {
            holder: {"step": block.step, "amounts": _told(block.amounts)}
            for holder, block in account.blocks.items()
        },
    }
    return Row(
        day=day,
        scope="control",
        target_type=CONTROL,
        target_id=f"{BUDGET_NOTE}{day}",
        state="waiting",
        metadata=orjson.dumps(content).decode(),
    )


def _account(content: str | None) -> Account:
    told = orjson.loads(content or "{}")
    return Account(
        spent=_amounts(told.get("spent", {})),
        blocks={
            holder: Block(step=block["step"], amounts=_amounts(block["amounts"]))
            for holder, block in told.get("blocks", {}).items()
        },
    )


def _told(amounts: Mapping[str, Amount]) -> dict[str, Any]:
    return {purse: [amount.usd, amount.tokens] for purse, amount in amounts.items()}


def _amounts(told: Mapping[str, Any]) -> dict[str, Amount]:
    return {purse: Amount(*amount) for purse, amount in told.items()}
