"""Which trace, which of its spans, and which session gets which scorer, and why not."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluator.dataset.conditions import Answer, Condition, ConditionFailure, evaluate
from evaluator.dataset.records import Record, record_of_session, record_of_span, record_of_trace
from evaluator.guidelines.definitions import TargetKind
from evaluator.traces.columns import sessions_table, spans_table, traces_table
from evaluator.traces.trace import Session, Trace

if TYPE_CHECKING:
    import pyarrow as pa

FILTERED = "filtered"
SAMPLED_OUT = "sampled out"
NO_SPAN = "no span matches"
MOST_SPANS = 1_000
"""How many spans of one trace a scorer judges, in the order of time: a runaway agent must not cost a fortune."""
TOO_MANY_SPANS = f"more spans match than the first {MOST_SPANS:,}, which are judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """Whom a scorer looks at: the traces, or sessions, that its filter holds for, and this share of them.

    With the target `span`: those of their spans that `span_filter` holds for.
    """

    name: str
    filter: Condition | None = None
    sample_rate: float = 1.0
    target: TargetKind = "trace"
    span_filter: Condition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was decided for one trace: the records that scorers get of it, and for each of the others why it gets none.

    A reason is "filtered", "sampled out", "no span matches", or "filter failed: …" where the filter has no answer for
    the trace. A scorer that gets not all of the spans that match is among both. What several scorers get is one
    record.
    """

    trace_id: str
    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def work(self) -> list[tuple[str, Record]]:
        """Each scorer with each record that it gets, record by record: what is asked of one goes out together."""
        pairs = [(name, record) for name, records in self.records.items() for record in records]
        return sorted(pairs, key=lambda pair: -1 if pair[1].place is None else pair[1].place)

    @property
    def targets(self) -> set[str]:
        """The ids of all targets that some scorer gets."""
        return {record.target.target_id for records in self.records.values() for record in records}


def sample_position(trace_id: str) -> float:
    """Where a trace stands in [0, 1): the same for all scorers and on every run, evenly spread."""
    digest = hashlib.sha256(trace_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def select(traces: Sequence[Trace], rules: Sequence[SelectionRule]) -> list[Selection]:
    """One decision for each trace, in their order; rules for sessions have no part in it.

    A filter that gives null does not hold. A trace that a filter drops counts as filtered at any rate, so
    that what is sampled out is what a higher rate would let in.
    """
    rules = [rule for rule in rules if rule.target != "session"]
    verdicts = _verdicts([trace.trace_id for trace in traces], lambda: traces_table(traces), rules)
    getting = [[rule for rule in rules if of_trace[rule.name] is None] for of_trace in verdicts]
    matching = _matching(traces, getting)
    selections = []
    for trace, of_trace, gets, found in zip(traces, verdicts, getting, matching, strict=True):
        skipped = {name: reason for name, reason in of_trace.items() if reason is not None}
        records, said = _records(trace, gets, found)
        selections.append(Selection(trace_id=trace.trace_id, records=records, skipped=skipped | said))
    return selections


def select_sessions(sessions: Sequence[Session], rules: Sequence[SelectionRule]) -> list[Selection]:
    """One decision for each session, in their order, by the rules for sessions; its `trace_id` is the session's id."""
    rules = [rule for rule in rules if rule.target == "session"]
    verdicts = _verdicts(
        [session.session_id for session in sessions], lambda: sessions_table(sessions), rules
    )
    selections = []
    for session, of_session in zip(sessions, verdicts, strict=True):
        whole = [record_of_session(session)]
        records = {name: whole for name, reason in of_session.items() if reason is None}
        skipped = {name: reason for name, reason in of_session.items() if reason is not None}
        selections.append(Selection(trace_id=session.session_id, records=records, skipped=skipped))
    return selections


def _verdicts(
    ids: Sequence[str], columns: "Callable[[], pa.Table]", rules: Sequence[SelectionRule]
) -> list[dict[str, str | None]]:
    """For each target, why each rule's scorer does not get it, or None; `columns` are what the filters look at."""
    filters = list(dict.fromkeys(rule.filter for rule in rules if rule.filter is not None))
    answers = dict(zip(filters, evaluate(filters, columns()) if filters else [], strict=True))
    return [
        {
            rule.name: _verdict(rule, position, answers[rule.filter][row] if rule.filter else True)
            for rule in rules
        }
        for row, position in enumerate(map(sample_position, ids))
    ]


_Places = Sequence[int] | str
"""The places of the steps that a span filter holds for, or why it has no answer."""


def _records(
    trace: Trace, rules: Sequence[SelectionRule], matching: Mapping[Condition | None, _Places]
) -> tuple[dict[str, Sequence[Record]], dict[str, str]]:
    """The records that each of some rules gets of a trace, and what is to be said of those that get not all spans."""
    whole = [record_of_trace(trace)]
    of_spans: dict[int, Record] = {}
    records: dict[str, Sequence[Record]] = {}
    said: dict[str, str] = {}
    for rule in rules:
        if rule.target != "span":
            records[rule.name] = whole
            continue
        places = matching[rule.span_filter]
        if isinstance(places, str) or not places:
            said[rule.name] = places if isinstance(places, str) else NO_SPAN
            continue
        if len(places) > MOST_SPANS:
            said[rule.name] = TOO_MANY_SPANS
        for place in places[:MOST_SPANS]:
            of_spans[place] = of_spans.get(place) or record_of_span(trace, place)
        records[rule.name] = [of_spans[place] for place in places[:MOST_SPANS]]
    return records, said


def _matching(
    traces: Sequence[Trace], getting: Sequence[Sequence[SelectionRule]]
) -> list[dict[Condition | None, _Places]]:
    """For each trace, the places of the steps that the span filters of its rules hold for: one query for all."""
    asked = {rule.span_filter for rules in getting for rule in rules if rule.target == "span"}
    conditions = [condition for condition in asked if condition is not None]
    wanted = [any(rule.span_filter is not None for rule in rules) for rules in getting]
    steps = [
        step for trace, is_wanted in zip(traces, wanted, strict=True) if is_wanted for step in trace.steps
    ]
    answers: list[list[Answer]] = [[] for _ in conditions]
    if steps and conditions:
        columns = {column for condition in conditions for column in condition.columns}
        answers = evaluate(conditions, spans_table(steps, columns or {"span_id"}))
    matching: list[dict[Condition | None, _Places]] = []
    begin = 0
    for trace, is_wanted in zip(traces, wanted, strict=True):
        end = begin + len(trace.steps) * is_wanted
        of_trace = (_holding(column[begin:end]) for column in answers)
        matching.append({None: range(len(trace.steps)), **dict(zip(conditions, of_trace, strict=True))})
        begin = end
    return matching


def _holding(answers: Sequence[Answer]) -> _Places:
    """The places of what holds; where nothing does, the failure that there may be."""
    places = [place for place, answer in enumerate(answers) if answer is True]
    failure = next((answer for answer in answers if isinstance(answer, ConditionFailure)), None)
    return places if places or failure is None else f"span_filter failed: {failure.detail}"


def _verdict(rule: SelectionRule, position: float, answer: Answer) -> str | None:
    """Why the rule's scorer does not get the trace, or None."""
    if isinstance(answer, ConditionFailure):
        return f"filter failed: {answer.detail}"
    if not answer:
        return FILTERED
    return None if position < rule.sample_rate else SAMPLED_OUT
