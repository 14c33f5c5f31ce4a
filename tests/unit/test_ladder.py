"""Which form a schema is asked for in, and what makes a model's ladder go down."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.guidelines.definitions import YesNo
from evaluator.models.endpoint import ChatRequest, Completion
from evaluator.models.ladder import (
    Ladder,
    Rung,
    called,
    holds,
    messages_for,
    parameters_for,
    rejected,
)
from evaluator.scorers.reply import reply_schema

SCHEMA = reply_schema(YesNo())
REQUEST = ChatRequest(messages=[{"role": "user", "content": "Is it kind?"}], schema=SCHEMA)
GOOD = '{"rationale": "r", "result": "yes"}'


def an_answer(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text=text, model="m", finish_reason=finish_reason)


def test_each_form_carries_the_whole_schema() -> None:
    by_schema, by_tool = (parameters_for(rung, SCHEMA) for rung in (Rung.SCHEMA, Rung.TOOL))
    said = messages_for(Rung.TEXT, REQUEST)[-1]["content"]

    assert by_schema["response_format"]["json_schema"]["schema"] == SCHEMA
    assert by_tool["tools"][0]["function"]["parameters"] == SCHEMA
    assert json.loads(said.split("\n")[-1]) == SCHEMA
    assert parameters_for(Rung.TEXT, SCHEMA) == {}


def test_the_other_forms_leave_the_messages_as_they_are() -> None:
    plain = ChatRequest(messages=REQUEST.messages)

    assert messages_for(Rung.SCHEMA, REQUEST) == messages_for(Rung.TOOL, REQUEST) == REQUEST.messages
    assert messages_for(Rung.TEXT, plain) == plain.messages


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        (Rung.SCHEMA, "This response_format type is unavailable now"),
        (Rung.SCHEMA, "Unrecognized request argument supplied: response_format"),
        (Rung.SCHEMA, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
        (Rung.SCHEMA, "'json_schema' is enabled only for api versions 2024-08-01-preview and later"),
        (Rung.SCHEMA, "Structured outputs are not available for this model"),
        (Rung.SCHEMA, "Failed to convert the grammar from JSON schema to tree"),
        (Rung.TOOL, "registry.ollama.ai/library/m does not support tools"),
        (Rung.TOOL, "No endpoints found that support tool use"),
        (Rung.TOOL, '"auto" tool choice requires --enable-auto-tool-choice'),
        (Rung.TOOL, "Function calling is not enabled for models/m"),
    ],
)  # fmt: skip
def test_an_error_that_is_about_the_form_is_known(rung: Rung, message: str) -> None:
    assert rejected(rung, {"message": message})


@pytest.mark.parametrize(
    "message", ["Invalid value: 'temperature'", "model not found", "", "maximum context length"]
)
def test_an_error_about_something_else_is_not(message: str) -> None:
    assert not any(rejected(rung, {"message": message}) for rung in Rung)


def test_below_words_there_is_no_other_form() -> None:
    assert not rejected(Rung.TEXT, {"param": "response_format"})


def test_the_first_answer_in_another_form_leads_down_and_one_in_form_ends_that() -> None:
    ladder = Ladder()
    ladder.heard(Rung.SCHEMA, REQUEST, an_answer("I would say yes."))
    assert ladder.rung is Rung.TOOL
    ladder.heard(Rung.TOOL, REQUEST, an_answer(GOOD))
    ladder.heard(Rung.TOOL, REQUEST, an_answer("I would say yes."))

    assert ladder.rung is Rung.TOOL


def test_answers_that_were_on_their_way_do_not_lead_further_down() -> None:
    ladder = Ladder()
    for _ in range(16):
        ladder.heard(Rung.SCHEMA, REQUEST, an_answer("I would say yes."))

    assert ladder.rung is Rung.TOOL


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", "refusal"])
def test_a_reply_that_did_not_come_to_its_end_tells_nothing_of_the_form(finish_reason: str) -> None:
    ladder = Ladder()
    ladder.heard(Rung.SCHEMA, REQUEST, an_answer("", finish_reason))

    assert ladder.rung is Rung.SCHEMA


def test_a_request_without_a_schema_tells_nothing_of_the_form() -> None:
    ladder = Ladder()
    ladder.heard(Rung.SCHEMA, ChatRequest(messages=REQUEST.messages), an_answer("ready"))

    assert ladder.rung is Rung.SCHEMA


@given(
    st.lists(
        st.tuples(st.sampled_from(Rung), st.sampled_from([GOOD, "prose", '{"result": 1}', ""])), max_size=20
    )
)
def test_the_ladder_leads_down_only(heard: list[tuple[Rung, str]]) -> None:
    ladder = Ladder()
    rungs = [ladder.rung]
    for rung, text in heard:
        ladder.heard(rung, REQUEST, an_answer(text))
        rungs.append(ladder.rung)

    assert rungs == sorted(rungs)


@given(st.text() | st.sampled_from(["{" * 999, '{"a":' * 9_999]))
def test_no_text_breaks_what_looks_for_the_form(text: str) -> None:
    assert not holds(text, SCHEMA) or "{" in text
    assert holds(f"{text.replace('{', '')}\n{GOOD}", SCHEMA)


def test_the_arguments_of_our_tool_are_the_reply_and_no_others() -> None:
    def call(name: str, arguments: object) -> dict[str, object]:
        return {"function": {"name": name, "arguments": arguments}}

    assert called([call("verdict", GOOD)]) == GOOD
    assert json.loads(called([call("verdict", {"result": "yes"})])) == {"result": "yes"}
    assert called([call("search", GOOD)]) == called(None) == called([None, {}, {"function": 7}]) == ""
    assert called([call("verdict", "a"), call("verdict", "b")]) == "a\nb"
