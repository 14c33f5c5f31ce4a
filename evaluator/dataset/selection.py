"""Which trace gets which scorer, and why not."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluator.dataset.conditions import Answer, Condition, ConditionFailure, evaluate
from evaluator.traces.columns import traces_table
from evaluator.traces.trace import Trace

FILTERED = "filtered"
SAMPLED_OUT = "sampled out"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """Whom a scorer looks at: the traces that its filter holds for, and this share of them."""

    name: str
    filter: Condition | None = None
    sample_rate: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was decided for one trace: the scorers that get it, and for each of the others why it does not.

    A reason is "filtered", "sampled out", or "filter failed: …" where the filter has no answer for the trace.
    """

    trace_id: str
    chosen: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def sample_position(trace_id: str) -> float:
    """Where a trace stands in [0, 1): the same for all scorers and on every run, evenly spread."""
    digest = hashlib.sha256(trace_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def select(traces: Sequence[Trace], rules: Sequence[SelectionRule]) -> list[Selection]:
    """One decision for each trace, in their order.

    A filter that gives null does not hold. A trace that a filter drops counts as filtered at any rate, so
    that what is sampled out is what a higher rate would let in.
    """
    filters = list(dict.fromkeys(rule.filter for rule in rules if rule.filter is not None))
    answers = dict(zip(filters, evaluate(filters, traces_table(traces)) if filters else [], strict=True))
    selections = []
    for row, trace in enumerate(traces):
        position = sample_position(trace.trace_id)
        verdicts = {
            rule.name: _verdict(rule, position, answers[rule.filter][row] if rule.filter else True)
            for rule in rules
        }
        selections.append(
            Selection(
                trace_id=trace.trace_id,
                chosen=tuple(name for name, reason in verdicts.items() if reason is None),
                skipped={name: reason for name, reason in verdicts.items() if reason is not None},
            )
        )
    return selections


def _verdict(rule: SelectionRule, position: float, answer: Answer) -> str | None:
    """Why the rule's scorer does not get the trace, or None."""
    if isinstance(answer, ConditionFailure):
        return f"filter failed: {answer.detail}"
    if not answer:
        return FILTERED
    return None if position < rule.sample_rate else SAMPLED_OUT
