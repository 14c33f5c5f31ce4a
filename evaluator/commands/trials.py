"""Trying judges without writing anything: on real traces, and on their own examples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from evaluator.config import Config, nearest
from evaluator.dataset.records import Record, record_of_session, record_of_span, record_of_trace
from evaluator.dataset.selection import NO_SPAN, SelectionRule, select
from evaluator.errors import ConfigurationError, EvaluatorError
from evaluator.feedback import Feedback, Scored
from evaluator.guidelines.definitions import JudgeDefinition, TargetKind
from evaluator.guidelines.groups import with_companions
from evaluator.scorers.judge import ModelScorer
from evaluator.scorers.scorer import Scorer
from evaluator.traces.assembly import Pending, assemble, gather, has_ended_root
from evaluator.traces.sessions import session_of
from evaluator.traces.trace import Span, Trace
from evaluator.wiring import Tables, build_scorers, build_tables, definitions_of

SPANS_TRIED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One judging that was only tried: what was sent, what came back, and the result."""

    trace_id: str
    span_id: str | None
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
            "span_id": self.span_id,
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

    Of a judge of spans: the first SPANS_TRIED that match in each of the traces; of one of sessions: the trace's session, or
    the last ones. `cached`: a result that the cache
    holds is shown in place of a fresh reply.
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
        if entry.rule.target == "session":
            records = _sessions(tables, find_trace(tables, trace_id) if trace_id else None, last)
        else:
            traces = [find_trace(tables, trace_id)] if trace_id else _last(tables, last)
            records = [record for trace in traces for record in _records(entry.rule, trace)]
        if not records:
            raise EvaluatorError(f"--judge {name}: {NO_SPAN} in {'it' if trace_id else 'the last traces'}")
        return [await _try(entry.scorer, record) for record in records]
    finally:
        await scorers.close()


def _sessions(tables: Tables, turn: Trace | None, count: int) -> list[Record]:
    """The session of a trace, or those that went on last, whole as the spans table has them. Raises EvaluatorError."""
    if turn is not None and turn.session_id is None:
        raise EvaluatorError(f"{turn.trace_id}: the trace names no session")
    if turn is not None:
        names = [turn.session_id or ""]
    else:
        newest = "select session_id from traces where session_id is not null group by session_id order by max(start_time) desc"
        names = tables.views.query(f"{newest} nulls last limit ?", [count]).column("session_id").to_pylist()
    if not names:
        raise EvaluatorError("the spans table holds no trace of a session yet")
    records = []
    for name in names:
        turns = tables.views.query("select trace_id from traces where session_id = ?", [name])
        found = gather(tables.spans.open().around(turns.column("trace_id").to_pylist(), None))
        records.append(record_of_session(session_of(name, map(_assembled, found.values()))))
    return records


def _assembled(pending: Pending) -> Trace:
    return assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))


def _records(rule: SelectionRule, trace: Trace) -> Sequence[Record]:
    """What is tried of a trace, whatever filter and rate say of it."""
    if rule.target != "span":
        return [record_of_trace(trace)]
    [selection] = select([trace], [replace(rule, filter=None, sample_rate=1.0)])
    return selection.records.get(rule.name, ())[:SPANS_TRIED]


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
        span_id=record.target.span_id,
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
                record = _example_record(example.inputs, example.outputs, entry.rule.target)
                [scored] = await entry.scorer.score([record])
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


def _example_record(inputs: object, outputs: object, target: TargetKind) -> Record:
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
    trace = assemble(root.trace_id, [root], incomplete=False)
    match target:
        case "span":
            return record_of_span(trace, 0)
        case "session":
            return record_of_session(session_of("example", [trace]))
        case "trace":
            return record_of_trace(trace)
        case _:
            assert_never(target)
