"""Calls that begin alike: one goes ahead, so that the provider's cache serves the others."""

import asyncio
from typing import Any

import pytest

from evaluator.models.prefixes import SHORTEST, Prefixes, beginning, marked, wants_marks

RULES = "Judge by what the material shows."
LONG = "x" * SHORTEST


def a_prompt(material: str, task: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": RULES}, {"role": "user", "content": f"{material}\n\n{task}"}]


class Asking:
    """Calls under way; each of them is answered, or fails, when the test says so."""

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self.begun: list[str] = []
        self.warm: list[bool] = []
        self.answers: dict[str, asyncio.Future[None]] = {}

    async def ask(self, task: str, material: str = LONG) -> None:
        async with self.prefixes.turn(a_prompt(material, task), len(material)) as warm:
            self.begun.append(task)
            self.warm.append(warm)
            self.answers[task] = asyncio.get_running_loop().create_future()
            await self.answers[task]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_call_of_a_trace_is_answered_before_the_others_go_out() -> None:
    asking = Asking(Prefixes(pays=True))
    async with asyncio.TaskGroup() as group:
        for task in ("a", "b", "c"):
            group.create_task(asking.ask(task))
        await settled()
        first = list(asking.begun)
        asking.answers["a"].set_result(None)
        await settled()
        asking.answers["b"].set_result(None)
        asking.answers["c"].set_result(None)

    assert first == ["a"]
    assert asking.begun == ["a", "b", "c"]
    assert asking.warm == [False, True, True]


@pytest.mark.parametrize(
    ("pays", "material"), [(False, LONG), (True, "short")], ids=["no cache that pays", "a short prompt"]
)
async def test_nobody_waits_who_would_not_gain_by_it(pays: bool, material: str) -> None:
    asking = Asking(Prefixes(pays=pays))
    async with asyncio.TaskGroup() as group:
        for task in ("a", "b"):
            group.create_task(asking.ask(task, material))
        await settled()
        begun = list(asking.begun)
        for answer in asking.answers.values():
            answer.set_result(None)

    assert begun == ["a", "b"]


async def test_traces_do_not_wait_for_one_another() -> None:
    asking = Asking(Prefixes(pays=True))
    async with asyncio.TaskGroup() as group:
        group.create_task(asking.ask("a", LONG + "1"))
        group.create_task(asking.ask("b", LONG + "2"))
        await settled()
        begun = list(asking.begun)
        for answer in asking.answers.values():
            answer.set_result(None)

    assert begun == ["a", "b"]


async def test_when_the_first_fails_another_goes_ahead_and_nobody_hangs() -> None:
    asking = Asking(Prefixes(pays=True))
    tasks = [asyncio.create_task(asking.ask(task)) for task in ("a", "b")]
    await settled()
    asking.answers["a"].set_exception(ValueError("no answer"))
    await settled()
    asking.answers["b"].set_result(None)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results[0], ValueError)
    assert asking.warm == [False, False]


async def test_a_cache_that_has_gone_cold_is_made_anew() -> None:
    now = [0.0]
    asking = Asking(Prefixes(pays=True, seconds=lambda: now[0]))
    for task in ("a", "b", "c"):
        if task == "c":
            now[0] = 600.0
        running = asyncio.create_task(asking.ask(task))
        await settled()
        asking.answers[task].set_result(None)
        await running

    assert asking.warm == [False, True, False]


def test_only_what_several_share_is_counted_as_shared() -> None:
    prefixes = Prefixes(pays=True)
    prefixes.expect("whole trace")
    prefixes.expect("whole trace")
    prefixes.expect("response only")

    assert prefixes.shared("whole trace")
    assert not prefixes.shared("response only")


def test_the_end_of_the_trace_is_marked_and_the_text_stays_the_same() -> None:
    prompt = a_prompt(LONG, "TASK")
    system, user = marked(prompt, len(LONG))

    assert system == prompt[0]
    assert [part["text"] for part in user["content"]] == [LONG, "\n\nTASK"]
    assert [part.get("cache_control") for part in user["content"]] == [{"type": "ephemeral"}, None]
    assert marked(prompt, 0) == prompt
    assert marked(a_prompt("short", "TASK"), 5) == a_prompt("short", "TASK")
    assert beginning(prompt, len(LONG)) == (RULES, LONG)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("anthropic/claude-sonnet-4-5", True),
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("bedrock/us.amazon.nova-pro-v1:0", True),
        ("vertex_ai/claude-sonnet-4-5", True),
        ("openai/gpt-5-mini", False),
        ("gemini/gemini-2.5-flash", False),
    ],
)
def test_marks_go_to_the_providers_that_want_them(model: str, wanted: bool) -> None:
    assert wants_marks(model) is wanted
