"""Spans that come to traces which are decided: which of these are decided anew, and what ends the waits of the others."""

from collections.abc import Collection, Mapping, Set
from dataclasses import replace
from datetime import date

from evaluator.decisions import days_beside, has_grown, is_near, still_done_row
from evaluator.live.work import Work
from evaluator.tables.rows import Row, Unit, newest_of_each
from evaluator.traces.assembly import Pending, gather, join


def decided_anew(work: Work, late: Mapping[str, Pending], days: Set[date]) -> dict[str, tuple[int, Pending]]:
    """The decided traces to which spans came soon enough, whole, and as which revision they are decided anew."""
    decided, window = _decisions(work, late, days), work.parts.late_window
    soon = {
        trace_id: pending
        for trace_id, pending in late.items()
        if trace_id in decided and (at := decided[trace_id].at) and pending.first <= at + window
    }
    return {
        trace_id: (decided[trace_id].revision + 1, whole)
        for trace_id, whole in _whole(work, soon, decided).items()
        if has_grown(decided[trace_id], whole)
    }


def decided_before(work: Work, trace_ids: Collection[str]) -> tuple[set[str], list[Unit]]:
    """Which of some traces were ever decided, and what ends the waits for late spans of these."""
    decided = work.book.decided(trace_ids)
    newest = newest_of_each("TRACE", decided)
    waits = [wait for trace_id in newest if (wait := work.waiting.get(trace_id))]
    ended = [[still_done_row(decided.get(wait.key) or newest[wait.target_id], wait)] for wait in waits]
    return set(newest), ended


def _decisions(work: Work, trace_ids: Collection[str], days: Set[date]) -> dict[str, Row]:
    """The newest decision on each of some traces of which these days know: a newer one may lie a day further on."""
    while True:
        decided = newest_of_each("TRACE", work.book.decided(trace_ids, days))
        wider = days | days_beside(row.day for row in decided.values())
        if wider == days:
            return decided
        days = wider


def _whole(work: Work, parts: Mapping[str, Pending], decided: Mapping[str, Row]) -> dict[str, Pending]:
    """Some decided traces with all of their spans, found by time; when they arrived is told by the parts."""
    if not parts:
        return {}
    starts = [pending.earliest for pending in parts.values() if pending.earliest]
    starts += [start for trace_id in parts if (start := decided[trace_id].trace_start)]
    found = gather(work.spans.around(parts, (min(starts), max(starts)) if starts else None))
    whole = {}
    for trace_id, part in parts.items():
        joined = join(part, found[trace_id]) if trace_id in found else part
        start = decided[trace_id].trace_start
        near = tuple(span for span in joined.spans if is_near(span, start))
        whole[trace_id] = replace(joined, spans=near, first=part.first, last=part.last, commits=())
    return whole
