"""What a span was, in each convention that production code writes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.traces.conventions import step_of
from evaluator.traces.trace import Document, Message, Span, SpanEvent, Step

ASK, ANSWER = "What is slow?", "The export."
USER, ASSISTANT = {"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}
CALL = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"id": 7}'}}
LOOKUP = {"name": "lookup", "arguments": {"id": 7}, "id": "c1"}


def step(attributes: dict[str, Any], *events: SpanEvent, name: str = "a span") -> Step:
    span = Span(trace_id="1" * 32, span_id="2" * 16, name=name, attributes=attributes, events=events)
    return step_of(span)


def text(value: Any) -> str:
    return json.dumps(value)


def mlflow(inputs: Any, outputs: Any, span_type: str = "CHAT_MODEL", **more: Any) -> dict[str, Any]:
    said = {"mlflow.spanInputs": text(inputs), "mlflow.spanOutputs": text(outputs)}
    return {"mlflow.spanType": text(span_type), **said} | {key: text(value) for key, value in more.items()}


def genai(operation: str, **more: Any) -> dict[str, Any]:
    return {"gen_ai.operation.name": operation} | {
        f"gen_ai.{key.replace('__', '.')}": value for key, value in more.items()
    }


def parts(role: str, *contents: dict[str, Any]) -> str:
    return text([{"role": role, "parts": list(contents)}])


SPOKEN = {"type": "text", "content": ASK}
ANSWERED = {"type": "text", "content": ANSWER}

EXCHANGES: dict[str, tuple[dict[str, Any], tuple[SpanEvent, ...]]] = {
    "MLflow, OpenAI's chat completions": (
        mlflow({"messages": [USER]}, {"choices": [{"message": ASSISTANT}, {"message": {}}]}),
        (),
    ),
    "MLflow, OpenAI's responses": (
        mlflow(
            {"model": "gpt-5", "input": ASK},
            {
                "output": [
                    {"type": "reasoning", "summary": []},
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": ANSWER}],
                    },
                ]
            },
        ),
        (),
    ),
    "MLflow, Anthropic": (
        mlflow(
            {
                "system": "Be brief.",
                "messages": [{"role": "user", "content": [{"type": "text", "text": ASK}]}],
            },
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": ANSWER}],
            },
        ),
        (),
    ),
    "MLflow, Gemini": (
        mlflow(
            {"contents": [{"role": "user", "parts": [{"text": ASK}]}]},
            {"candidates": [{"content": {"role": "model", "parts": [{"text": ANSWER}]}}]},
        ),
        (),
    ),
    "MLflow, Bedrock": (
        mlflow(
            {"messages": [{"role": "user", "content": [{"text": ASK}]}]},
            {"output": {"message": {"role": "assistant", "content": [{"text": ANSWER}]}}},
        ),
        (),
    ),
    "MLflow, LangChain": (
        mlflow(
            [[{"type": "human", "content": ASK}]],
            {"generations": [[{"text": ANSWER, "message": {"type": "ai", "content": ANSWER}}]]},
        ),
        (),
    ),
    "MLflow, a text": (mlflow(ASK, ANSWER), ()),
    "OpenTelemetry GenAI, attributes": (
        genai("chat", input__messages=parts("user", SPOKEN), output__messages=parts("assistant", ANSWERED)),
        (),
    ),
    "OpenTelemetry GenAI, attributes that were not flattened to text": (
        genai(
            "chat",
            input__messages=[{"role": "user", "parts": [SPOKEN]}],
            output__messages=[{"role": "assistant", "parts": [ANSWERED]}],
        ),
        (),
    ),
    "OpenTelemetry GenAI, the details' event": (
        genai("chat"),
        (
            SpanEvent(
                name="gen_ai.client.inference.operation.details",
                attributes={
                    "gen_ai.input.messages": [{"role": "user", "parts": [SPOKEN]}],
                    "gen_ai.output.messages": [{"role": "assistant", "parts": [ANSWERED]}],
                },
            ),
        ),
    ),
    "OpenTelemetry GenAI, an event a message": (
        genai("chat"),
        (
            SpanEvent(name="gen_ai.system.message", attributes={"content": "Be brief."}),
            SpanEvent(name="gen_ai.user.message", attributes={"content": ASK}),
            SpanEvent(name="gen_ai.choice", attributes={"index": 0, "message": text(ASSISTANT)}),
        ),
    ),
    "OpenTelemetry GenAI, an event with its body in one attribute": (
        genai("chat"),
        (
            SpanEvent(
                name="gen_ai.user.message", attributes={"gen_ai.event.content": text({"content": ASK})}
            ),
            SpanEvent(
                name="gen_ai.choice",
                attributes={"gen_ai.event.content": text({"message": {"content": ANSWER}, "index": 0})},
            ),
        ),
    ),
    "OpenTelemetry GenAI, one event for all": (
        genai("chat"),
        (
            SpanEvent(name="gen_ai.content.prompt", attributes={"gen_ai.prompt": text([USER])}),
            SpanEvent(name="gen_ai.content.completion", attributes={"gen_ai.completion": text([ASSISTANT])}),
        ),
    ),
    "OpenLLMetry's indexed attributes": (
        {
            "gen_ai.request.model": "m",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": "Be brief.",
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": text([{"type": "text", "text": ASK}]),
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": ANSWER,
        },
        (),
    ),
    "OpenInference, a value": (
        {"openinference.span.kind": "LLM", "input.value": ASK, "output.value": ANSWER},
        (),
    ),
    "OpenInference, flattened messages": (
        {
            "openinference.span.kind": "LLM",
            "input.value": "{}",
            "llm.input_messages.0.message.role": "system",
            "llm.input_messages.0.message.content": "Be brief.",
            "llm.input_messages.10.message.role": "user",
            "llm.input_messages.10.message.contents.0.message_content.type": "text",
            "llm.input_messages.10.message.contents.0.message_content.text": ASK,
            "llm.input_messages.2.message.role": "user",
            "llm.input_messages.2.message.content": "an earlier question",
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": ANSWER,
        },
        (),
    ),
    "OpenInference, the provider's JSON": (
        {
            "openinference.span.kind": "LLM",
            "input.value": text({"messages": [USER]}),
            "output.value": text({"choices": [{"message": ASSISTANT}]}),
        },
        (),
    ),
    "OpenInference, a text completion": (
        {
            "openinference.span.kind": "LLM",
            "llm.prompts.0.prompt.text": ASK,
            "llm.choices.0.completion.text": ANSWER,
        },
        (),
    ),
    "MLflow and GenAI on one span": (
        mlflow(ASK, ANSWER) | genai("chat", input__messages=parts("user", ANSWERED)),
        (),
    ),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_request_and_response_are_what_was_said(name: str) -> None:
    attributes, events = EXCHANGES[name]

    told = step(attributes, *events)

    assert (told.span_type, told.request, told.response) == ("LLM", ASK, ANSWER)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in EXCHANGES
        if name not in ("MLflow, a text", "OpenInference, a value", "MLflow and GenAI on one span")
    ],
)
def test_the_conversation_ends_with_the_question_and_the_answer(name: str) -> None:
    attributes, events = EXCHANGES[name]

    conversation = step(attributes, *events).messages

    assert conversation[-2:] == (Message(role="user", content=ASK), Message(role="assistant", content=ANSWER))


CALLS: dict[str, tuple[dict[str, Any], tuple[SpanEvent, ...]]] = {
    "MLflow, OpenAI": (
        mlflow({"messages": [USER]}, {"choices": [{"message": {"role": "assistant", "tool_calls": [CALL]}}]}),
        (),
    ),
    "MLflow, OpenAI's responses": (
        mlflow(
            {"model": "m", "input": ASK},
            {
                "output": [
                    {"type": "function_call", "call_id": "c1", "name": "lookup", "arguments": '{"id": 7}'}
                ]
            },
        ),
        (),
    ),
    "MLflow, Anthropic": (
        mlflow(
            {"messages": [USER]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "lookup", "input": {"id": 7}}],
            },
        ),
        (),
    ),
    "MLflow, LangChain": (
        mlflow(
            {"messages": [{"type": "human", "content": ASK}]},
            {"type": "ai", "content": "", "tool_calls": [{"id": "c1", "name": "lookup", "args": {"id": 7}}]},
        ),
        (),
    ),
    "GenAI": (
        genai(
            "chat",
            output__messages=parts(
                "assistant", {"type": "tool_call", "id": "c1", "name": "lookup", "arguments": {"id": 7}}
            ),
        ),
        (),
    ),
    "GenAI events": (
        genai("chat"),
        (SpanEvent(name="gen_ai.choice", attributes={"message": text({"tool_calls": [CALL]})}),),
    ),
    "OpenLLMetry": (
        {
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.tool_calls.0.id": "c1",
            "gen_ai.completion.0.tool_calls.0.name": "lookup",
            "gen_ai.completion.0.tool_calls.0.arguments": '{"id": 7}',
        },
        (),
    ),
    "OpenInference": (
        {
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "lookup",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"id": 7}',
        },
        (),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_tool_calls_are_the_same_in_every_convention_and_are_no_answer(name: str) -> None:
    attributes, events = CALLS[name]

    told = step(attributes, *events)

    assert told.tool_calls == (LOOKUP,)
    assert told.response is None
    assert told.output is not None


def test_a_graphs_state_tells_this_turns_calls_and_answer_only() -> None:
    earlier = [USER, {"role": "assistant", "tool_calls": [CALL | {"id": "c0"}]}]
    state = [
        *earlier,
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "late"},
        ASSISTANT,
    ]

    told = step(mlflow({"messages": [*earlier, USER]}, {"messages": state}, "CHAIN"))

    assert (told.tool_calls, told.response, len(told.messages)) == ((LOOKUP,), ANSWER, len(state))


def test_an_answer_may_be_empty() -> None:
    told = step(
        mlflow({"messages": [USER]}, {"choices": [{"message": {"role": "assistant", "content": ""}}]})
    )

    assert told.response == ""


def test_a_tools_results_are_not_what_the_user_said() -> None:
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "late"}]}

    told = step(mlflow({"messages": [USER, result]}, ANSWER))

    assert told.request == ASK
    assert told.messages[1] == Message(role="tool", content="late")


def test_what_is_no_text_is_named() -> None:
    content = [{"type": "text", "text": ASK}, {"type": "image_url", "image_url": {"url": "data:…"}}]

    assert (
        step(mlflow({"messages": [{"role": "user", "content": content}]}, ANSWER)).request
        == f"{ASK}\n[image_url]"
    )


def test_a_message_that_looks_like_json_stays_what_was_said() -> None:
    said = '{"a": 1}'

    assert (
        step(genai("chat"), SpanEvent(name="gen_ai.user.message", attributes={"content": said})).request
        == said
    )


def test_what_carries_no_messages_is_its_json() -> None:
    told = step(mlflow({"question": ASK}, {"rows": 3}, "CHAIN"))

    assert (told.request, told.response, told.messages) == (text({"question": ASK}), text({"rows": 3}), ())


USAGE = [
    mlflow(
        ASK,
        ANSWER,
        **{
            "mlflow.chat.tokenUsage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
            "mlflow.llm.model": "gpt-5-mini",
            "mlflow.llm.cost": {"input_cost": 0.25, "output_cost": 0.5, "total_cost": 0.75},
        },
    ),
    genai(
        "chat",
        usage__input_tokens=3,
        usage__output_tokens="4",
        usage__total_tokens=7.0,
        request__model="gpt-5",
        response__model="gpt-5-mini",
        usage__cost=0.75,
    ),
    {
        "openinference.span.kind": "LLM",
        "llm.token_count.prompt": 3,
        "llm.token_count.completion": 4,
        "llm.token_count.total": 7,
        "llm.model_name": "gpt-5-mini",
        "llm.cost.prompt": 0.25,
        "llm.cost.completion": 0.5,
    },
]


@pytest.mark.parametrize("attributes", USAGE)
def test_tokens_model_and_cost_are_read(attributes: dict[str, Any]) -> None:
    told = step(attributes)

    assert (told.input_tokens, told.output_tokens, told.total_tokens) == (3, 4, 7)
    assert (told.model, told.cost_usd) == ("gpt-5-mini", 0.75)


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-5-mini"])
def test_without_a_word_of_mlflow_the_model_is_the_providers(name: str) -> None:
    assert step(mlflow({"model": "gpt-4o"}, {"model": name})).model == name


TOOLS = [
    (mlflow({"id": 7}, "late", "TOOL"), "execute_tool lookup"),
    (
        genai(
            "execute_tool", tool__name="lookup", tool__call__arguments='{"id": 7}', tool__call__result="late"
        ),
        "x",
    ),
    (
        {
            "openinference.span.kind": "TOOL",
            "tool.name": "lookup",
            "input.value": '{"id": 7}',
            "output.value": "late",
        },
        "x",
    ),
]


@pytest.mark.parametrize(("attributes", "name"), TOOLS)
def test_a_tool_span_has_a_name_arguments_and_a_result(attributes: dict[str, Any], name: str) -> None:
    told = step(attributes, name=name)

    assert (told.span_type, told.tool_name) == ("TOOL", "lookup")
    assert (json.loads(told.input or ""), told.output) == ({"id": 7}, "late")


DOCUMENTS = [
    mlflow(ASK, [{"page_content": "Exports", "metadata": {"doc_uri": "d1"}, "score": 0.5}], "RETRIEVER"),
    genai("retrieval", retrieval__documents=text([{"id": "d1", "content": "Exports", "score": 0.5}])),
    {
        "openinference.span.kind": "RETRIEVER",
        "retrieval.documents.0.document.content": "Exports",
        "retrieval.documents.0.document.id": "d1",
        "retrieval.documents.0.document.score": 0.5,
    },
]


@pytest.mark.parametrize("attributes", DOCUMENTS)
def test_documents_are_read(attributes: dict[str, Any]) -> None:
    told = step(attributes)

    assert told.span_type == "RETRIEVER"
    assert told.documents == (Document(content="Exports", document_id="d1", score=0.5),)


@pytest.mark.parametrize(
    ("attributes", "session", "user"),
    [
        ({"session.id": "s", "user.id": "u"}, "s", "u"),
        ({"gen_ai.conversation.id": "s", "enduser.id": "u"}, "s", "u"),
        ({"mlflow.trace.session": '"s"', "mlflow.trace.user": '"u"'}, "s", "u"),
        ({"session.id": '"s"', "user.id": '"u"'}, "s", "u"),
        ({"session.id": 12, "user.id": "  "}, "12", None),
    ],
)
def test_session_and_user_are_read(attributes: dict[str, Any], session: str, user: str | None) -> None:
    told = step(attributes)

    assert (told.session_id, told.user_id) == (session, user)


def test_tags_are_read() -> None:
    assert step({"mlflow.traceTag.team": "billing"}).tags == {"team": "billing"}
    assert step({"tag.tags": '["vip"]'}).tags == {"vip": True}


@pytest.mark.parametrize(
    ("attributes", "span_type"),
    [
        ({}, "OTHER"),
        ({"http.request.method": "POST"}, "OTHER"),
        (mlflow(1, 2, "WORKFLOW"), "CHAIN"),
        (mlflow(1, 2, "GUARDRAIL"), "OTHER"),
        (genai("invoke_agent"), "AGENT"),
        (genai("embeddings", request__model="e"), "EMBEDDING"),
        (genai("something_new", request__model="e"), "OTHER"),
        ({"openinference.span.kind": "chain"}, "CHAIN"),
        ({"traceloop.span.kind": "workflow"}, "CHAIN"),
    ],
)
def test_span_types_are_read(attributes: dict[str, Any], span_type: str) -> None:
    assert step(attributes).span_type == span_type


KEYS = sorted(
    {key for attributes, _ in [*EXCHANGES.values(), *CALLS.values()] for key in attributes}
    | {key for attributes in [*USAGE, *DOCUMENTS, *(tool for tool, _ in TOOLS)] for key in attributes}
    | {
        "session.id",
        "user.id",
        "tag.tags",
        "mlflow.traceTag.x",
        "gen_ai.system_instructions",
        "gen_ai.prompt",
    }
    | {"gen_ai.prompt.0", "llm.input_messages", "llm.input_messages.x.y", "gen_ai.completion..content"}
)
WORDS = sorted(
    {"messages", "role", "content", "parts", "type", "text", "tool_calls", "function", "name", "arguments"}
    | {"choices", "message", "output", "input", "kwargs", "generations", "candidates", "contents", "model"}
    | {"human", "tool_use", "tool_result", "function_call", "user", "assistant", "document", "metadata"}
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=15,
)


@given(
    attributes=st.dictionaries(
        st.sampled_from(KEYS), VALUES | VALUES.map(lambda value: json.dumps(value)), max_size=8
    ),
    event=st.sampled_from(["gen_ai.user.message", "gen_ai.choice", "gen_ai.content.prompt", "exception"]),
    body=st.dictionaries(
        st.sampled_from(
            ["content", "message", "tool_calls", "role", "gen_ai.event.content", "gen_ai.prompt"]
        ),
        VALUES | VALUES.map(lambda value: json.dumps(value)),
        max_size=4,
    ),
)
def test_whatever_the_values_are_there_is_a_step(
    attributes: dict[str, Any], event: str, body: dict[str, Any]
) -> None:
    told = step(attributes, SpanEvent(name=event, attributes=body))

    for said in (told.input, told.output, told.request, told.response, told.model, told.tool_name):
        assert said is None or isinstance(said, str)
    for count in (told.input_tokens, told.output_tokens, told.total_tokens):
        assert count is None or 0 <= count < 2**63
    for message in told.messages:
        assert isinstance(message.content, str)


@pytest.mark.parametrize("depth", [300, 900])
def test_deep_nesting_is_survived(depth: int) -> None:
    deep = json.loads("[" * depth + "]" * depth)

    told = step(
        {"mlflow.spanInputs": deep, "mlflow.spanOutputs": "[" * 5000, "gen_ai.prompt.0.content": deep}
    )

    assert told.input is not None
    assert told.output == "[" * 5000
