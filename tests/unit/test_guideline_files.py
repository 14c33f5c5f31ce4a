"""Guideline files: what they give, and every mistake they can hold."""

from datetime import timedelta
from pathlib import Path

import pytest

from evaluator.commands.check import check_configuration
from evaluator.config import Config, RedactionPattern
from evaluator.errors import MistakesError
from evaluator.guidelines.definitions import (
    BuiltinDefinition,
    Categories,
    Example,
    JudgeDefinition,
    NumberRange,
    PythonDefinition,
    RegexDefinition,
    SqlDefinition,
    YesNo,
)
from evaluator.guidelines.entries import VARIABLES
from evaluator.guidelines.files import configured_guidelines, load_guidelines
from evaluator.scorers.prompts import Prompts


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guidelines").mkdir()
    return tmp_path


def write(text: str, name: str = "a.yaml") -> None:
    Path("guidelines", name).write_text(text)


def mistakes(**options: object) -> list[str]:
    with pytest.raises(MistakesError) as caught:
        load_guidelines(Path("guidelines").absolute(), home=Path.cwd(), **options)  # type: ignore[arg-type]
    return [str(mistake) for mistake in caught.value.mistakes]


def test_a_file_gives_its_judges_and_scorers_in_order() -> None:
    Path("my_team.py").write_text("def follows_schema(outputs): return True\n")
    write(
        """\
judges:
  - name: actionable_insights
    guidelines: Recommend something.
    filter: "service_name = 'support'"
    sample_rate: 0.25
    model: anthropic/claude-sonnet-4-5
    examples: [{inputs: a, outputs: {b: 1}, expect: pass}]
  - name: tone
    instructions: "How does {{ outputs }} treat the user, given {{ inputs }}?"
    values: [warm, neutral, cold]
    pass_if: "value != 'cold'"
  - {name: score, instructions: 'How good?', values: {min: 1, max: 5}, pass_if: value > 3}
  - {name: off, guidelines: [One., Two.], enabled: false, target: session}
scorers:
  - {name: fast, sql: duration_ms < 10000}
  - {name: number, regex: '\\d', on: request}
  - {name: schema, python: my_team:follows_schema}
  - {name: no_pii, builtin: pii, options: {kinds: [email]}}
"""
    )

    guidelines = load_guidelines(Path("guidelines"), home=Path.cwd(), python_modules=["my_*"])

    place = {"path": "guidelines/a.yaml"}
    assert guidelines.definitions == (
        JudgeDefinition(
            name="actionable_insights",
            guidelines=("Recommend something.",),
            filter="service_name = 'support'",
            sample_rate=0.25,
            model="anthropic/claude-sonnet-4-5",
            examples=(Example(inputs="a", outputs={"b": 1}, expect="pass"),),
            values=YesNo(),
            line=2,
            **place,
        ),
        JudgeDefinition(
            name="tone",
            instructions="How does {{ outputs }} treat the user, given {{ inputs }}?",
            values=Categories(values=("warm", "neutral", "cold")),
            pass_if="value != 'cold'",
            line=8,
            **place,
        ),
        JudgeDefinition(
            name="score",
            instructions="How good?",
            values=NumberRange(min=1, max=5),
            pass_if="value > 3",
            line=12,
            **place,
        ),
        SqlDefinition(name="fast", sql="duration_ms < 10000", line=15, **place),
        RegexDefinition(name="number", regex=r"\d", on="request", line=16, **place),
        PythonDefinition(name="schema", python="my_team:follows_schema", line=17, **place),
        BuiltinDefinition(name="no_pii", builtin="pii", options={"kinds": ["email"]}, line=18, **place),
    )


def test_every_mistake_of_every_file_is_told_at_once() -> None:
    write("judges:\n  - name: tone\n    guidelines: Be kind.\n    sampel_rate: 0.5\n", "support.yaml")
    write("scorers:\n  - name: tone\n    sql: durations < 1\n  - name: x\n    sql: [\n", "broken.yml")
    write("scorers:\n  - {name: tone, sql: durations_ms < 1}\n", "z.yaml")
    write("not read", "notes.txt")

    assert mistakes() == [
        "guidelines/broken.yml:6: is not YAML: expected the node content, but found '<stream end>'",
        'guidelines/support.yaml:4: judge "tone": unknown field "sampel_rate" (did you mean "sample_rate"?)',
        'guidelines/z.yaml:2: scorer "tone": sql: unknown column "durations_ms" (did you mean "duration_ms"?)',
        'guidelines/z.yaml:2: scorer "tone": the name is taken already by guidelines/support.yaml:2',
    ]


JUDGE = "judges:\n  - name: tone\n    "
SCORER = "scorers:\n  - name: quick\n    "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a", "guidelines/a.yaml:1: is not a mapping with judges: and scorers:"),
        ("judge: []", '1: unknown key "judge" (did you mean "judges"?)'),
        ("extra: []", '1: unknown key "extra"; there are judges and scorers'),
        ("judges: {a: 1}", '1: "judges" should be a list'),
        ("judges: [7]", "1: judge 1: should be a mapping with a name"),
        ("judges:\n  - guidelines: Fine.", '2: judge 1: "name" is missing'),
        (
            "judges:\n  - {name: a/b, guidelines: Fine.}",
            "should have no / and no space at its ends, not 'a/b'",
        ),
        (
            "judges:\n  - {name: 7, guidelines: Fine.}",
            '2: judge "7": "name": should be a valid string, not 7',
        ),
        ("judges:\n  - name: tone\n", '2: judge "tone": has neither guidelines nor instructions'),
        (
            JUDGE + "guidelines: a\n    instructions: b",
            '4: judge "tone": has both guidelines and instructions',
        ),
        (JUDGE + "guidelines: []", '3: judge "tone": "guidelines" is empty'),
        (JUDGE + "guidelines: [a, ' ']", '3: judge "tone": "guidelines.1": should not be blank'),
        (JUDGE + "guidelines: a\n    values: [x, y]", '4: judge "tone": values go with instructions'),
        (
            JUDGE + "guidelines: a\n    sample_rate: 2",
            '"sample_rate": should be less than or equal to 1, not 2',
        ),
        (JUDGE + "guidelines: a\n    sample_rate: '1'", "\"sample_rate\": should be a valid number, not '1'"),
        (JUDGE + "guidelines: a\n    enabled: 3", '"enabled": should be a valid boolean, not 3'),
        (JUDGE + "guidelines: a\n    since: 7", '"since": 7 is not a duration (write 60s, 15m, 1h or 7d)'),
        (
            JUDGE + "guidelines: a\n    target: session\n    since: 7d",
            '5: judge "tone": since goes with target: trace or span',
        ),
        (
            JUDGE + "guidelines: a\n    batch: joint\n    models: [x/a, x/b]",
            '5: judge "tone": models goes with batch: single, for a joint call has one model',
        ),
        (
            JUDGE + "guidelines: a\n    batch: joint\n    escalate_to: x/a",
            "escalate_to goes with batch: single",
        ),
        (
            JUDGE + "guidelines: a\n    model: x/a\n    models: [x/a, x/b]",
            '4: judge "tone": has both model and models; it has to have one of them',
        ),
        (
            JUDGE + "guidelines: a\n    models: [x/a, gpt-5-mini]",
            'judge "tone": model "gpt-5-mini" names no provider: write provider/name, such as openai/gpt-5-mini',
        ),
        (JUDGE + "guidelines: a\n    models: [x/a]", '"models": List should have at least 2 items'),
        (JUDGE + "guidelines: a\n    models: [x/a, x/a]", '4: judge "tone": models: "x/a" stands twice'),
        (
            JUDGE + "guidelines: a\n    decide: majority",
            '4: judge "tone": decide goes with models: [a, b, c]',
        ),
        (
            JUDGE + "guidelines: a\n    models: [x/a, x/b]\n    decide: most",
            "\"decide\" is 'most', not one of majority, unanimous, any_fail",
        ),
        (
            JUDGE + "instructions: a\n    values: [x, y]\n    models: [x/a, x/b]\n    decide: any_fail",
            '6: judge "tone": decide: any_fail needs pass_if, for no value of these fails by itself',
        ),
        (
            JUDGE + "guidelines: a\n    model: x/a\n    escalate_to: x/a",
            'escalate_to: "x/a" is asked already; name a stronger model',
        ),
        (
            JUDGE + "instructions: a\n    values: [good, Unsure]\n    escalate_to: x/a",
            'values: "unsure" is what a judge with escalate_to says to be relieved',
        ),
        (JUDGE + "guidelines: a\n    trace_view: ful", '(did you mean "full"?)'),
        (
            JUDGE + "instructions: '{{ outputs }} of {{ inputs }}'\n    trace_view: index",
            "the instructions name only {{ inputs }} and {{ outputs }}",
        ),
        (
            JUDGE + "guidelines: a\n    target: traces",
            "is 'traces', not one of trace, session, span (did you mean \"trace\"?)",
        ),
        (
            JUDGE + "guidelines: a\n    span_filter: kind = 'x'",
            '4: judge "tone": span_filter goes with target: span',
        ),
        (JUDGE + "guidelines: a\n    target: span\n    span_filter: kinds = 'x'", 'did you mean "kind"'),
        (
            JUDGE + "guidelines: a\n    target: span\n    span_filter: read_csv('x') = 1",
            'span_filter: function "read_csv" is not',
        ),
        (
            "scorers:\n  - {name: a, builtin: repeated_tool_calls, target: span}\n",
            'scorer "a": builtin repeated_tool_calls looks at a whole trace',
        ),
        (
            "scorers:\n  - {name: a, sql: span_count > 1, target: span}\n",
            'scorer "a": sql: unknown column "span_count"',
        ),
        (
            "judges:\n  - {name: a, guidelines: b, batch: joint, since: 7d}\n"
            "  - {name: c, guidelines: d, batch: joint}\n",
            'judge "c": since is not set, but "a"',
        ),
        (
            JUDGE + "guidelines: a\n    filter: read_csv('x')",
            '4: judge "tone": filter: function "read_csv" is not',
        ),
        (
            JUDGE + "guidelines: a\n    filter: 7",
            '4: judge "tone": "filter": should be a valid string, not 7',
        ),
        (JUDGE + "guidelines: a\n    pass_if: value > 3", "pass_if: "),
        (JUDGE + "guidelines: a\n    pass_if: valu = 'yes'", 'unknown column "valu" (did you mean "value"?)'),
        (JUDGE + "instructions: '{{ output }}'", 'unknown variable {{ output }} (did you mean "outputs"?)'),
        (
            JUDGE + "instructions: '{{ user }}'",
            "(there are: inputs, outputs, expectations, trace, conversation)",
        ),
        (JUDGE + "instructions: '{% if %}'", "instructions: Expected an expression"),
        (JUDGE + "instructions: a\n    values: [one]", '"values": List should have at least 2 items'),
        (JUDGE + "instructions: a\n    values: [one, one]", 'values: "one" stands twice'),
        (JUDGE + "instructions: a\n    values: [1, 2]", '"values.0": should be a valid string, not 1'),
        (
            JUDGE + "instructions: a\n    values: 3",
            '"values": should be a list of words, such as [warm, neutral, cold]',
        ),
        (JUDGE + "instructions: a\n    values: {min: 5, max: 1}", "values: min has to be less than max"),
        (
            JUDGE + "instructions: a\n    values: {min: 5, mox: 9}",
            'unknown field "values.mox" (did you mean "max"?)',
        ),
        (
            JUDGE + "instructions: a\n    values: [warm, cold]\n    pass_if: value::int > 3",
            'pass_if: says nothing of "warm", which is one of the values: a value could not be converted',
        ),
        (
            JUDGE
            + "instructions: a\n    values: {min: 0, max: 4}\n    pass_if: ((value - 2)::varchar || 'x')::int > 1",
            "pass_if: says nothing of 0, which is one of the values",
        ),
        (
            JUDGE + "instructions: a\n    values: {min: 0, max: 5}\n    pass_if: value = 'x'",
            "pass_if: Could not convert",
        ),
        (
            JUDGE + "guidelines: a\n    examples: [{inputs: a, outputs: b, expect: fial}]",
            '(did you mean "fail"?)',
        ),
        (
            JUDGE + "guidelines: a\n    examples: [{inputs: a, output: b, expect: fail}]",
            '"examples.0.outputs" is missing',
        ),
        (JUDGE + "guidelines: a\n    model: ''", '"model" is empty'),
        ("scorers:\n  - name: quick\n", '2: scorer "quick": has none of sql, regex, python, builtin'),
        (SCORER + "regexp: a", 'it has to be one of them (did you mean "regex"?)'),
        (SCORER + "sql: 'true'\n    regex: a", "has sql and regex; it has to be one of them"),
        (SCORER + "sql: 'true'\n    guidelines: a", '4: scorer "quick": unknown field "guidelines"'),
        (SCORER + "sql: '1'", "sql: gives INTEGER, not true or false"),
        (SCORER + "regex: '(?=a)'", "regex: RE2 does not take it: invalid perl operator: (?="),
        (SCORER + "regex: a\n    on: respons", 'not one of request, response (did you mean "response"?)'),
        (SCORER + "builtin: pi", '(did you mean "pii"?)'),
        (
            SCORER + "builtin: latency\n    options: {atmost: 3s}",
            'unknown option "atmost" of latency (did you mean "at_most"?)',
        ),
        (
            SCORER + "builtin: latency\n    options: {at_most: 3}",
            'option "at_most" of latency: 3 is not a duration',
        ),
        (SCORER + "builtin: pii\n    options: {kinds: [emails]}", 'option "kinds.0" of pii'),
        (SCORER + "python: my.team", 'python: "my.team" is not module:name'),
        (SCORER + "python: 'os:getcwd'", 'python: module "os" is not among python_modules'),
        ("judges:\n  - &a [*a]\n", "2: refers to itself"),
        ("judges:\n  - name: a\n    name: b\n", '3: "name" stands twice'),
        ("judges: " + "[" * 60 + "]" * 60, "is nested deeper than 50 levels"),
        (
            "a: &a [1,2,3,4,5,6,7,8,9]\n"
            + "".join(
                f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefg", "bcdefgh", strict=True)
            ),
            "holds more than 50,000 values",
        ),
        ("# " + "x" * 1_000_001, "is larger than 1,000,000 bytes"),
        ("judges: [\x00]", "is not YAML"),
    ],
)
def test_a_mistake_names_its_place_its_cause_and_the_way_out(text: str, expected: str) -> None:
    write(text)

    found = mistakes()

    assert any(expected in mistake for mistake in found), found
    assert all(mistake.startswith("guidelines/a.yaml:") for mistake in found)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("team.rules:follows", None),
        ("team.rules:imported", None),
        ("team.rules:made", None),
        ("team.rules:guarded", None),
        ("team.rules:follow", 'module "team.rules" defines no "follow" (did you mean "follows"?)'),
        ("team.rules:local", 'defines no "local"'),
        ("team.rule:follows", 'module "team.rule" is neither in'),
        ("team.broken:follows", 'module "team.broken" is not Python (line 1): '),
        ("team.wild:anything", None),
        ("space.deep.rules:follows", None),
        ("other:follows", 'module "other" is not among python_modules'),
    ],
)
def test_a_python_scorer_is_found_without_running_anything(
    target: str, expected: str | None, here: Path
) -> None:
    (here / "team").mkdir()
    (here / "space" / "deep").mkdir(parents=True)
    explode = "raise SystemExit('this must not run')\n"
    (here / "team" / "__init__.py").write_text(explode)
    (here / "team" / "rules.py").write_text(
        explode + "from x import imported\nmade: int = 3\ndef follows():\n    local = 3\n"
        "try:\n    def guarded(): pass\nexcept ImportError:\n    pass\n"
    )
    (here / "team" / "broken.py").write_text("def follows(:\n")
    (here / "team" / "wild.py").write_text(explode + "from x import *\n")
    (here / "space" / "deep" / "rules.py").write_text(explode + "def follows(): pass\n")
    write(f"scorers:\n  - name: quick\n    python: {target}\n")
    allowed = ["team.*", "space.*"]

    if expected is None:
        assert len(load_guidelines(Path("guidelines"), home=here, python_modules=allowed).definitions) == 1
    else:
        [mistake] = mistakes(python_modules=allowed)
        assert mistake.startswith('guidelines/a.yaml:3: scorer "quick": python: ')
        assert expected in mistake


def test_words_that_yaml_once_took_for_the_truth_stay_words() -> None:
    write("judges:\n  - {name: a, instructions: 'Is it?', values: [yes, no, on]}\n")

    [judge] = load_guidelines(Path("guidelines")).definitions

    assert isinstance(judge, JudgeDefinition)
    assert judge.values == Categories(values=("yes", "no", "on"))


def test_a_disabled_judge_still_claims_its_name() -> None:
    write("judges:\n  - {name: a, guidelines: b, enabled: false, since: 7d}\n  - {name: a, guidelines: b}\n")

    assert mistakes() == ['guidelines/a.yaml:3: judge "a": the name is taken already by guidelines/a.yaml:2']


def test_a_session_is_filtered_by_its_own_columns_and_other_targets_are_not() -> None:
    write(
        "scorers:\n  - {name: a, sql: turns < 9, filter: turns > 1, target: session}\n  - {name: b, sql: turns < 9}\n"
    )

    [mistake] = mistakes()
    assert mistake.startswith('guidelines/a.yaml:3: scorer "b": sql: unknown column "turns"')


def test_a_missing_folder_is_a_mistake_and_one_file_is_as_good_as_a_folder(here: Path) -> None:
    write("scorers: [{name: a, sql: 'true'}]", "one.yaml")

    [definition] = load_guidelines(Path("guidelines/one.yaml")).definitions

    assert definition.name == "a"
    with pytest.raises(MistakesError, match=r"^nowhere:1: there is no such file or folder of guidelines"):
        load_guidelines(here / "nowhere")


def test_a_path_outside_the_current_folder_is_told_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("judges: 7")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")

    with pytest.raises(MistakesError) as caught:
        load_guidelines(here / "guidelines")

    assert str(caught.value) == f'{here}/guidelines/a.yaml:1: "judges" should be a list'


def test_the_variables_of_instructions_are_those_that_prompts_know() -> None:
    prompts = Prompts()

    assert all(prompts.parts_named(f"{{{{ {name} }}}}") for name in VARIABLES)


def test_check_tells_the_mistakes_of_configuration_prompts_and_guidelines_together(here: Path) -> None:
    write("judges: 7")
    Path("evaluator.yaml").write_text(
        "tables: x\nprompts: nowhere\nredact:\n  - email\n  - {pattern: (, as: X}\n"
    )
    config = Config(
        home=here,
        prompts=Path("nowhere"),
        redact=["email", RedactionPattern.model_validate({"pattern": "(", "as": "X"})],
    )

    found, warnings = check_configuration(config)

    assert [str(mistake) for mistake in found] == [
        "evaluator.yaml:5: redact.1.pattern: RE2 does not take it: missing ): (",
        f"evaluator.yaml:2: prompts: {here}/nowhere is not a folder",
        'guidelines/a.yaml:1: "judges" should be a list',
    ]
    assert warnings == []


def test_check_warns_of_a_folder_that_gives_nothing_to_judge_with(here: Path) -> None:
    config = Config(home=here)

    found, warnings = check_configuration(config)

    assert found == []
    assert [str(warning) for warning in warnings] == [
        "guidelines:1: no guideline file: there is nothing to judge with"
    ]
    assert configured_guidelines(config).definitions == ()


JOINT = "judges:\n  - {name: a, guidelines: b, batch: joint, sample_rate: 0.5}\n"


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("sample_rate: 0.25", "sample_rate is 0.25"),
        ("sample_rate: 0.5, filter: 'tool_calls > 0'", 'filter is "tool_calls > 0"'),
        ("sample_rate: 0.5, trace_view: answer", 'trace_view is "answer"'),
    ],
)
def test_joint_judges_of_one_model_and_target_share_what_they_look_at(member: str, said: str) -> None:
    write(f"{JOINT}  - {{name: c, guidelines: d, batch: joint, {member}}}\n")

    [mistake] = mistakes(model="openai/gpt-5-mini")

    assert mistake.startswith(
        f'guidelines/a.yaml:3: judge "c": {said}, but "a" (guidelines/a.yaml:2) of the same joint'
    )
    assert (
        "with the same model and target (openai/gpt-5-mini, trace) are one group and share filter" in mistake
    )


def test_a_model_is_the_same_however_it_is_written() -> None:
    write(f"{JOINT}  - {{name: c, guidelines: d, batch: joint, model: 'openai:/gpt-5-mini'}}\n")

    [mistake] = mistakes(model="openai/gpt-5-mini")

    assert "sample_rate is 1.0" in mistake


@pytest.mark.parametrize(
    "member", ["batch: joint, model: x/other", "batch: single", "batch: joint, enabled: false"]
)
def test_who_rides_in_another_call_or_in_none_may_differ(member: str) -> None:
    write(f"{JOINT}  - {{name: c, guidelines: d, {member}}}\n")

    load_guidelines(Path("guidelines"), model="openai/gpt-5-mini")


def test_a_panel_and_what_is_seen_are_part_of_the_definition() -> None:
    write(
        "judges:\n  - {name: a, guidelines: b, models: [x/a, x/b, x/c], escalate_to: x/d, trace_view: index}\n"
    )

    [judge] = load_guidelines(Path("guidelines")).definitions

    assert isinstance(judge, JudgeDefinition)
    assert (judge.models, judge.decide, judge.escalate_to) == (("x/a", "x/b", "x/c"), "majority", "x/d")
    assert judge.trace_view == "index"


def test_a_judge_of_spans_sees_the_span_and_an_index_of_its_trace_unless_told_otherwise() -> None:
    write(
        "judges:\n  - {name: a, guidelines: b, target: span, span_filter: span_type = 'TOOL', since: 7d}\n"
        "  - {name: c, guidelines: d, target: span, trace_view: full}\n  - {name: e, guidelines: f}\n"
    )

    first, second, third = load_guidelines(Path("guidelines")).definitions

    assert isinstance(first, JudgeDefinition)
    assert isinstance(second, JudgeDefinition)
    assert isinstance(third, JudgeDefinition)
    assert (first.trace_view, second.trace_view, third.trace_view) == ("index", "full", "full")
    assert (first.span_filter, first.since) == ("span_type = 'TOOL'", timedelta(days=7))
