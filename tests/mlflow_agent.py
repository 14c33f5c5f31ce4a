"""An agent traced by MLflow, as a process of its own: `python -m tests.mlflow_agent MODEL_URL`.

Where its spans go is said by the environment, as MLflow documents it (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT).
"""

import json
import sys

import mlflow
from openai import OpenAI

QUESTION = "Why is the export slow?"
TOOL = {
    "type": "function",
    "function": {"name": "find_tickets", "parameters": {"type": "object", "properties": {}}},
}


@mlflow.trace(span_type="TOOL")
def find_tickets(about: str) -> list[str]:
    return [f"ticket about {about}"]


@mlflow.trace(name="support agent", span_type="AGENT")
def answer(question: str, model_url: str) -> str:
    # Not as metadata of the trace: what has that, MLflow 3.17 cannot end on opentelemetry-sdk 1.45.
    span = mlflow.get_current_active_span()
    span.set_attributes({"session.id": "session-1", "user.id": "user-1"})
    client = OpenAI(base_url=model_url, api_key="none", max_retries=0)
    messages: list = [{"role": "user", "content": question}]
    while True:
        reply = client.chat.completions.create(model="stub", messages=messages, tools=[TOOL])
        message = reply.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            found = find_tickets(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(found)})


if __name__ == "__main__":
    mlflow.openai.autolog()
    answer(QUESTION, sys.argv[1])
    mlflow.flush_trace_async_logging()
