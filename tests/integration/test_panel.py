"""Panels and cascades, asked of a stub: votes kept, costs added, a stronger model where they do not decide."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from evaluator.errors import ModelError
from evaluator.feedback import Feedback, Reason, Unscored
from evaluator.guidelines.definitions import Categories, JudgeDefinition, NumberRange
from evaluator.models.client import Model
from evaluator.models.prices import Price
from evaluator.redaction import Redactor
from evaluator.scorers.build import Judges
from evaluator.scorers.judge import Judge, ModelScorer
from evaluator.scorers.materials import Materials
from evaluator.scorers.panel import PanelJudge
from evaluator.scorers.prompts import Prompts
from tests.a_trace import a_record
from tests.integration.test_judge import a_model
from tests.stub_provider import StubProvider, prompt_of, schema_of

GUIDELINE = JudgeDefinition(name="concrete", guidelines=("The response must name a number.",))
PANEL = replace(GUIDELINE, models=("openai/a", "openai/b", "openai/c"))
CASCADE = replace(GUIDELINE, model="openai/a", escalate_to="openai/strong")
PRICE = Price(input_usd=1e-6, output_usd=2e-6)


class Provider:
    """A stub for each model, so that each can say something of its own."""

    def __init__(self) -> None:
        self.stubs: dict[str, StubProvider] = {}
        self.models: dict[str, Model] = {}

    def model(self, _: JudgeDefinition, name: str | None) -> Model:
        name = name or "openai/a"
        if name not in self.models:
            self.models[name] = a_model(self.stubs[name].base_url, name, price=PRICE)
        return self.models[name]

    def says(self, name: str, verdict: Callable[[str], Any] | Any) -> None:
        self.stubs[name].verdict = verdict if callable(verdict) else lambda _: verdict

    @property
    def asked(self) -> list[str]:
        return [name for name, stub in self.stubs.items() if stub.requests]


@pytest.fixture
def provider() -> Iterator[Provider]:
    from contextlib import ExitStack

    provider = Provider()
    with ExitStack() as stack:
        for name in ("a", "b", "c", "strong"):
            stub = stack.enter_context(StubProvider())
            stub.verdict = lambda _: "yes"
            provider.stubs[f"openai/{name}"] = stub
        yield provider


@asynccontextmanager
async def asking(provider: Provider, definition: JudgeDefinition) -> AsyncIterator[ModelScorer]:
    materials = Materials(prompts=Prompts(), fence_key=b"key", redactor=Redactor([]))
    judges = Judges(model=provider.model, materials=materials, pass_if=lambda _: None, groups={})
    async with AsyncExitStack() as stack:
        judge = judges.build(definition)
        for model in provider.models.values():
            stack.push_async_callback(model.close)
        yield judge


async def test_each_vote_is_kept_and_costs_add_up(provider: Provider) -> None:
    provider.says("openai/b", "no")
    async with asking(provider, PANEL) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Feedback)
    assert (scored.outcome.value, scored.outcome.passed) == ("yes", True)
    votes = scored.metadata["votes"]
    assert [(vote["model"], vote["value"]) for vote in votes] == [
        ("openai/a", "yes"), ("openai/b", "no"), ("openai/c", "yes"),
    ]  # fmt: skip
    assert all(vote["rationale"] and vote["cost_usd"] > 0 for vote in votes)
    assert scored.usage.calls == 3
    assert scored.usage.input_tokens == sum(vote["input_tokens"] for vote in votes)
    assert scored.usage.cost_usd == pytest.approx(sum(vote["cost_usd"] for vote in votes))
    assert scored.usage.model == "openai/a, openai/b, openai/c"
    assert json.loads(json.dumps(scored.metadata)) == scored.metadata


async def test_a_vote_that_cannot_be_had_is_no_vote(provider: Provider) -> None:
    provider.stubs["openai/c"].script = ["refusal"]
    async with asking(provider, PANEL) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Feedback)
    assert scored.metadata["votes"][2]["error"].startswith("refused: ")


async def test_what_a_failed_vote_could_turn_is_unscored_with_what_it_took(provider: Provider) -> None:
    provider.says("openai/b", "no")
    provider.stubs["openai/c"].script = ["500"] * 4
    async with asking(provider, PANEL) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Unscored)
    assert scored.outcome.reason is Reason.UNAVAILABLE
    assert scored.usage.calls == 6
    assert scored.usage.cost_usd is None


async def test_a_panel_goes_on_without_a_model_that_has_to_be_mended_unless_it_needs_it(
    provider: Provider,
) -> None:
    provider.stubs["openai/c"].script = ["401"] * 20
    async with asking(provider, PANEL) as judge:
        [scored] = await judge.score([a_record()])
        provider.says("openai/b", "no")
        with pytest.raises(ModelError, match='judge "concrete": model openai/c cannot be used'):
            await judge.score([a_record(response="Another.")])

    assert isinstance(scored.outcome, Feedback)


async def test_a_split_panel_asks_the_stronger_model(provider: Provider) -> None:
    provider.says("openai/b", "no")
    split = replace(PANEL, decide="unanimous", escalate_to="openai/strong")
    async with asking(provider, split) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Feedback)
    assert scored.metadata["escalated_to"] == "openai/strong"
    assert len(scored.metadata["votes"]) == scored.usage.calls == 4


async def test_a_split_panel_without_one_is_undecided_and_says_how(provider: Provider) -> None:
    provider.says("openai/b", "no")
    async with asking(provider, replace(PANEL, decide="unanimous")) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Unscored)
    assert scored.outcome.reason is Reason.UNDECIDED
    assert "openai/a: yes, openai/b: no, openai/c: yes" in scored.outcome.detail


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "no"),
        ({"instructions": "How?", "guidelines": (), "values": Categories(values=("warm", "cold"))}, "cold"),
        ({"instructions": "How?", "guidelines": (), "values": NumberRange(min=1, max=5)}, 4),
    ],
    ids=["yes or no", "words", "numbers"],
)
async def test_a_cheap_judge_that_is_unsure_is_relieved(
    changes: dict[str, Any], said: object, provider: Provider
) -> None:
    provider.says("openai/a", "unsure")
    provider.says("openai/strong", said)
    async with asking(provider, replace(CASCADE, **changes)) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Feedback)
    assert scored.outcome.value == said
    assert [vote["value"] for vote in scored.metadata["votes"]] == ["unsure", said]
    [cheap] = provider.stubs["openai/a"].requests
    [strong] = provider.stubs["openai/strong"].requests
    assert '"unsure"' in prompt_of(cheap)
    assert '"unsure"' in json.dumps(schema_of(cheap))
    assert "unsure" not in prompt_of(strong)


async def test_a_cheap_judge_that_is_sure_is_believed(provider: Provider) -> None:
    async with asking(provider, CASCADE) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Feedback)
    assert scored.outcome.rationale == "Decided by a hash of the prompt."
    assert provider.asked == ["openai/a"]


@pytest.mark.parametrize("script", [["500"] * 4, ["prose"] * 2, ["refusal"]])
async def test_a_failure_is_no_reason_to_escalate(script: list[str], provider: Provider) -> None:
    provider.stubs["openai/a"].script = script
    async with asking(provider, CASCADE) as judge:
        [scored] = await judge.score([a_record()])

    assert isinstance(scored.outcome, Unscored)
    assert provider.asked == ["openai/a"]


async def test_an_empty_record_is_not_asked_about(provider: Provider) -> None:
    async with asking(provider, PANEL) as judge:
        [scored] = await judge.score([a_record(request=None, response=None)])

    assert isinstance(scored.outcome, Unscored)
    assert scored.outcome.reason is Reason.NOT_APPLICABLE
    assert provider.asked == []


async def test_an_estimate_counts_every_vote(provider: Provider) -> None:
    async with asking(provider, PANEL) as judge, asking(provider, GUIDELINE) as alone:
        told, one = judge.estimate(a_record()), alone.estimate(a_record())

    assert isinstance(alone, Judge)
    assert isinstance(judge, PanelJudge)
    assert (told.calls, told.input_tokens) == (3, 3 * one.input_tokens)
    assert told.cost_usd == pytest.approx(3 * one.cost_usd)  # type: ignore[operator]


async def test_every_part_of_a_panel_is_part_of_its_version(provider: Provider) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"models": ("openai/a", "openai/b")},
        {"decide": "unanimous"},
        {"escalate_to": "openai/strong"},
        {"models": (), "escalate_to": "openai/strong"},
        {"models": ()},
        {"guidelines": ("Another.",)},
        {"trace_view": "answer"},
    ]
    versions = []
    for change in changes:
        async with asking(provider, replace(PANEL, **change)) as judge:
            versions.append(judge.version)

    assert len(set(versions)) == len(changes)
