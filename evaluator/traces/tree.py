"""How the spans of a trace hang together: their parents, their order, what lies within what."""

from collections.abc import Mapping, Sequence

from evaluator.traces.trace import Span, Step

Parents = Mapping[str, str]
"""The parent of each span that has one in the trace, by span id; never a cycle."""


def parents_of(spans: Sequence[Span]) -> Parents:
    """Cycles are cut above their earliest span, which becomes a top of the trace."""
    position = {span.span_id: index for index, span in enumerate(spans)}
    parents = {
        span.span_id: span.parent_span_id
        for span in spans
        if span.parent_span_id in position and span.parent_span_id != span.span_id
    }
    safe: set[str] = set()
    for node in position:
        path: list[str] = []
        on_path: set[str] = set()
        while node in parents and node not in safe and node not in on_path:
            path.append(node)
            on_path.add(node)
            node = parents[node]
        if node in on_path:
            del parents[min(path[path.index(node) :], key=position.__getitem__)]
        safe |= on_path
    return parents


def in_order(spans: Sequence[Span], parents: Parents) -> list[Span]:
    """By time, a parent before the children that began with it."""
    depths: dict[str, int] = {}
    for span in spans:
        path: list[str] = []
        node = span.span_id
        while node not in depths and node in parents:
            path.append(node)
            node = parents[node]
        depth = depths.setdefault(node, 0)
        depths.update((each, depth + above) for above, each in enumerate(reversed(path), 1))

    def key(span: Span) -> tuple[bool, int, int, str]:
        timeless, moment, span_id = by_time(span)
        return (timeless, moment, depths[span_id], span_id)

    return sorted(spans, key=key)


def innermost(steps: Sequence[Step], parents: Parents) -> list[Step]:
    """The steps that have none of the others below them."""
    above: set[str] = set()
    for step in steps:
        node = parents.get(step.span.span_id)
        while node is not None and node not in above:
            above.add(node)
            node = parents.get(node)
    return [step for step in steps if step.span.span_id not in above]


def outermost(steps: Sequence[Step], parents: Parents) -> list[Step]:
    """The steps that have none of the others above them."""
    within = {step.span.span_id: True for step in steps}  # whether a span is one of them, or below one
    found = []
    for step in steps:
        path = []
        node = parents.get(step.span.span_id)
        while node is not None and node not in within:
            path.append(node)
            node = parents.get(node)
        inside = node is not None and within[node]
        within.update(dict.fromkeys(path, inside))
        if not inside:
            found.append(step)
    return found


def by_time(span: Span) -> tuple[bool, int, str]:
    """By the start, or the end where there is no start; spans without any time come last."""
    moment = span.start_time_unix_nano or span.end_time_unix_nano
    return (moment is None, moment or 0, span.span_id)
