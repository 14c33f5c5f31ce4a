"""What must not leave, and what must stay."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evaluator.redaction import KINDS, Redactor

ALL = Redactor(list(KINDS))
CORPUS: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "data" / "redaction.yaml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Own:
    pattern: str
    as_: str


def spelled_out(text: str) -> str:
    return re.sub(r"<([^<>*]+)\*(\d+)>", lambda found: found[1] * int(found[2]), text)


@pytest.mark.parametrize(
    ("kind", "text", "redacted"),
    [(kind, text, redacted) for kind, cases in CORPUS.items() for text, redacted in cases["found"].items()],
)
def test_what_is_personal_or_secret_is_replaced(kind: str, text: str, redacted: str) -> None:
    assert Redactor([kind]).redact(spelled_out(text)) == redacted
    assert ALL.redact(spelled_out(text)) == redacted


@pytest.mark.parametrize("text", [text for cases in CORPUS.values() for text in cases["kept"]])
def test_numbers_dates_and_names_survive(text: str) -> None:
    assert ALL.redact(spelled_out(text)) == spelled_out(text)


def test_a_placeholder_means_the_same_in_all_texts_of_a_trace() -> None:
    redaction = Redactor(["email"]).begin()

    texts = [redaction.redact(text) for text in ("ann@x.org", "bob@x.org wrote", "to ann@x.org")]

    assert texts == ["[EMAIL_1]", "[EMAIL_2] wrote", "to [EMAIL_1]"]


def test_a_pattern_of_ones_own_stands_beside_the_kinds() -> None:
    redactor = Redactor(["email", Own(r"\bCUST-\d+\b", "CUSTOMER")])

    assert redactor.redact("CUST-12 (a@b.org), CUST-7, CUST-12") == (
        "[CUSTOMER_1] ([EMAIL_1]), [CUSTOMER_2], [CUSTOMER_1]"
    )


def test_where_two_findings_overlap_nothing_of_either_is_left() -> None:
    redactor = Redactor([Own("abcd", "FIRST"), Own("cdef", "SECOND")])

    assert redactor.redact("xabcdefx") == "x[FIRST_1]x"


def test_no_rule_changes_nothing_and_an_empty_match_is_none() -> None:
    assert Redactor([]).redact("a@b.org") == "a@b.org"
    assert Redactor([Own("x*", "X")]).redact("axxb") == "a[X_1]b"


def test_the_definition_changes_with_the_rules_and_with_nothing_else() -> None:
    definition = Redactor(["email", Own("a", "A")]).definition

    assert definition == Redactor(["email", Own("a", "A")]).definition
    assert definition != Redactor(["email", Own("b", "A")]).definition
    assert definition != Redactor(["email"]).definition


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match='unknown kind "emails"'):
        Redactor(["emails"])
    with pytest.raises(ValueError, match="missing"):
        Redactor([Own("(", "X")])


@given(st.text())
def test_any_text_can_be_redacted_and_what_is_found_is_gone(text: str) -> None:
    redacted = ALL.redact(text + " ann@x.org " + text)

    assert "ann@x.org" not in redacted
    assert ALL.redact("\ud800" + redacted).startswith("\ud800")


@pytest.mark.parametrize(
    "unit",
    [
        "1234 ",
        "1.",
        "1:",
        "a@",
        "AB12 ",
        "password: ",
        "+1 ",
        "0123-456 ",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----\n",
        "sk-",
        "eyJ",
        "a:b@",
    ],
)
def test_a_megabyte_made_to_be_slow_is_not(unit: str) -> None:
    text = unit * (250_000 // len(unit))
    started = time.process_time()

    ALL.redact(text)

    assert time.process_time() - started < 5
