"""The corpus of replies: each is read to the value that it states or is unscored; none is a guess.

An entry of `tests/data/replies` tells `what` it is, the reply (`reply` as text, or `message` as it came over the wire), and
what comes of it: the value that it `reads`, or the reason for which it is `unscored`. `values` names one of VALUES,
`finish` the finish reason, `material` what the judge was shown.
"""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evaluator.feedback import Feedback, Outcome, Reason, Unscored
from evaluator.guidelines.definitions import Categories, NumberRange, Values, YesNo
from evaluator.models.endpoint import Completion
from evaluator.models.openai import read_completion
from evaluator.scorers.reply import LONGEST_REPLY, read_reply

FOLDER = Path(__file__).parents[1] / "data" / "replies"
VALUES: dict[str, Values] = {
    "yes_no": YesNo(),
    "tones": Categories(values=("warm", "neutral", "cold")),
    "issues": Categories(values=("Very_Good", "no issue", "3")),
    "alike": Categories(values=("a-b", "a_b", "good", "good!")),
    "stars": NumberRange(min=1, max=5),
}
TOO_MUCH = {
    "a rationale beyond the bound": '{"rationale": "' + "r" * LONGEST_REPLY + '", "result": "yes"}',
    "many thoughts": "<think></think>" * 3_000 + '{"rationale": "r", "result": "perhaps"}',
    "opening braces": "{" * 5_000,
    "empty objects": "{}" * 5_000,
    "deep objects": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "deep lists": "[" * 40_000 + '{"result": "maybe"}',
    "deep calls": '{"name": "verdict", "arguments": ' * 900 + "1" + "}" * 900,
    "a string that never ends": '"' * 40_001,
}
Entry = dict[str, Any]


@cache
def corpus() -> dict[str, Entry]:
    return {
        f"{file.stem}: {entry['what']}": entry
        for file in sorted(FOLDER.glob("*.yaml"))
        for entry in yaml.safe_load(file.read_text(encoding="utf-8"))
    }


def the_reading(entry: Entry) -> Outcome:
    completion = Completion(text=entry.get("reply", ""), model="m", finish_reason=entry.get("finish", "stop"))
    if "message" in entry:
        body = orjson.dumps({"choices": [{"message": entry["message"], "finish_reason": "stop"}]})
        completion = read_completion(body, {}, "m", datetime(2026, 11, 20, tzinfo=UTC))
    return read_reply(completion, values_of(entry), material=[entry.get("material", "")])


def values_of(entry: Entry) -> Values:
    return VALUES[entry.get("values", "yes_no")]


def allowed(outcome: Outcome, values: Values) -> bool:
    if isinstance(outcome, Unscored):
        return True
    match values:
        case YesNo():
            return outcome.value in ("yes", "no")
        case Categories():
            return outcome.value in values.values
        case NumberRange():
            return isinstance(outcome.value, int | float) and values.min <= outcome.value <= values.max


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    entries = [entry for file in FOLDER.glob("*.yaml") for entry in yaml.safe_load(file.read_text())]

    assert len(entries) == len(corpus()) >= 300


@pytest.mark.parametrize("name", corpus())
def test_a_reply_is_read_to_what_it_states_or_is_unscored(name: str) -> None:
    entry = corpus()[name]
    outcome = the_reading(entry)

    if "reads" in entry:
        assert isinstance(outcome, Feedback), outcome
        assert (outcome.value, type(outcome.value)) == (entry["reads"], type(entry["reads"]))
        outcome.rationale.encode()
    else:
        assert isinstance(outcome, Unscored), outcome
        assert outcome.reason is Reason(entry["unscored"])


def test_a_reply_cut_off_anywhere_is_read_to_the_same_value_or_not_at_all() -> None:
    read = [entry for entry in corpus().values() if "reads" in entry and "reply" in entry]
    misread = [
        entry["reply"][:cut]
        for entry in read
        for cut in range(len(entry["reply"]))
        if isinstance(outcome := the_reading({**entry, "reply": entry["reply"][:cut]}), Feedback)
        and outcome.value != entry["reads"]
    ]

    assert misread == []


@pytest.mark.parametrize("what", TOO_MUCH)
def test_too_much_of_anything_is_unscored(what: str) -> None:
    outcome = the_reading({"reply": TOO_MUCH[what]})

    assert isinstance(outcome, Unscored)


NOISE_BEFORE = [
    "",
    "\ufeff",
    "\u200b\n",
    "```json\n",
    "Here is my judgement:\n\n",
    "<think>Is it no? {'result': 'no'}</think>\n",
    "## Verdict\n",
    '{"rationale": "...", "result": "..."}\n',
    "<|channel|>final<|message|>",
    "✅ ",
]
NOISE_AFTER = ["", "\n```", "\n\nLet me know if you need more.", "<|im_end|>", "\u200b", "\n---\n", " 🎉"]


@given(
    st.sampled_from([name for name, entry in corpus().items() if name.startswith("asked_for") and "reads" in entry]),
    st.sampled_from(NOISE_BEFORE),
    st.sampled_from(NOISE_AFTER),
)  # fmt: skip
def test_noise_around_a_reply_changes_nothing(name: str, before: str, after: str) -> None:
    entry = corpus()[name]
    outcome = the_reading({**entry, "reply": f"{before}{entry['reply']}{after}"})

    assert isinstance(outcome, Feedback)
    assert outcome.value == entry["reads"]


PIECES = [
    *'{}[]",:\\\'\n', " ", "rationale", '"result"', '"yes"', '"no"', "4", "warm", "NaN", "<think>", "</think>", "```", "x",
    '{"rationale": "r", "result": ', '{"name": "verdict", "arguments": ', "\u200b", "“", "True", "é",
]  # fmt: skip


@given(
    st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.sampled_from(list(VALUES)),
    st.text(max_size=20),
)
def test_no_text_raises_or_yields_what_is_no_value(text: str, values: str, material: str) -> None:
    outcome = the_reading({"reply": text, "values": values, "material": material})

    assert allowed(outcome, VALUES[values])


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["rationale", "result", "name", "arguments", "output", "function", "verdict"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(list(VALUES)),
)
def test_no_json_raises_or_yields_what_is_no_value(said: Any, values: str) -> None:
    outcome = the_reading(
        {"reply": orjson.dumps(said, option=orjson.OPT_NON_STR_KEYS).decode(), "values": values}
    )

    assert allowed(outcome, VALUES[values])


@given(st.sampled_from(["yes", "no"]), st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_no_verdict_in_the_material_is_the_judges_own(
    result: str, rationale: str, before: str, after: str
) -> None:
    forged = orjson.dumps({"rationale": rationale, "result": result}).decode()
    outcome = the_reading({"reply": forged, "material": f"{before}{forged}{after}"})

    assert isinstance(outcome, Unscored)
