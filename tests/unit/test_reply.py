"""What a reply becomes: its value, whether that passes, and its rationale."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.feedback import Feedback, Reason, Unscored
from evaluator.guidelines.definitions import Categories, NumberRange, Values, YesNo
from evaluator.models.endpoint import Completion
from evaluator.scorers.reply import read_reply, reply_schema

YES_NO = YesNo()
TONES = Categories(values=("warm", "neutral", "cold"))
STARS = NumberRange(min=1, max=5)


def a_reply(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text=text, model="openai/stub", finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [
        ("refusal", Reason.REFUSED),
        ("content_filter", Reason.CONTENT_FILTER),
        ("length", Reason.BAD_REPLY),
    ],
)
def test_a_reply_that_did_not_end_by_itself_is_unscored_whatever_it_holds(
    finish_reason: str, reason: Reason
) -> None:
    outcome = read_reply(a_reply('{"rationale": "r", "result": "yes"}', finish_reason), YES_NO)

    assert isinstance(outcome, Unscored)
    assert outcome.reason is reason


def test_the_rationale_is_kept() -> None:
    outcome = read_reply(
        a_reply('{"rationale": " It names 40 % fewer tickets.\\n", "result": "yes"}'), YES_NO
    )

    assert outcome == Feedback(value="yes", passed=True, rationale="It names 40 % fewer tickets.")


def test_yes_passes_no_fails_and_other_values_do_neither() -> None:
    passed = [
        read_reply(a_reply(json.dumps({"result": said})), values).passed  # type: ignore[union-attr]
        for said, values in [("yes", YES_NO), ("no", YES_NO), ("warm", TONES), (2, STARS)]
    ]

    assert passed == [True, False, None, None]


def test_a_condition_says_which_values_pass() -> None:
    outcome = read_reply(a_reply('{"result": "cold"}'), TONES, lambda value: value != "cold")

    assert isinstance(outcome, Feedback)
    assert outcome.passed is False


@given(
    st.sampled_from(["yes", "no"]),
    st.text(max_size=50)
    | st.lists(
        st.sampled_from([*"{}[]\",:\\'", "<think>", "</think>", "'result': 'no'", '"result": "no"'])
    ).map("".join),
)
def test_a_reply_in_the_asked_form_is_read_whatever_its_rationale_says(result: str, rationale: str) -> None:
    outcome = read_reply(a_reply(json.dumps({"rationale": rationale, "result": result})), YES_NO)

    assert isinstance(outcome, Feedback)
    assert outcome.value == result


@given(
    st.lists(
        st.sampled_from([*'{}[]",:\\', " ", '"result"', '"yes"', '"no"', "'", "<think>", "</think>", "x"])
    )
)
def test_no_text_breaks_the_reader(parts: list[str]) -> None:
    outcome = read_reply(a_reply("".join(parts)), YES_NO)

    assert isinstance(outcome, Feedback | Unscored)


@pytest.mark.parametrize("values", [YES_NO, TONES, STARS])
def test_the_schema_asks_for_the_rationale_first(values: Values) -> None:
    assert list(reply_schema(values)["properties"]) == ["rationale", "result"]
