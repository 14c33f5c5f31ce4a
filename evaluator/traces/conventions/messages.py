"""Messages and documents out of the JSON that carries them, whichever provider or framework wrote it.

Sources of the shapes: the API references of OpenAI (chat completions, responses), Anthropic (messages),
Google (generateContent) and Amazon Bedrock (converse); the OpenTelemetry GenAI message schemas; LangChain's
messages; OpenInference's flattened ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluator.traces.conventions.values import json_of, name_of, score_of, text_of
from evaluator.traces.trace import Document, Message

ROLES = {
    "human": "user",
    "humanmessage": "user",
    "ai": "assistant",
    "aimessage": "assistant",
    "aimessagechunk": "assistant",
    "model": "assistant",
    "systemmessage": "system",
    "toolmessage": "tool",
    "function": "tool",
}
_MESSAGE_TYPES = set(ROLES) - {"model", "function"} | {"system", "tool"}
"""LangChain's messages name their role in `type`."""


def messages_in(value: Any) -> tuple[Message, ...]:
    """The messages that a request or a reply carries, in order; empty where it carries none."""
    if isinstance(value, dict):
        return _in_object(value)
    if isinstance(value, list):
        if value and isinstance(value[0], list):  # a batch of conversations, of which a span has one
            value = value[0]
        return _each(value)
    return ()


def last_user(messages: Sequence[Message]) -> str | None:
    """What the user said last."""
    return next((message.content for message in reversed(messages) if message.role == "user"), None)


def last_answer(messages: Sequence[Message]) -> str | None:
    """What was answered since the user spoke last; None where nobody answered but by calling tools."""
    for message in reversed(_since_user(messages)):
        if message.role == "assistant" and (message.content or not message.tool_calls):
            return message.content
    return None


def calls_in(messages: Sequence[Message]) -> tuple[Mapping[str, Any], ...]:
    """The tool calls since the user spoke last: a history before that belongs to earlier steps."""
    return tuple(call for message in _since_user(messages) for call in message.tool_calls)


def _since_user(messages: Sequence[Message]) -> Sequence[Message]:
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    return messages[users[-1] + 1 :] if users else messages


def documents_in(value: Any) -> tuple[Document, ...]:
    """The documents of a retriever's output: texts, or objects as the common frameworks write them."""
    value = json_of(value)
    if isinstance(value, dict):
        value = next((value[key] for key in ("documents", "results", "output") if key in value), [value])
    if not isinstance(value, list):
        return ()
    return tuple(document for document in map(_document, value) if document is not None)


def _document(item: Any) -> Document | None:
    if isinstance(item, str):
        return Document(content=item)
    if not isinstance(item, dict):
        return None
    if isinstance(item.get("document"), dict):
        item = item["document"]
    metadata = item["metadata"] if isinstance(item.get("metadata"), dict) else {}
    content = _first(item, ("page_content", "content", "text", "document"))
    return Document(
        content=text_of(content) or "",
        document_id=name_of(_first(item, ("id", "doc_id", "document_id")), metadata.get("doc_uri")),
        score=score_of(item.get("score")),
    )


def _first(value: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((value[key] for key in keys if value.get(key) is not None), None)


def _each(items: Any) -> tuple[Message, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(message for message in map(_message, items) if message is not None)


def _in_object(value: Mapping[str, Any]) -> tuple[Message, ...]:
    own = _message(value)
    if own is not None:
        return (own,)
    for key in ("messages", "contents", "input", "output"):
        if found := messages_in(value[key]) if isinstance(value.get(key), list) else ():
            return (*_instructions(value), *found)
    if isinstance(value.get("input"), str) and isinstance(value.get("model"), str):
        return (*_instructions(value), Message(role="user", content=value["input"]))
    for key in ("choices", "candidates", "generations", "output"):
        if found := _reply(value.get(key)):
            return found
    return _each([value["message"]]) if "message" in value else ()


def _instructions(request: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system's message, where a provider keeps it beside the others."""
    given = _first(request, ("system", "instructions", "systemInstruction", "system_instruction"))
    if given is None:
        return ()
    text, _, _ = _content(given)
    return (Message(role="system", content=text),) if text else ()


def _reply(choices: Any) -> tuple[Message, ...]:
    """The first of a model's choices."""
    while isinstance(choices, list) and choices:
        choices = choices[0]
    if not isinstance(choices, dict):
        return ()
    inner = _first(choices, ("message", "content", "delta"))
    if isinstance(inner, dict):
        message = _message({"role": "assistant", **inner})
        return () if message is None else (message,)
    text = choices.get("text")
    return (Message(role="assistant", content=text),) if isinstance(text, str) else ()


def _message(item: Any) -> Message | None:
    if not isinstance(item, dict):
        return None
    for wrapper in ("message", "kwargs"):
        if isinstance(item.get(wrapper), dict):
            item = item[wrapper]
    kind = item.get("type")
    if kind == "function_call":
        return Message(role="assistant", content="", tool_calls=_calls([item]))
    if kind == "function_call_output":
        return Message(role="tool", content=text_of(item.get("output")) or "")
    role = item.get("role")
    if not isinstance(role, str):
        if not isinstance(kind, str) or kind.lower() not in _MESSAGE_TYPES:
            return None
        role = kind
    text, calls, results = _content(_first(item, ("content", "contents", "parts")))
    role = ROLES.get(role.lower(), role.lower())
    if results and not text:
        role, text = "tool", results
    return Message(role=role, content=text, tool_calls=calls + _calls_of(item))


def _calls_of(item: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The calls that stand beside a message's content."""
    extra = item.get("additional_kwargs")
    places = [item, extra] if isinstance(extra, dict) else [item]
    for place in places:
        calls = json_of(place.get("tool_calls"))
        if isinstance(calls, list) and calls:
            return _calls(calls)
    return _calls([item["function_call"]]) if isinstance(item.get("function_call"), dict) else ()


def _calls(items: Iterable[Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple(call for call in map(_call, items) if call is not None)


def _call(item: Any) -> Mapping[str, Any] | None:
    if not isinstance(item, dict):
        return None
    if isinstance(item.get("tool_call"), dict):
        item = item["tool_call"]
    function = item["function"] if isinstance(item.get("function"), dict) else item
    name = name_of(function.get("name"))
    if name is None:
        return None
    call: dict[str, Any] = {
        "name": name,
        "arguments": json_of(_first(function, ("arguments", "args", "input", "parameters"))),
    }
    call_id = name_of(_first(item, ("call_id", "id", "toolUseId", "tool_call_id")))
    return call if call_id is None else {**call, "id": call_id}


_SPOKEN = ("text", "input_text", "output_text")
_SILENT = ("reasoning", "thinking", "redacted_thinking")
_CALL_KEYS = ("toolUse", "functionCall", "function_call")
_RESULT_KEYS = ("toolResult", "functionResponse", "function_response")


def _content(content: Any) -> tuple[str, tuple[Mapping[str, Any], ...], str]:
    """A message's content: its text, the tool calls in it, and the text of the tool results in it."""
    if content is None or isinstance(content, str):
        return content or "", (), ""
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    texts: list[str] = []
    calls: list[Any] = []
    results: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict) and isinstance(part.get("message_content"), dict):
            part = part["message_content"]
        if not isinstance(part, dict):
            texts.append(text_of(part) or "")
            continue
        kind = part.get("type")
        if kind in _SPOKEN:
            texts.append(_part_text(part, kind))
        elif kind in ("tool_call", "tool_use"):
            calls.append(part)
        elif call := _first(part, _CALL_KEYS):
            calls.append(call)
        elif kind in ("tool_call_response", "tool_result"):
            results.append(text_of(_first(part, ("response", "result", "content", "output"))) or "")
        elif result := _first(part, _RESULT_KEYS):
            results.append(text_of(result) or "")
        elif kind not in _SILENT:
            texts.append(_part_text(part, kind))
    return "\n".join(filter(None, texts)), _calls(calls), "\n".join(filter(None, results))


def _part_text(part: Mapping[str, Any], kind: Any) -> str:
    """A part's text; of an image or a file only that there was one."""
    text = _first(part, ("text", "content", "refusal"))
    if isinstance(text, str):
        return text
    return f"[{kind}]" if isinstance(kind, str) else text_of(part) or ""
