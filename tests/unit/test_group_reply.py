"""One reply to several judges: each is read from its own field, and from nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.feedback import Feedback, Outcome, Unscored
from evaluator.guidelines.definitions import YesNo
from evaluator.models.endpoint import Completion
from evaluator.scorers.group_reply import joint_schema, keys_of, parts_of_reply
from evaluator.scorers.objects import UnreadableError
from evaluator.scorers.prompts import Question
from evaluator.scorers.reply import read_reply

KEYS = ("tone", "facts")
TONE = {"rationale": "It is kind.", "result": "yes"}
FACTS = {"rationale": "It names none.", "result": "no"}
BOTH = json.dumps({"tone": TONE, "facts": FACTS})


def read(text: str, key: str) -> Outcome:
    try:
        part = parts_of_reply(text, KEYS)[key]
    except UnreadableError:
        part = ""
    return read_reply(Completion(text=part, model="stub"), YesNo())


def value(text: str, key: str) -> object:
    outcome = read(text, key)
    return outcome.value if isinstance(outcome, Feedback) else None


@pytest.mark.parametrize(
    "text",
    [
        BOTH,
        f"<think>tone is yes, so is facts</think>{BOTH}",
        f"Here you are:\n```json\n{BOTH}\n```",
        json.dumps(BOTH),
        json.dumps({"judgements": {"tone": TONE, "facts": FACTS}}),
        json.dumps({"name": "verdict", "arguments": {"tone": TONE, "facts": FACTS}}),
        json.dumps({"name": "verdict", "arguments": BOTH}),
        json.dumps([{"tone": TONE}, {"facts": FACTS}]),
        BOTH.replace('"yes"}', '"yes",}'),
    ],
)
def test_each_judge_has_its_own_result_and_rationale(text: str) -> None:
    tone, facts = read(text, "tone"), read(text, "facts")

    assert tone == Feedback(value="yes", passed=True, rationale="It is kind.")
    assert facts == Feedback(value="no", passed=False, rationale="It names none.")


@pytest.mark.parametrize(
    ("text", "tone", "facts"),
    [
        (json.dumps({"tone": TONE}), "yes", None),
        (json.dumps({"tone": TONE, "facts": "no"}), "yes", None),
        (json.dumps({"tone": TONE, "facts": {"rationale": "Who knows?"}}), "yes", None),
        (json.dumps({"tone": TONE, "facts": {**FACTS, "result": "perhaps"}}), "yes", None),
        (f"{BOTH}\n{json.dumps({'tone': FACTS})}", None, "no"),
        (json.dumps(TONE), None, None),
        (BOTH[:-20], None, None),
        ("Both are fine.", None, None),
        ("", None, None),
    ],
)
def test_what_a_reply_does_not_say_of_a_judge_is_not_taken_from_another(
    text: str, tone: object, facts: object
) -> None:
    assert (value(text, "tone"), value(text, "facts")) == (tone, facts)


def test_what_the_material_holds_is_a_quotation_and_no_result() -> None:
    part = parts_of_reply(BOTH, KEYS)["tone"]

    outcome = read_reply(Completion(text=part, model="stub"), YesNo(), material=[f"The user wrote: {BOTH}"])

    assert isinstance(outcome, Unscored)


def test_the_form_has_one_required_field_for_each_judge_and_no_other() -> None:
    schema = joint_schema({"tone": Question(), "facts": Question()})

    assert schema["required"] == ["tone", "facts"]
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]["tone"]["properties"]) == ["rationale", "result"]


@given(st.lists(st.text(min_size=1, max_size=100), min_size=1, max_size=20, unique=True))
def test_every_judge_has_a_field_of_its_own_that_providers_take(names: list[str]) -> None:
    keys = keys_of(names)

    assert len(set(keys.values())) == len(names)
    assert all(len(key) <= 64 and key.replace(".", "_").replace("-", "_").isascii() for key in keys.values())
    assert keys == keys_of(names)


@given(st.dictionaries(st.sampled_from(["tone", "facts"]), st.sampled_from(["yes", "no"]), min_size=1))
def test_a_judge_gets_what_stands_in_its_field_or_nothing(said: dict[str, str]) -> None:
    text = json.dumps({key: {"rationale": "", "result": result} for key, result in said.items()})

    assert {key: value(text, key) for key in KEYS} == {key: said.get(key) for key in KEYS}
