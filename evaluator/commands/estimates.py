"""What an evaluation would do and about what it would cost: `eval --dry-run`."""

import asyncio
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evaluator.chunk import Range
from evaluator.commands.evaluations import OfflineRequest, offline_parts
from evaluator.config import Config
from evaluator.dataset.records import record_of
from evaluator.feedback import Target
from evaluator.guidelines.groups import joint_groups
from evaluator.models.prices import Price, prices_of
from evaluator.offline import pending_work
from evaluator.score import Assignment
from evaluator.scorers.judge import RATIONALE_TOKENS, Expected, ModelScorer
from evaluator.scorers.scorer import Scorer
from evaluator.tables.rows import Row, from_arrow
from evaluator.traces.assembly import assemble, gather, has_ended_root
from evaluator.wiring import Scorers, Tables, build_tables

RECENT = 300
"""Commits of the ledger in which results are looked for that tell what judging really takes."""
SAMPLE = 25
"""Results of each judge that an estimate is held against."""
Payers = tuple[str, ...]
"""The judges that share a call, or one that has its own."""
EVERY: Payers = ()
NOTHING = Expected(model="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerEstimate:
    """What one scorer would take. Tokens and cost are None for code; cost also where no price is known.

    `cached` counts the records whose result the cache will have. Judges that ride in one call (`joint_with`) have each
    a part of what it takes. `guessed`: no result tells yet how long the model's replies are.
    """

    name: str
    version: str
    records: int = 0
    model: str | None = None
    joint_with: Payers = ()
    calls: int = 0
    cached: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    guessed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "records": self.records,
            "model": self.model,
            "joint_with": list(self.joint_with),
            "calls": self.calls,
            "cached": self.cached,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "guessed": self.guessed,
        }


@dataclass(slots=True, kw_only=True)
class Estimate:
    """What an evaluation would do. `superseded`: how many results that are there would be older ones then."""

    traces: int = 0
    reused: int = 0
    superseded: int = 0
    skipped: int = 0
    scorers: list[ScorerEstimate] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What to know of the figures."""
        if not any(one.guessed for one in self.scorers):
            return []
        return [
            f"output tokens are a guess, {RATIONALE_TOKENS} for each rationale, until there are results to go by: "
            "a model that reasons takes more"
        ]

    def to_json(self) -> dict[str, Any]:
        judged = [one for one in self.scorers if one.model is not None]
        costs = [one.cost_usd for one in judged if one.calls]
        known = [cost for cost in costs if cost is not None]
        return {
            "traces": self.traces,
            "reused": self.reused,
            "superseded": self.superseded,
            "skipped": self.skipped,
            "calls": sum(one.calls for one in judged),
            "cached": sum(one.cached for one in judged),
            "input_tokens": sum(one.input_tokens or 0 for one in judged),
            "output_tokens": sum(one.output_tokens or 0 for one in judged),
            "cost_usd": sum(known) if len(known) == len(costs) else None,
            "scorers": {one.name: one.to_json() for one in self.scorers},
            "notes": self.notes,
        }


async def estimate(config: Config, request: OfflineRequest) -> Estimate:
    """What an evaluation would score, and about what it would cost; nothing is called and nothing written."""
    tables = build_tables(config)
    scorers, parts = await asyncio.to_thread(offline_parts, config, tables, request, keys_needed=False)
    count = _Count(scorers, _payers(scorers, config.judge.model))
    total = Estimate()
    within = Range(start=request.start, end=request.end, limit=request.limit)
    try:
        learned = await asyncio.to_thread(_learned, tables, scorers, count.payers)
        async for evaluation, assignments in pending_work(parts, within, "dry-run"):
            summary = evaluation.summary
            total.traces, total.reused = summary.traces, summary.reused
            total.superseded, total.skipped = evaluation.superseding, summary.skipped.total()
            count.add(assignments)
    finally:
        await scorers.close()
    prices = prices_of(config)
    for payers, taken in count.taken.items():
        told = learned.get(payers, learned[EVERY])
        count.share_out(
            payers, _corrected(taken, told, prices.price_of(taken.model)), guessed=not told.took.calls
        )
    total.scorers = list(count.told.values())
    return total


def _payers(scorers: Scorers, model: str) -> dict[str, Payers]:
    """Who shares a call with each scorer, among those that are asked for."""
    payers: dict[str, Payers] = {name: (name,) for name in (scorer.name for scorer in scorers.scorers)}
    for group in joint_groups((entry.definition for entry in scorers.entries), model).values():
        names = tuple(member.name for member in group)
        payers |= dict.fromkeys(names, names)
    return payers


class _Count:
    """What is to be scored: `told` by scorer, and `taken` by those who share a call."""

    def __init__(self, scorers: Scorers, payers: Mapping[str, Payers]) -> None:
        self.payers = payers
        self.taken: dict[Payers, Expected] = {}
        self.told = {
            scorer.name: ScorerEstimate(
                name=scorer.name,
                version=scorer.version,
                joint_with=tuple(name for name in payers[scorer.name] if name != scorer.name),
            )
            for scorer in scorers.scorers
        }

    def add(self, assignments: Sequence[Assignment]) -> None:
        """Count some work; a call that several share is counted with the first of them."""
        asked: dict[tuple[Payers, Target], tuple[Expected, bool]] = {}
        for assignment in assignments:
            scorer, record = assignment.scorer, assignment.record
            told = replace(self.told[scorer.name], records=self.told[scorer.name].records + 1)
            if isinstance(scorer, ModelScorer):
                payers = self.payers[scorer.name]
                if (payers, record.target) not in asked:
                    one = scorer.estimate(record)
                    cached = one.calls > 0 and scorer.known(record)
                    asked[payers, record.target] = one, cached
                    if not cached:
                        self.taken[payers] = _sum(self.taken.get(payers, Expected(model=one.model)), one)
                one, cached = asked[payers, record.target]
                told = replace(told, model=one.model, cached=told.cached + cached)
            self.told[scorer.name] = told

    def share_out(self, payers: Payers, taken: Expected, *, guessed: bool) -> None:
        """Divide what some judges take together among them, by their records, so that it adds up."""
        if not taken.calls:
            return
        left = sum(self.told[name].records for name in payers)
        for name in payers:
            told = self.told[name]
            share = told.records / left if left else 0.0
            own = Expected(
                model=taken.model,
                calls=round(taken.calls * share),
                input_tokens=round(taken.input_tokens * share),
                output_tokens=round(taken.output_tokens * share),
                cost_usd=None if taken.cost_usd is None else taken.cost_usd * share,
            )
            self.told[name] = replace(
                told,
                calls=own.calls,
                input_tokens=own.input_tokens,
                output_tokens=own.output_tokens,
                cost_usd=own.cost_usd,
                guessed=guessed,
            )
            taken, left = _sum(taken, own, sign=-1), left - told.records


def _sum(one: Expected, other: Expected, sign: int = 1) -> Expected:
    """Both together, or the first without the other."""
    unknown = one.cost_usd is None or other.cost_usd is None
    return Expected(
        model=one.model,
        calls=one.calls + sign * other.calls,
        input_tokens=one.input_tokens + sign * other.input_tokens,
        output_tokens=one.output_tokens + sign * other.output_tokens,
        cost_usd=None if unknown else (one.cost_usd or 0.0) + sign * (other.cost_usd or 0.0),
    )


# --- what was taken lately, against what would have been estimated for it


@dataclass(slots=True)
class _Learned:
    """Sums over some results: what they took, and the estimates for them."""

    took: Expected = NOTHING
    told: Expected = NOTHING

    def factor(self, name: str) -> float:
        took, told = getattr(self.took, name), getattr(self.told, name)
        return took / told if took and told else 1.0

    def discount(self, price: Price) -> float:
        """What was paid against what the tokens cost: input that the provider had cached costs less."""
        full = price.cost(self.took.input_tokens, self.took.output_tokens)
        return self.took.cost_usd / full if self.took.cost_usd and full else 1.0


def _learned(tables: Tables, scorers: Scorers, payers: Mapping[str, Payers]) -> Mapping[Payers, _Learned]:
    """What the last results say of estimates: the model's own tokenizer, the length of its replies, its cached input.

    By those who share a call, and of all together for those that have no result yet.
    """
    learned: dict[Payers, _Learned] = defaultdict(_Learned)
    learned[EVERY] = _Learned()
    judges: dict[str, Scorer] = {
        scorer.name: scorer for scorer in scorers.scorers if isinstance(scorer, ModelScorer)
    }
    rows = _last_results(tables, judges)
    starts = [row.trace_start for row in rows if row.trace_start]
    if not starts:
        return learned
    ids = {row.trace_id for row in rows if row.trace_id}
    found = gather(tables.spans.open().around(ids, (min(starts), max(starts))))
    asked: set[tuple[Payers, Target]] = set()
    for row in rows:
        pending, scorer = found.get(row.trace_id or ""), judges[row.scorer or ""]
        together = payers[scorer.name]
        if pending is None or row.input_tokens is None or row.output_tokens is None:
            continue
        if len(together) > 1 and row.version != scorer.version:
            continue  # That was another group.
        took = Expected(
            model="",
            calls=row.calls or 0,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            cost_usd=row.cost_usd,
        )
        told = NOTHING
        if (together, row.target) not in asked or len(together) == 1:
            trace = assemble(pending.trace_id, pending.spans, incomplete=not has_ended_root(pending.spans))
            record = record_of(trace, row.target)
            if record is None:
                continue  # The span is gone.
            assert isinstance(scorer, ModelScorer)
            told = scorer.estimate(record)
        asked.add((together, row.target))
        for sums in (learned[EVERY], learned[together]):
            sums.took, sums.told = _sum(sums.took, took), _sum(sums.told, told)
    return learned


def _last_results(tables: Tables, judges: Container[str]) -> list[Row]:
    """The last results of each judge for which a model was called."""
    book = tables.ledger.open()
    columns = [
        "seq",
        "scorer",
        "version",
        "trace_id",
        "span_id",
        "trace_start",
        "calls",
        "input_tokens",
        "output_tokens",
        "cost_usd",
    ]
    columns += ["day", "scope", "target_type", "target_id", "state"]
    where = f"seq > {book.seq - RECENT} and state = 'scored' and input_tokens > 0"
    by_judge: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(from_arrow(book.table(where, columns)), key=lambda row: -row.seq):
        name = row.scorer or ""
        if name in judges and len(by_judge[name]) < SAMPLE:
            by_judge[name].append(row)
    return [row for rows in by_judge.values() for row in rows]


def _corrected(taken: Expected, learned: _Learned, price: Price | None) -> Expected:
    """An estimate as what was taken lately corrects it. `price` is None also for several models."""
    into = round(taken.input_tokens * learned.factor("input_tokens"))
    out = round(taken.output_tokens * learned.factor("output_tokens"))
    cost = None if taken.cost_usd is None else taken.cost_usd * learned.factor("cost_usd")
    if price is not None:
        cost = price.cost(into, out) * learned.discount(price)
    calls = round(taken.calls * learned.factor("calls"))
    return replace(taken, calls=calls, input_tokens=into, output_tokens=out, cost_usd=cost)
