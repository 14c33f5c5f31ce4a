"""What an evaluation would do and about what it would cost: `eval --dry-run`."""

import asyncio
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evaluator.commands.evaluations import OfflineRequest, offline_parts
from evaluator.config import Config
from evaluator.dataset.records import record_of_trace
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.models.prices import Price, prices_of
from evaluator.offline import Range, pending_work
from evaluator.scorers.judge import ModelScorer
from evaluator.tables.rows import Row, from_arrow
from evaluator.traces.assembly import assemble, gather, has_ended_root
from evaluator.wiring import Scorers, Tables, build_tables

RECENT = 300
"""Commits of the ledger in which results are looked for that tell what judging really takes."""
SAMPLE = 25
"""Results of each judge that an estimate is held against."""
EVERY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerEstimate:
    """What one scorer would take. Tokens and cost are None for code; cost also where no price is known.

    `cached` counts the records whose result the cache will have.
    """

    name: str
    version: str
    records: int = 0
    model: str | None = None
    calls: int = 0
    cached: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "records": self.records,
            "model": self.model,
            "calls": self.calls,
            "cached": self.cached,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
        }


@dataclass(slots=True, kw_only=True)
class Estimate:
    """What an evaluation would do."""

    traces: int = 0
    reused: int = 0
    skipped: int = 0
    scorers: list[ScorerEstimate] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        judged = [one for one in self.scorers if one.model is not None]
        costs = [one.cost_usd for one in judged if one.calls]
        known = [cost for cost in costs if cost is not None]
        return {
            "traces": self.traces,
            "reused": self.reused,
            "skipped": self.skipped,
            "calls": sum(one.calls for one in judged),
            "cached": sum(one.cached for one in judged),
            "input_tokens": sum(one.input_tokens or 0 for one in judged),
            "output_tokens": sum(one.output_tokens or 0 for one in judged),
            "cost_usd": sum(known) if len(known) == len(costs) else None,
            "scorers": {one.name: one.to_json() for one in self.scorers},
        }


async def estimate(config: Config, request: OfflineRequest) -> Estimate:
    """What an evaluation would score, and about what it would cost; nothing is called and nothing written."""
    tables = build_tables(config)
    scorers, parts = await asyncio.to_thread(offline_parts, config, tables, request, keys_needed=False)
    told = {
        entry.scorer.name: ScorerEstimate(name=entry.scorer.name, version=entry.scorer.version)
        for entry in scorers.entries
    }
    total = Estimate()
    within = Range(start=request.start, end=request.end, limit=request.limit)
    try:
        learned = await asyncio.to_thread(_learned, tables, scorers)
        async for evaluation, assignments in pending_work(parts, within, "dry-run"):
            summary = evaluation.summary
            total.traces, total.reused = summary.traces, summary.reused
            total.skipped = summary.skipped.total()
            for assignment in assignments:
                scorer, known = assignment.scorer, told[assignment.scorer.name]
                known = replace(known, records=known.records + 1)
                if isinstance(scorer, ModelScorer):
                    one = scorer.estimate(assignment.record)
                    if one.calls and scorer.known(assignment.record):
                        known, one = replace(known, cached=known.cached + 1), replace(one, calls=0)
                    if one.calls:
                        known = _added(known, one.calls, one.input_tokens, one.output_tokens, one.cost_usd)
                    known = replace(known, model=one.model)
                told[scorer.name] = known
    finally:
        await scorers.close()
    prices = prices_of(config)
    total.scorers = [
        _corrected(one, learned.get(one.name, learned[EVERY]), prices.price_of(one.model or ""))
        for one in told.values()
    ]
    return total


def _added(
    known: ScorerEstimate, calls: int, input_tokens: int, output_tokens: int, cost_usd: float | None
) -> ScorerEstimate:
    first = known.calls == 0
    unknown = cost_usd is None or (known.cost_usd is None and not first)
    return replace(
        known,
        calls=known.calls + calls,
        input_tokens=(known.input_tokens or 0) + input_tokens,
        output_tokens=(known.output_tokens or 0) + output_tokens,
        cost_usd=None if unknown else (known.cost_usd or 0.0) + (cost_usd or 0.0),
    )


# --- what was taken lately, against what would have been estimated for it


@dataclass(slots=True, kw_only=True)
class _Learned:
    """Sums over some results: what they took, and the estimates for them."""

    took: ScorerEstimate
    told: ScorerEstimate

    def factor(self, name: str) -> float:
        took, told = getattr(self.took, name), getattr(self.told, name)
        return took / told if took and told else 1.0

    def discount(self, price: Price) -> float:
        """What was paid against what the tokens cost: input that the provider had cached costs less."""
        full = price.cost(self.took.input_tokens or 0, self.took.output_tokens or 0)
        return self.took.cost_usd / full if self.took.cost_usd and full else 1.0


def _learned(tables: Tables, scorers: Scorers) -> Mapping[str, _Learned]:
    """What the last results say of estimates: the model's own tokenizer, the length of its replies, its cached input.

    By judge, and of all together for those that have no result yet. Joint judges are left out: each has a share of a call.
    """
    nothing = ScorerEstimate(name=EVERY, version="")
    learned = {EVERY: _Learned(took=nothing, told=nothing)}
    judges = {
        entry.scorer.name: entry.scorer
        for entry in scorers.entries
        if isinstance(entry.scorer, ModelScorer)
        and isinstance(entry.definition, JudgeDefinition)
        and entry.definition.batch == "single"
    }
    rows = _last_results(tables, judges)
    starts = [row.trace_start for row in rows if row.trace_start]
    if not starts:
        return learned
    ids = {row.trace_id for row in rows if row.trace_id}
    found = gather(tables.spans.open().around(ids, (min(starts), max(starts))))
    for row in rows:
        pending, name = found.get(row.trace_id or ""), row.scorer or ""
        if pending is None or row.input_tokens is None or row.output_tokens is None:
            continue
        trace = assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))
        one = judges[name].estimate(record_of_trace(trace))
        for sums in (learned[EVERY], learned.setdefault(name, _Learned(took=nothing, told=nothing))):
            sums.took = _added(sums.took, row.calls or 0, row.input_tokens, row.output_tokens, row.cost_usd)
            sums.told = _added(sums.told, one.calls, one.input_tokens, one.output_tokens, one.cost_usd)
    return learned


def _last_results(tables: Tables, judges: Container[str]) -> list[Row]:
    """The last results of each judge for which a model was called."""
    book = tables.ledger.open()
    columns = [
        "seq",
        "scorer",
        "trace_id",
        "trace_start",
        "calls",
        "input_tokens",
        "output_tokens",
        "cost_usd",
    ]
    columns += ["day", "scope", "target_type", "target_id", "state"]
    where = f"seq > {book.seq - RECENT} and state = 'scored' and calls > 0"
    by_judge: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(from_arrow(book.table(where, columns)), key=lambda row: -row.seq):
        name = row.scorer or ""
        if name in judges and len(by_judge[name]) < SAMPLE:
            by_judge[name].append(row)
    return [row for rows in by_judge.values() for row in rows]


def _corrected(told: ScorerEstimate, learned: _Learned, price: Price | None) -> ScorerEstimate:
    """An estimate as what was taken lately corrects it. `price` is None also for several models."""
    if not told.calls:
        return told
    into = round((told.input_tokens or 0) * learned.factor("input_tokens"))
    out = round((told.output_tokens or 0) * learned.factor("output_tokens"))
    cost = None if told.cost_usd is None else told.cost_usd * learned.factor("cost_usd")
    if price is not None:
        cost = price.cost(into, out) * learned.discount(price)
    calls = round(told.calls * learned.factor("calls"))
    return replace(told, calls=calls, input_tokens=into, output_tokens=out, cost_usd=cost)
