"""Who decides what the agent does next: a model, or rules where there is no key."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from evaluator.demo.tools import INSTRUCTIONS, SPECIFICATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    call_id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a planner said: tools to call, or, when there are none, the answer."""

    calls: tuple[ToolCall, ...] = ()
    answer: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A tool call and what came of it, as JSON text."""

    call: ToolCall
    result: str


class Planner(Protocol):
    """Decides from the question and what the tools said so far. `provider` and `model` name it on the spans."""

    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...

    async def next(self, question: str, done: Sequence[Exchange]) -> Turn: ...


class ModelPlanner:
    """Asks a model with tool calling, through litellm."""

    def __init__(self, model: str, base_url: str | None = None) -> None:
        self.model = model
        self.provider = model.partition("/")[0]
        self._base_url = base_url

    async def next(self, question: str, done: Sequence[Exchange]) -> Turn:
        import litellm

        litellm.suppress_debug_info = True
        reply = await litellm.acompletion(
            model=self.model,
            base_url=self._base_url,
            messages=_messages(question, done),
            tools=list(SPECIFICATIONS.values()),
            timeout=60,
            num_retries=2,
            _skip_mcp_handler=True,  # litellm 1.106 needs its mcp extra for any tool call without this
        )
        message, usage = reply.choices[0].message, reply.usage
        return Turn(
            calls=tuple(
                ToolCall(
                    call_id=call.id, name=call.function.name, arguments=_arguments(call.function.arguments)
                )
                for call in message.tool_calls or ()
            ),
            answer=message.content or "",
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
        )


def _arguments(text: str | None) -> dict[str, Any]:
    """A model's arguments; what is no JSON object is handed on under a name that no tool takes."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {"unreadable": text}
    return value if isinstance(value, dict) else {"unreadable": text}


def _messages(question: str, done: Sequence[Exchange]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": question},
    ]
    for exchange in done:
        call = exchange.call
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        wanted = {"id": call.call_id, "type": "function", "function": function}
        messages.append({"role": "assistant", "tool_calls": [wanted]})
        messages.append({"role": "tool", "tool_call_id": call.call_id, "content": exchange.result})
    return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What the rules do with a question that matches: these calls, then an answer from their results."""

    pattern: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    write: Callable[[list[Any]], str]


class RulePlanner:
    """Decides without a model. Its tokens are estimates: a quarter of the characters."""

    provider = "demo"
    model = "rules"

    async def next(self, question: str, done: Sequence[Exchange]) -> Turn:
        play = next(play for play in PLAYS if re.search(play.pattern, question, re.IGNORECASE))
        said = len(question) + sum(len(exchange.result) for exchange in done)
        if len(done) < len(play.calls):
            name, arguments = play.calls[len(done)]
            call = ToolCall(call_id=f"call_{len(done) + 1}", name=name, arguments=arguments)
            return Turn(calls=(call,), input_tokens=said // 4, output_tokens=len(name) // 4 + 8)
        answer = play.write([json.loads(exchange.result) for exchange in done])
        return Turn(answer=answer, input_tokens=said // 4, output_tokens=len(answer) // 4)


def _satisfaction(results: list[Any]) -> str:
    worst, *_, best = results[0]
    return (
        f"{worst['category'].capitalize()} has the lowest satisfaction: {worst['csat']} of 5 over "
        f"{worst['ratings']} ratings, against {best['csat']} for {best['category']}. Its tickets take "
        f"{worst['resolution_hours']} hours (median) to resolve. Recommendation: put a second agent on "
        f"{worst['category']} and work through its {worst['open']} open tickets first."
    )


def _workload(results: list[Any]) -> str:
    team = results[0]
    most, least = team[0], team[-1]
    middle = median(agent["open"] for agent in team)
    moved = max(1, round((most["open"] - middle) / 2))
    return (
        f"{most['agent']} holds {most['open']} open tickets, {most['open'] / middle:.1f} times the team's median "
        f"of {middle:g}, and needs {most['resolution_hours']} hours a ticket. Recommendation: move {moved} of "
        f"them to {least['agent']}, who has {least['open']} open and resolves one in "
        f"{least['resolution_hours']} hours."
    )


def _ranking(by: str, measure: str, unit: str, advice: str) -> Callable[[list[Any]], str]:
    def write(results: list[Any]) -> str:
        first, *_, last = results[0]
        basis = "" if measure == "tickets" else f" over {first['of_tickets']} tickets"
        return (
            f"{str(first[by]).capitalize()} is ahead with {first[measure]:g} {unit}{basis}; {last[by]} is at the "
            f"other end with {last[measure]:g}. Recommendation: {advice.format(first[by])}"
        )

    return write


def _trend(results: list[Any]) -> str:
    weeks = results[0][:-1]
    last, before = weeks[-1], weeks[-5:-1]
    usual = sum(week["tickets"] for week in before) / len(before)
    change = 100 * (last["tickets"] / usual - 1)
    direction = "up" if change > 0 else "down"
    plan = "plan one more agent for it." if change > 5 else "leave the staffing as it is."
    return (
        f"The week of {last['week']} brought {last['tickets']} tickets, {direction} {abs(change):.0f}% on the "
        f"average of {usual:.0f} in the four weeks before. Recommendation: {plan}"
    )


def _oldest(results: list[Any]) -> str:
    found = results[0]
    listed = ", ".join(
        f"{row['ticket_id']} (since {row['created']}, {row['agent']})" for row in found["oldest"]
    )
    return (
        f"{found['total']} urgent tickets are open; the oldest are {listed}. Recommendation: have "
        f"{found['oldest'][0]['agent']} close {found['oldest'][0]['ticket_id']} today or hand it over."
    )


def _archive(results: list[Any]) -> str:
    then, now = results[0], results[1]
    total = sum(row["of_tickets"] for row in now)
    return (
        f"In {then['year']} the desk had {then['tickets']} tickets and a satisfaction of {then['csat']}; in the "
        f"last 20 weeks it had {total}. Recommendation: compare again at the end of the year."
    )


def _contact(results: list[Any]) -> str:
    row = results[0]["oldest"][0]
    return (
        f"{row['ticket_id']} was opened by {row['customer']} on {row['created']}; write to {row['customer']}."
    )


def _breakdown(by: str, measure: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return (("breakdown", {"by": by, "measure": measure}),)


PLAYS = (
    # What goes wrong in production goes wrong here too: a failing tool, a slow one, a leak, a loop, no answer.
    Play(pattern="export", calls=(("export_report", {"name": "weekly"}),), write=lambda _: ""),
    Play(
        pattern=r"20\d\d",
        calls=(("search_archive", {"year": 2023}), ("breakdown", {"by": "product"})),
        write=_archive,
    ),
    Play(pattern="who opened", calls=(("query_tickets", {"ticket_id": "T-0042"}),), write=_contact),
    Play(
        pattern="keep checking", calls=_breakdown("channel", "open") * 4, write=lambda _: "Checked 4 times."
    ),
    Play(pattern="everything", calls=_breakdown("category", "tickets"), write=lambda _: ""),
    Play(
        pattern="in general|any ideas|motivat",
        calls=(),
        write=lambda _: (
            "That depends on many things. Keep an eye on the team and try to improve step by step."
        ),
    ),
    # What goes well.
    Play(pattern="satisf|csat|happy", calls=(("csat_by_category", {}),), write=_satisfaction),
    Play(pattern="workload|overload|who has too much", calls=(("agent_workload", {}),), write=_workload),
    Play(pattern="trend|this week|last week|busier", calls=_breakdown("week", "tickets"), write=_trend),
    Play(
        pattern="urgent",
        calls=(("query_tickets", {"priority": "urgent", "status": "open", "limit": 3}),),
        write=_oldest,
    ),
    Play(
        pattern="reopen",
        calls=_breakdown("category", "reopened_percent"),
        write=_ranking(
            "category", "reopened_percent", "percent reopened", "review how {} tickets are closed."
        ),
    ),
    Play(
        pattern="first response|first answer",
        calls=_breakdown("priority", "first_response_minutes"),
        write=_ranking(
            "priority", "first_response_minutes", "minutes", "send {} tickets an automatic first reply."
        ),
    ),
    Play(
        pattern="longest|slowest|resolution",
        calls=_breakdown("agent", "resolution_hours"),
        write=_ranking("agent", "resolution_hours", "hours a ticket", "pair {} with the fastest colleague."),
    ),
    Play(
        pattern="channel",
        calls=_breakdown("channel", "tickets"),
        write=_ranking("channel", "tickets", "tickets", "staff {} first in the morning."),
    ),
    Play(
        pattern="backlog|open tickets",
        calls=_breakdown("category", "open"),
        write=_ranking("category", "open", "open tickets", "hold a clearing day for {}."),
    ),
    Play(
        pattern="",
        calls=_breakdown("product", "tickets"),
        write=_ranking("product", "tickets", "tickets", "look for the commonest cause in {}."),
    ),
)
"""In the order they are tried; the last takes every question."""
