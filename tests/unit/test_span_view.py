"""What a judge of spans gets to see: the span first, then its trace as its context."""

from dataclasses import replace

from evaluator.dataset.records import Record, record_of, record_of_span, record_of_trace
from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.scorers.prompts import Prompts, Question
from evaluator.scorers.view import AROUND, view_of
from evaluator.traces.trace import Document, Message, Span, Step, Trace
from tests.a_trace import a_trace
from tests.integration.test_judge import a_judge

KEY = b"key"


def a_step(number: int, span_type: str = "TOOL", **parts: object) -> Step:
    span = Span(trace_id="a" * 32, span_id=f"{number:016x}", name=f"step{number}")
    return Step(span=span, span_type=span_type, **parts)  # type: ignore[arg-type]


TOOL = a_step(1, tool_name="sql", input='{"q": 1}', output="12")
SEARCH = a_step(2, "RETRIEVER", input="tickets", documents=(Document(content="one"), Document(content="two")))
ASKED = a_step(
    3, "LLM", messages=(Message(role="system", content="Be brief."),), request="Hi?", response="Twelve."
)
CALLS = a_step(4, "LLM", request="Hi?", output="raw", tool_calls=({"name": "sql", "arguments": "{}"},))
EMPTY = a_step(5, "CHAIN")
TRACE = a_trace(request="Hi?", response="There are twelve.", steps=(TOOL, SEARCH, ASKED, CALLS, EMPTY))


def blocks(record: Record, **options: object) -> list[tuple[str, str]]:
    return [(block.name, block.text) for block in view_of(record, **options).blocks]  # type: ignore[arg-type]


def test_a_span_is_what_went_in_and_what_came_out() -> None:
    told = [
        (record.inputs, record.outputs) for record in (record_of_span(TRACE, place) for place in range(5))
    ]

    assert told == [
        ('{"q": 1}', "12"),
        ("tickets", "one\n\ntwo"),
        ("Hi?", "Twelve."),
        ("Hi?", "raw"),
        (None, None),
    ]


def test_the_span_comes_first_and_an_index_of_its_trace_after_it() -> None:
    assert blocks(record_of_span(TRACE, 0), trace_view="index")[:5] == [
        ("span", "1. TOOL sql, in 8 characters, out 2 characters"),
        ("span: input", '{"q": 1}'),
        ("span: output", "12"),
        ("trace: request", "Hi?"),
        ("trace: response", "There are twelve."),
    ]
    [*_, (name, text)] = blocks(record_of_span(TRACE, 0), trace_view="index")
    assert name == "trace: index of all steps"
    assert text.splitlines()[0] == "1. TOOL sql, in 8 characters, out 2 characters"
    assert len(text.splitlines()) == 5


def test_a_model_call_is_shown_with_its_conversation_and_its_tool_calls() -> None:
    names = [name for name, _ in blocks(record_of_span(TRACE, 2), trace_view="answer")]
    calls = dict(blocks(record_of_span(TRACE, 3), trace_view="answer"))

    assert names == ["span", "span: input", "span: output", "span: system message", "trace: response"]
    assert calls["span: tool call"] == "sql {}"


def test_the_whole_trace_is_shown_where_that_is_asked_for() -> None:
    names = [name for name, _ in blocks(record_of_span(TRACE, 0), trace_view="full")]

    assert "trace: step 2: document" in names
    assert not [name for name in names if name.startswith("trace: step 1")]


def test_instructions_that_name_a_part_get_only_that_of_the_span() -> None:
    record = record_of_span(TRACE, 1)

    assert blocks(record, parts=frozenset({"outputs"})) == [("span: output", "one\n\ntwo")]


def test_a_span_that_holds_nothing_gives_nothing_to_judge() -> None:
    assert blocks(record_of_span(TRACE, 4)) == []


def test_a_runaway_trace_is_shown_around_the_span() -> None:
    trace = a_trace(steps=tuple(a_step(number, input=f"in {number}") for number in range(1, 1_001)))

    index = dict(blocks(record_of_span(trace, 500), trace_view="index"))[
        "trace: index of the steps around the span"
    ]
    full = dict(blocks(record_of_span(trace, 500), trace_view="full"))

    lines = index.splitlines()
    assert (lines[0], lines[-1]) == ("(400 earlier steps)", "(399 later steps)")
    assert len(lines) == 2 * AROUND + 3
    assert lines[1].startswith("401. TOOL step401")
    assert full["trace: other steps"] == "799 steps further from the span are not shown"


def test_a_view_that_does_not_fit_keeps_the_span_and_cuts_its_context() -> None:
    steps = (TOOL, *(a_step(number, input="x" * 3_000) for number in range(10, 40)))

    view = view_of(record_of_span(a_trace(steps=steps), 0), trace_view="full", characters=8_000)

    assert [block.name for block in view.blocks][:3] == ["span", "span: input", "span: output"]
    assert view.blocks[-1].name == "trace: index of all steps"
    assert view.left_out_characters > 0


def test_a_target_is_found_again_in_its_trace_and_a_span_that_is_gone_is_not() -> None:
    record = record_of_span(TRACE, 1)
    whole = record_of_trace(TRACE)

    assert record_of(TRACE, record.target) == record
    assert record_of(TRACE, whole.target) == whole
    assert record_of(replace(TRACE, steps=(TOOL,)), record.target) is None


def test_the_prompt_says_which_step_is_judged() -> None:
    prompts = Prompts()
    record = record_of_span(TRACE, 0)
    material = prompts.material(KEY, view_of(record, trace_view="index"), subject=record.subject)

    asked = prompts.task(material.code, Question(guidelines=("Use an index.",), target="span"))
    free = prompts.task(
        material.code, Question(instructions="Is {{ outputs }} right for {{ inputs }}?", target="span")
    )
    joint = prompts.joint_task(material.code, {"a": Question(guidelines=("Use an index.",), target="span")})

    assert 'the material named "span"' in material.text
    assert 'Does the step "span" in the material' in asked
    assert 'Is the material "span: output" right for the material "span: input"?' in free
    assert 'Does the step "span" in the material follow this guideline?' in joint
    assert "span" not in prompts.task(material.code, Question(guidelines=("Be brief.",)))


def test_a_judge_of_spans_is_another_version_than_one_of_traces() -> None:
    definition = JudgeDefinition(name="a", guidelines=("Be brief.",), trace_view="index")
    of_spans = replace(definition, target="span", span_filter="span_type = 'TOOL'")

    assert a_judge(definition).version != a_judge(of_spans).version
    assert a_judge(of_spans).version == a_judge(replace(of_spans, span_filter="name = 'x'")).version


def test_a_trace_is_whole_without_any_span() -> None:
    trace: Trace = a_trace()

    assert record_of_trace(trace).step is None
    assert record_of_trace(trace).subject == "trace"
