"""Replies as models write them: each is read rightly or is unscored, none is a guess."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.feedback import Feedback, Reason, Unscored
from evaluator.guidelines.definitions import Categories, NumberRange, Values, YesNo
from evaluator.models.endpoint import Completion
from evaluator.scorers.reply import LONGEST_REPLY, read_reply, reply_schema

YES_NO = YesNo()
TONES = Categories(values=("warm", "neutral", "cold"))
ISSUES = Categories(values=("Very_Good", "no issue", "3"))
STARS = NumberRange(min=1, max=5)

READ: list[tuple[str, Values, object]] = [
    # As asked.
    ('{"rationale": "It holds.", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "It does not.", "result": "no"}', YES_NO, "no"),
    ('{"rationale": "Kind words.", "result": "warm"}', TONES, "warm"),
    ('{"rationale": "Half of it.", "result": 3}', STARS, 3),
    ('{"rationale": "Half of it.", "result": 3.5}', STARS, 3.5),
    # Spelled a little otherwise.
    ('{"rationale": "r", "result": "Yes"}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "NO."}', YES_NO, "no"),
    ('{"rationale": "r", "result": " yes \\n"}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "**no**"}', YES_NO, "no"),
    ('{"rationale": "r", "result": true}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "false"}', YES_NO, "no"),
    ('{"rationale": "r", "result": "pass"}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "FAIL"}', YES_NO, "no"),
    ('{"rationale": "r", "result": "Neutral"}', TONES, "neutral"),
    ('{"rationale": "r", "result": "very good"}', ISSUES, "Very_Good"),
    ('{"rationale": "r", "result": "no_issue"}', ISSUES, "no issue"),
    ('{"rationale": "r", "result": 3}', ISSUES, "3"),
    ('{"rationale": "r", "result": "4"}', STARS, 4),
    ('{"rationale": "r", "result": "4.0"}', STARS, 4),
    ('{"rationale": "r", "result": "4/5"}', STARS, 4),
    ('{"rationale": "r", "result": "2 out of 5"}', STARS, 2),
    ('{"rationale": "r", "result": 1}', STARS, 1),
    ('{"rationale": "r", "result": 5.0}', STARS, 5),
    # Named otherwise.
    ('{"rationale": "r", "value": "yes"}', YES_NO, "yes"),
    ('{"reasoning": "r", "verdict": "no"}', YES_NO, "no"),
    ('{"explanation": "r", "answer": "yes"}', YES_NO, "yes"),
    ('{"reason": "r", "passed": false}', YES_NO, "no"),
    ('{"rationale": "r", "score": 2}', STARS, 2),
    ('{"Rationale": "r", "Result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "r", "label": "cold"}', TONES, "cold"),
    ('{"rationale": "r", "result": "yes", "passed": true}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "yes", "score": 0.9}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "yes", "confidence": 0.4}', YES_NO, "yes"),
    ('{"result": "yes", "rationale": "r"}', YES_NO, "yes"),
    ('{"result": "no"}', YES_NO, "no"),
    # Wrapped.
    ('```json\n{"rationale": "r", "result": "yes"}\n```', YES_NO, "yes"),
    ('```\n{"rationale": "r", "result": "no"}\n```', YES_NO, "no"),
    ('Here is my judgement:\n{"rationale": "r", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "yes"}\nLet me know if you need more.', YES_NO, "yes"),
    ('Filled {name} in.\n{"rationale": "r", "result": "no"}', YES_NO, "no"),
    ('[{"rationale": "r", "result": "yes"}]', YES_NO, "yes"),
    ('{"evaluation": {"rationale": "r", "result": "no"}}', YES_NO, "no"),
    ('{"output": [{"rationale": "r", "result": "warm"}]}', TONES, "warm"),
    ('<think>Perhaps {"result": "no"}?</think>{"rationale": "r", "result": "yes"}', YES_NO, "yes"),
    ('Perhaps no.\n</think>\n\n{"rationale": "r", "result": "yes"}', YES_NO, "yes"),
    ('<thinking>no</thinking>\n```json\n{"rationale": "r", "result": "yes"}\n```', YES_NO, "yes"),
    ('<think>a</think>\n<think>b {"result": "no"}</think>{"rationale": "r", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "It wrote </think>{\'result\': \'no\'} there.", "result": "yes"}', YES_NO, "yes"),
    ('Well: {"rationale": "It wrote </think>{\'result\': \'no\'}.", "result": "yes"}', YES_NO, "yes"),
    ('\ufeff{"rationale": "r", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "...", "result": "..."}\n{"rationale": "r", "result": "no"}', YES_NO, "no"),
    ('{"rationale": "r", "result": "yes"}\n{"rationale": "again", "result": "yes"}', YES_NO, "yes"),
    # With the usual slips.
    ('{"rationale": "r", "result": "yes",}', YES_NO, "yes"),
    ('{\n  "rationale": "r",\n  "result": "yes",\n}', YES_NO, "yes"),
    ("{'rationale': 'r', 'result': 'no'}", YES_NO, "no"),
    ("{'rationale': \"It's fine\", 'result': 'yes'}", YES_NO, "yes"),
    ("{'rationale': 'r', 'result': True}", YES_NO, "yes"),
    ("{“rationale”: “r”, “result”: “yes”}", YES_NO, "yes"),
    ("{“rationale”: “it's fine”, “result”: “no”,}", YES_NO, "no"),
    ('{"rationale": "He said “ok”.", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "two\nlines\tand a tab", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "a, ] and a, } in it", "result": "no",}', YES_NO, "no"),
    ('{"rationale": "braces } { in it", "result": "no"}', YES_NO, "no"),
    ('{"rationale": "It quoted {\\"result\\": \\"no\\"} to us.", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": ["first", "second"], "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": {"for": "a", "against": "b"}, "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": null, "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "\\ud83d and \\u0000", "result": "yes"}', YES_NO, "yes"),
    ('{"rationale": "r", "result": "yes", "result": "yes"}', YES_NO, "yes"),
]  # fmt: skip

UNREAD: list[tuple[str, Values]] = [
    ("", YES_NO),
    ("  \n ", YES_NO),
    ("yes", YES_NO),
    ("I would say yes.", YES_NO),
    ("The result is: 4", STARS),
    ("{}", YES_NO),
    ("[]", YES_NO),
    ("null", YES_NO),
    ('{"rationale": "r"}', YES_NO),
    ('{"rationale": "r", "result": null}', YES_NO),
    ('{"rationale": "r", "result": ""}', YES_NO),
    ('{"rationale": "r", "result": "maybe"}', YES_NO),
    ('{"rationale": "r", "result": "yes and no"}', YES_NO),
    ('{"rationale": "r", "result": "yes, mostly"}', YES_NO),
    ('{"rationale": "r", "result": "yes|no"}', YES_NO),
    ('{"rationale": "r", "result": 1}', YES_NO),
    ('{"rationale": "r", "result": ["yes"]}', YES_NO),
    ('{"rationale": "...", "result": "..."}', YES_NO),
    ('{"rationale": "r", "result": "yes", "passed": false}', YES_NO),
    ('{"rationale": "r", "result": "yes", "value": "no"}', YES_NO),
    ('{"rationale": "r", "result": "unsure", "passed": true}', YES_NO),
    ('{"rationale": "r", "result": "yes", "result": "no"}', YES_NO),
    ("{'rationale': 'r', 'result': 'yes', 'result': 'no'}", YES_NO),
    ('{"rationale": "r", "result": "yes"} {"rationale": "r", "result": "no"}', YES_NO),
    ('[{"result": "yes"}, {"result": "no"}]', YES_NO),
    ('{"rationale": "r", "result": "yes"} {"rationale": "r", "result": "perhaps"}', YES_NO),
    ('{"rationale": "It said {"result": "no"} to us", "result": "yes"}', YES_NO),
    ('{"rationale": "It said "result": no }", "result": "yes"}', YES_NO),
    ('{result: no} {"rationale": "r", "result": "yes"}', YES_NO),
    ('{"rationale": "r", "result": "yes"', YES_NO),
    ('{"rationale": "r", "result": "ye', YES_NO),
    ('<think>{"rationale": "r", "result": "yes"}', YES_NO),
    ('<think>{"rationale": "r", "result": "yes"}</think>', YES_NO),
    ('<think>It ends </think> {"result": "no"} here.</think>{"rationale": "r", "result": "yes"}', YES_NO),
    ("<think></think>" * 3_000 + '{"rationale": "r", "result": "perhaps"}', YES_NO),
    ('{"rationale": "r", "result": "hot"}', TONES),
    ('{"rationale": "r", "result": "warm or neutral"}', TONES),
    ('{"rationale": "r", "result": true}', TONES),
    ('{"rationale": "r", "result": 0}', STARS),
    ('{"rationale": "r", "result": 6}', STARS),
    ('{"rationale": "r", "result": "8/10"}', STARS),
    ('{"rationale": "r", "result": "4 stars"}', STARS),
    ('{"rationale": "r", "result": NaN}', STARS),
    ('{"rationale": "r", "result": Infinity}', STARS),
    ('{"rationale": "r", "result": true}', STARS),
    ('{"rationale": "r", "result": 1e400}', STARS),
    ('{"rationale": "' + "r" * LONGEST_REPLY + '", "result": "yes"}', YES_NO),
    ("{" * 5_000, YES_NO),
    ("{}" * 5_000, YES_NO),
    ('{"a":' * 20_000 + "1" + "}" * 20_000, YES_NO),
    ("[" * 40_000 + '{"result": "maybe"}', YES_NO),
]  # fmt: skip

REFUSED = [
    "I'm sorry, but I can't assist with that request.",
    "I cannot help with this.",
    "Sorry, I am unable to judge this content.",
    "I’m not able to provide an evaluation of this.",
]


def a_reply(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text=text, model="openai/stub", finish_reason=finish_reason)


@pytest.mark.parametrize(("text", "values", "value"), READ)
def test_a_clear_reply_is_read(text: str, values: Values, value: object) -> None:
    outcome = read_reply(a_reply(text), values)

    assert isinstance(outcome, Feedback)
    assert outcome.value == value
    assert type(outcome.value) is type(value)
    outcome.rationale.encode()


@pytest.mark.parametrize(("text", "values"), UNREAD)
def test_an_unclear_reply_is_unscored(text: str, values: Values) -> None:
    outcome = read_reply(a_reply(text), values)

    assert isinstance(outcome, Unscored)
    assert outcome.reason is Reason.BAD_REPLY


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_in_prose_is_one(text: str) -> None:
    outcome = read_reply(a_reply(text), YES_NO)

    assert isinstance(outcome, Unscored)
    assert outcome.reason is Reason.REFUSED


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
