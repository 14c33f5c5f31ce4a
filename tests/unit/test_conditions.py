"""SQL conditions: what they may be, and what they answer."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.dataset import conditions
from evaluator.dataset.conditions import ConditionFailure, evaluate, holds, parse_condition
from evaluator.dataset.expressions import ConditionError
from evaluator.dataset.functions import FUNCTIONS
from evaluator.traces.columns import TRACES, traces_table
from tests.a_trace import a_trace


def answers(text: str, *traces: Any) -> list[Any]:
    return evaluate([parse_condition(text, TRACES)], traces_table(traces))[0]


@pytest.mark.parametrize(
    "text",
    [
        "status = 'OK' AND duration_ms < 10000",
        "service_name IN ('support', 'sales') AND NOT incomplete",
        "list_contains(tools, 'search')",
        "'search' IN tools",
        "len([tool FOR tool IN tools IF tool LIKE 'sea%']) > 0",
        "len(list_filter(tools, lambda tool: tool = 'search')) = 1",
        "tools[1] = 'search'",
        "tags->>'$.team' = 'emea'",
        "json_extract_string(attributes, '$.plan') = 'pro'",
        "regexp_matches(response, '\\d+ open')",
        "lower(request) LIKE '%tickets%'",
        "coalesce(user_id, '') = ''",
        "CASE WHEN tool_calls > 0 THEN total_tokens < 5000 ELSE true END",
        "duration_ms BETWEEN 1 AND 3000",
        "start_time >= '2026-11-01' AND hour(start_time) < 20",
        "start_time AT TIME ZONE 'Europe/Berlin' > '2026-11-01'",
        "try_cast(response AS INTEGER) IS NULL",
        "STATUS = 'OK' -- with a comment",
        "/* first */ true",
    ],
)
def test_a_condition_over_the_columns_holds_for_the_trace_it_describes(text: str) -> None:
    assert answers(text, a_trace()) == [True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("-- nothing", "is not SQL"),
        ("status =", "is not SQL"),
        ("status = 'OK'; DROP TABLE rows", "is a statement"),
        ("status = 'OK'; SELECT 1", "is not one SQL condition"),
        ("true) , (true", "is not SQL"),
        ("true) FROM rows WHERE (true", "is not SQL"),
        ("true AS x", "is not one SQL condition"),
        ("true, false", "is not one SQL condition"),
        ("true,", "not true or false"),
        ("DISTINCT incomplete", "is not one SQL condition"),
        ("incomplete LIMIT 1", "is not one SQL condition"),
        ("true FROM rows UNION", "is not one SQL condition"),
        ("true UNION SELECT true", "is not one SQL condition"),
        ("EXISTS (SELECT 1)", "a subquery"),
        ("status = (SELECT 'OK')", "a subquery"),
        ("status IN (FROM read_csv('x'))", "a subquery"),
        ("'a' = ANY(tools)", "a subquery"),
        ("*", r"holds \*"),
        ("COLUMNS('status') = 'OK'", r"holds \*"),
        ("row_number() OVER () = 1", "a window"),
        ("status = $1", "a parameter"),
        ("status = ?", "a parameter"),
        ("#1 = 'a'", "by its position"),
        ("status COLLATE nocase = 'ok'", "holds collate"),
        ("lower(status) FILTER (WHERE true) = 'ok'", "holds filter"),
        ("count(*) > 1", "function"),
        ("unnest(tools) = 'a'", "function"),
        ("read_csv('/etc/passwd') = 'x'", 'function "read_csv"'),
        ("read_text('/etc/passwd') = 'x'", 'function "read_text"'),
        ("glob('*') = 'x'", 'function "glob"'),
        ("getenv('HOME') = 'x'", 'function "getenv"'),
        ("current_setting('threads') = 1", 'function "current_setting"'),
        ("getvariable('x') = 1", 'function "getvariable"'),
        ("nextval('x') = 1", 'function "nextval"'),
        ("error('x')", 'function "error"'),
        ("sleep_ms(1000) = 1", 'function "sleep_ms"'),
        ("query('SELECT 1') = 1", 'function "query"'),
        ("json_execute_serialized_sql('x') = 1", "function"),
        ("repeat(status, 1000000000) = 'x'", 'function "repeat"'),
        ("random() < 0.5", 'function "random"'),
        ("now() > start_time", 'function "now"'),
        ("main.lower(status) = 'ok'", "schema"),
        ('"read_csv"(status) = 1', 'function "read_csv"'),
        ("lowr(status) = 'ok'", 'did you mean "lower"'),
        ("PRAGMA version", "is not one SQL condition"),
        ("ATTACH 'x'", "type"),
        ("COPY rows TO 'x'", "is not SQL"),
        ("SET threads = 1", "is not"),
        ("status::regclass = 'x'", 'type "regclass"'),
        ("servce_name = 'x'", 'did you mean "service_name"'),
        ('"Servce name" = 1', "unknown column"),
        ("rows.status = 'OK'", 'unknown column "rows"'),
        ("current_date > start_time", "unknown column"),
        ("tags.team = 'emea'", r"tags->>'\$\.team'"),
        ("tags->'$.team' = 'x'", "holds ->"),
        ("status", "gives VARCHAR"),
        ("NULL", "not true or false"),
        ("span_count", "gives BIGINT"),
        ("duration_ms < 'abc'", "Could not convert"),
        ("regexp_matches(response, '(')", "missing"),
        ("lower(1, 2) = 'x'", "No function matches"),
        ("(" * 1500 + "true" + ")" * 1500, "nested deeper"),
        ("NOT " * 300 + "true", "nested deeper"),
        ("[" * 1500 + "1" + "]" * 1500 + " = 1", "nested deeper"),
        (" + ".join(["span_count"] * 200) + " > 1", "nested deeper"),
        ("true AND " * 1000 + "true", "longer than"),
    ],
)
def test_what_is_not_one_scalar_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        parse_condition(text, TRACES)


def test_every_function_that_a_condition_may_use_is_there_and_reaches_nothing() -> None:
    rows = duckdb.connect().execute("SELECT function_name, function_type FROM duckdb_functions()").fetchall()
    kinds: dict[str, set[str]] = {}
    for name, kind in rows:
        kinds.setdefault(name, set()).add(kind)
    by_the_parser = {"like_escape", "json", "ifnull", "nullif"}

    assert {name for name in FUNCTIONS if name not in kinds} <= by_the_parser
    assert {name for name in FUNCTIONS if "table" in kinds.get(name, ())} == set()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('{file}')",
        "COPY (SELECT 1) TO '{file}.csv'",
        "ATTACH '{file}.db'",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET threads = 4",
    ],
)
def test_the_database_itself_reaches_nothing(statement: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("secret")

    with pytest.raises(duckdb.Error):
        conditions._database().cursor().execute(statement.format(file=file))

    assert sorted(tmp_path.iterdir()) == [file]


def test_a_row_that_makes_a_condition_raise_fails_alone() -> None:
    traces = [a_trace(response=text) for text in ("1", "secret", None, "3")]

    number, other = evaluate(
        [parse_condition("response::INTEGER > 1", TRACES), parse_condition("response = '1'", TRACES)],
        traces_table(traces),
    )

    assert [number[0], number[2], number[3]] == [False, None, True]
    assert isinstance(number[1], ConditionFailure)
    assert "secret" not in number[1].detail
    assert other == [True, False, None, False]


def test_an_error_that_duckdb_cannot_try_fails_for_its_row_alone_too() -> None:
    condition = parse_condition("start_time AT TIME ZONE service_name IS NOT NULL", TRACES)
    traces = [a_trace(service_name=zone) for zone in ("UTC", "nowhere", "Europe/Berlin")]

    first, second, third = evaluate([condition], traces_table(traces))[0]

    assert (first, third) == (True, True)
    assert isinstance(second, ConditionFailure)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "x", "", '{"a": 3}', "{", "1e999", None]), min_size=1, max_size=6))
def test_an_answer_does_not_depend_on_the_rows_beside_it(texts: list[str | None]) -> None:
    asked = [
        parse_condition(text, {"text": "VARCHAR"})
        for text in ("text::INTEGER > 1 OR text::INTEGER < 0", "text->>'$.a' = '3'", "text = '1'")
    ]
    rows = pa.table({"text": pa.array(texts, pa.string())})

    together = evaluate(asked, rows)

    alone = [evaluate(asked, rows.slice(row, 1)) for row in range(len(texts))]
    assert together == [[answer[number][0] for answer in alone] for number in range(len(asked))]


def test_a_condition_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = parse_condition(
        "len([1 FOR a IN string_split(text, '') IF len([1 FOR b IN string_split(text, '') IF a > b]) > 0]) > 0",
        {"text": "VARCHAR"},
    )
    monkeypatch.setattr(conditions, "DEADLINE_SECONDS", 0.1)

    [answers] = evaluate([slow], pa.table({"text": ["ab" * 20] * 40_000}))

    assert set(answers) == {ConditionFailure(detail="took longer than 0.1 s")}


def test_no_condition_and_no_row_are_no_question() -> None:
    condition = parse_condition("true", TRACES)

    assert evaluate([], traces_table([a_trace()])) == []
    assert evaluate([condition], traces_table([])) == [[]]
    assert answers("1 = 1", a_trace(), a_trace()) == [True, True]


def test_a_value_passes_by_its_condition() -> None:
    word = parse_condition("value != 'cold'", {"value": "VARCHAR"})
    number = parse_condition("value >= 3", {"value": "DOUBLE"})

    assert [holds(word, value) for value in ("warm", "cold")] == [True, False]
    assert [holds(number, value) for value in (3, 2.5)] == [True, False]
    assert holds(parse_condition("value::INTEGER > 1", {"value": "VARCHAR"}), "warm") is None
