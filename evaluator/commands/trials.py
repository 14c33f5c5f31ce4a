"""Trying judges without writing anything: on real traces, and on their own examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from evaluator.config import Config, nearest
from evaluator.dataset.records import Record, record_of_trace
from evaluator.errors import ConfigurationError, EvaluatorError
from evaluator.feedback import Feedback, Scored
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.guidelines.groups import with_companions
from evaluator.scorers.judge import ModelScorer
from evaluator.scorers.scorer import Scorer
from evaluator.traces.assembly import assemble, gather, has_ended_root
from evaluator.traces.trace import Span, Trace
from evaluator.wiring import Tables, build_scorers, build_tables, definitions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One judging that was only tried: what was sent, what came back, and the result."""

    trace_id: str
    version: str
    messages: Sequence[dict[str, Any]]
    replies: Sequence[str]
    scored: Scored

    def told(self) -> str:
        """The result, and what it took, for people."""
        outcome, usage = self.scored.outcome, self.scored.usage
        if isinstance(outcome, Feedback):
            passed = {True: "pass", False: "fail", None: "no verdict"}[outcome.passed]
            told = f"{outcome.value} ({passed}): {outcome.rationale}"
        else:
            told = f"unscored, {outcome.reason}: {outcome.detail}"
        if usage.cached:
            return f"{told}\n{usage.model}: from the cache, no call was made"
        if not usage.calls:
            return told
        cost = "cost unknown" if usage.cost_usd is None else f"${usage.cost_usd:.6f}"
        note = f"\n{self.scored.metadata['note']}" if "note" in self.scored.metadata else ""
        tokens = f"{usage.input_tokens} + {usage.output_tokens} tokens"
        return f"{told}\n{usage.model}: {tokens}, {cost}, {usage.latency_ms or 0:.0f} ms{note}"

    def to_json(self) -> dict[str, Any]:
        outcome, usage = self.scored.outcome, self.scored.usage
        scored = isinstance(outcome, Feedback)
        return {
            "trace_id": self.trace_id,
            "version": self.version,
            "messages": list(self.messages),
            "replies": list(self.replies),
            "value": outcome.value if isinstance(outcome, Feedback) else None,
            "passed": outcome.passed if isinstance(outcome, Feedback) else None,
            "rationale": outcome.rationale if isinstance(outcome, Feedback) else None,
            "error": None if scored else f"{outcome.reason}: {outcome.detail}",  # type: ignore[union-attr]
            "model": usage.model,
            "calls": usage.calls,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_usd,
            "latency_ms": usage.latency_ms,
            "metadata": dict(self.scored.metadata),
        }


async def try_scorer(
    config: Config, name: str, trace_id: str | None, last: int, *, cached: bool = False
) -> list[Trial]:
    """Judge one trace, or the `last` ones, with one judge or scorer. Raises EvaluatorError.

    `cached`: a result that the cache holds is shown in place of a fresh reply.
    """
    definitions = definitions_of(config)
    known = [definition.name for definition in definitions]
    if name not in known:
        raise ConfigurationError(f'--judge: there is no judge or scorer "{name}"{nearest(name, known)}')
    tables = build_tables(config)
    wanted = [definition for definition in definitions if definition.name == name]
    built = with_companions(wanted, definitions, config.judge.model)
    scorers = build_scorers(config, built, tables.ledger.open(), caching="on" if cached else "off")
    try:
        [entry] = scorers.only([name]).entries
        traces = [find_trace(tables, trace_id)] if trace_id else _last(tables, last)
        return [await _try(entry.scorer, record_of_trace(trace)) for trace in traces]
    finally:
        await scorers.close()


async def _try(scorer: Scorer, record: Record) -> Trial:
    messages: list[dict[str, Any]] = []
    replies: Sequence[str] = ()
    if isinstance(scorer, ModelScorer):
        judgement = await scorer.judge(record)
        messages = [dict(message) for message in judgement.messages]
        replies, scored = judgement.replies, judgement.scored
    else:
        [scored] = await scorer.score([record])
    return Trial(
        trace_id=record.trace.trace_id,
        version=scorer.version,
        messages=messages,
        replies=replies,
        scored=scored,
    )


def find_trace(tables: Tables, trace_id: str) -> Trace:
    """A trace by its id, as it stands in the spans table. Raises EvaluatorError when it is not there."""
    wanted = trace_id.lower().removeprefix("tr-")
    found = gather(tables.spans.open().around([wanted], None)).get(wanted)
    if found is None:
        raise EvaluatorError(f"{trace_id}: the spans table holds no span of such a trace")
    return assemble(wanted, found.spans, incomplete=not has_ended_root(found.spans))


def _last(tables: Tables, count: int) -> list[Trace]:
    """The traces that began last, the newest first."""
    spans = tables.spans.open()
    rows = tables.views.query(
        "select trace_id from traces order by start_time desc nulls last limit ?", [count]
    )
    ids = rows.column("trace_id").to_pylist()
    if not ids:
        raise EvaluatorError("the spans table holds no trace yet")
    found = gather(spans.around(ids, None))
    return [
        assemble(trace_id, found[trace_id].spans, incomplete=not has_ended_root(found[trace_id].spans))
        for trace_id in ids
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleResult:
    """How an example of a judge came out; `got` is pass, fail, or why there is no verdict."""

    judge: str
    number: int
    expected: str
    got: str
    rationale: str

    @property
    def as_expected(self) -> bool:
        return self.got == self.expected


async def run_examples(config: Config) -> list[ExampleResult]:
    """Run the examples of every judge that has some. Raises EvaluatorError."""
    judges = [
        definition
        for definition in definitions_of(config)
        if isinstance(definition, JudgeDefinition) and definition.examples
    ]
    built = with_companions(judges, definitions_of(config), config.judge.model)
    scorers = build_scorers(config, built, build_tables(config).ledger.open(), caching="off")
    results = []
    try:
        for entry in scorers.only([judge.name for judge in judges]).entries:
            assert isinstance(entry.definition, JudgeDefinition)
            for number, example in enumerate(entry.definition.examples, start=1):
                [scored] = await entry.scorer.score([_example_record(example.inputs, example.outputs)])
                results.append(_compared(entry.scorer.name, number, example.expect, scored))
    finally:
        await scorers.close()
    return results


def _compared(judge: str, number: int, expected: str, scored: Scored) -> ExampleResult:
    outcome = scored.outcome
    if isinstance(outcome, Feedback):
        got = {True: "pass", False: "fail", None: "no verdict"}[outcome.passed]
        rationale = outcome.rationale
    else:
        got, rationale = f"unscored: {outcome.reason}", outcome.detail
    return ExampleResult(judge=judge, number=number, expected=expected, got=got, rationale=rationale)


def _example_record(inputs: object, outputs: object) -> Record:
    """An example as the record of a trace of one span."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    root = Span(
        trace_id="0" * 31 + "1",
        span_id="0" * 15 + "1",
        name="example",
        start_time_unix_nano=int(start.timestamp()) * 10**9,
        end_time_unix_nano=int((start + timedelta(seconds=1)).timestamp()) * 10**9,
        attributes={"input.value": inputs, "output.value": outputs},
        status="OK",
    )
    return record_of_trace(assemble(root.trace_id, [root], incomplete=False))
