"""The commands as a user types them, through a subprocess, on real tables and a stub provider."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow as pa
import pytest

from evaluator.commands.connections import connections
from evaluator.commands.reports import check_output
from evaluator.config import load_config
from evaluator.errors import ConfigurationError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.schemas import ANNOTATIONS
from tests.project import CODE_ONLY, COMMAND, ONE_JUDGE, Project
from tests.stub_provider import StubProvider
from tests.traffic import NOON, answer, span, trace_id


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider() as provider:
        yield provider


def judged(folder: Path, stub: StubProvider, **config: object) -> Project:
    """A project with a judge whose model is the stub."""
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s"}
    return Project.create(folder, ONE_JUDGE, judge=judge, **config)


def test_init_twice_changes_nothing_and_starters_have_no_mistakes(tmp_path: Path) -> None:
    project = Project(folder=tmp_path)
    first = project.run("init", MLFLOW_DISABLE_TELEMETRY="true")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    second = project.run("init")
    checked = project.run("check")

    assert (first.code, second.code, checked.code) == (0, 0, 0), first.err + second.err + checked.err
    tables = {path.name for path in (tmp_path / "traces").iterdir()}
    assert tables == {
        "agent_otel_spans", "agent_otel_logs", "agent_otel_metrics", "agent_otel_annotations", "agent_eval_ledger",
    }  # fmt: skip
    after = {path: path.stat().st_mtime_ns for path in before if path.name != "mlflow.db"}
    assert {path: before[path] for path in after} == after


def test_once_writes_one_result_a_trace_and_scorer_and_a_second_one_none(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"), answer("b", "Good day"))

    first, second = project.run("once", "--json").json(), project.run("once", "--json").json()

    assert (first["traces"], first["results"], first["calls"]) == (2, 4, 2)
    assert first["scorers"]["greets"] | {"version": ""} == {
        "version": "", "scored": 2, "passed": 1, "failed": 1, "unscored": 0, "pass_rate": 0.5,
        "pass_rate_low": pytest.approx(0.0945, abs=0.001), "pass_rate_high": pytest.approx(0.9055, abs=0.001),
    }  # fmt: skip
    assert (second["traces"], second["results"], second["calls"]) == (0, 0, 0)
    assert second["cursor"] == first["cursor"] == 1
    rows = project.sql(
        "select name, count(*) as n, count(distinct trace_id) as traces from assessments group by name"
    )
    assert {row["name"]: (row["n"], row["traces"]) for row in rows} == {"greets": (2, 2), "polite": (2, 2)}
    assert len(stub.requests) == 2


def test_init_tells_the_way_to_another_folder(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    (tmp_path / "my agent").mkdir()
    (tmp_path / "my agent" / "evaluator.yaml").write_text("publish: [annotations]\n")

    assert "Next: `cd 'my agent'`, then `evaluator collect`" in project.run("init", "my agent").out
    assert "Next: `evaluator collect`" in project.run("init").out
    assert "Next: `evaluator collect`" in project.run("init", ".").out


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_outputs_take_nothing_from_the_work(tmp_path: Path, closed: str) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))

    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "once", "--json"],
        cwd=tmp_path, env=project.env({}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert len(project.sql("select * from assessments")) == 1


def test_eval_touches_only_its_range_and_reuses_what_was_scored(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub, start="latest")
    project.append(answer("in", at=NOON), answer("out", at=NOON + timedelta(days=1)))

    first = project.run("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--json").json()
    second = project.run("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--json").json()

    assert (first["traces"], first["results"], first["reused"]) == (1, 2, 0)
    assert (second["traces"], second["results"], second["reused"], second["calls"]) == (1, 0, 2, 0)
    assert {row["trace_id"] for row in project.sql("select trace_id from assessments")} == {trace_id("in")}


def test_eval_gates_reports_and_rescoring(tmp_path: Path) -> None:
    project = Project.create(tmp_path, start="latest")
    project.append(answer("a", "<script>Hello</script>"), answer("b", "Bye <b>"))
    day = ("eval", "--from", "2026-11-20", "--to", "2026-11-21")

    below = project.run(*day, "--fail-under", "0.9", "--output", "report.xml")
    met = project.run(*day, "--fail-under", "0.5", "--output", "report.html")
    project.run(*day, "--rescore", "--output", "report.json")

    assert (below.code, met.code) == (3, 0)
    assert "greets 50 %" in below.err
    [suite] = ET.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("greets", "2", "1")
    assert "Bye" not in (tmp_path / "report.html").read_text()
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [result["revision"] for result in results] == [1, 1]
    revisions = project.sql("select revision from assessments")
    assert revisions == [{"revision": 1}, {"revision": 1}]


@pytest.mark.parametrize("locked", ["reports", "reports/old.json"])
def test_a_report_that_could_not_be_written_is_refused_before_anything_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """Of root, whom no permission stops, the system's own answer is the only one that can be had."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "old.json").touch()
    (tmp_path / "reports" / "folder.json").mkdir()
    asked = "new.json" if locked == "reports" else "old.json"
    check_output(tmp_path / "reports" / asked)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / locked)

    with pytest.raises(ConfigurationError, match=f"--output: no permission to write .*{asked}"):
        check_output(tmp_path / "reports" / asked)
    with pytest.raises(ConfigurationError, match="is a folder"):
        check_output(tmp_path / "reports" / "folder.json")


def test_eval_with_judges_not_deployed_yet_writes_nothing_unless_asked(tmp_path: Path) -> None:
    project = Project.create(tmp_path, start="latest")
    project.append(answer("a"))
    (tmp_path / "draft.yaml").write_text("scorers: [{name: short, sql: 'len(response) < 10'}]")
    day = ("eval", "--from", "2026-11-20", "--to", "2026-11-21", "--guidelines", "draft.yaml", "--json")

    tried = project.run(*day).json()
    silent = project.sql("select * from assessments")
    project.run(*day, "--write")

    assert tried["scorers"]["short"]["passed"] == 1
    assert silent == []
    assert len(project.sql("select * from assessments")) == 1


def test_a_dry_run_estimates_and_calls_nothing(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"))

    told = project.run("eval", "--last", "365d", "--dry-run", "--json").json()

    assert (told["traces"], told["calls"]) == (1, 1)
    assert told["scorers"]["polite"]["input_tokens"] > 100
    assert told["cost_usd"] > 0
    assert stub.requests == []


def test_explain_tells_why_for_every_scorer(tmp_path: Path) -> None:
    guidelines = """
scorers:
  - {name: greets, regex: Hello}
  - {name: elsewhere, regex: Hello, filter: "service_name = 'billing'"}
  - {name: never, regex: Hello, sample_rate: 0}
"""
    project = Project.create(tmp_path, guidelines)
    project.append(answer("a"), span("b", "child", parent="nowhere"))
    project.run("once")

    done = project.run("explain", trace_id("a"), "--json").json()
    waiting = project.run("explain", trace_id("b"), "--json").json()
    unknown = project.run("explain", "f" * 32)

    assert {one["scorer"]: one["state"] for one in done["scorers"]} == {
        "greets": "scored", "elsewhere": "filtered", "never": "sampled out",
    }  # fmt: skip
    assert (waiting["state"], {one["state"] for one in waiting["scorers"]}) == ("waiting", {"waiting"})
    assert "root span has not arrived" in waiting["why"]
    assert unknown.code == 1
    assert "holds no span" in unknown.out


def test_a_provider_that_is_down_leaves_everything_for_later_and_says_so(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"))
    stub.faults = {"500": 1.0}

    down = project.run("once", "--json")
    stub.faults = {}
    up = project.run("once", "--json").json()

    assert down.code == 1
    assert "no model call came through" in down.err
    assert "Traceback" not in down.err
    assert down.json()["scorers"]["polite"]["unscored"] == 1
    assert (up["results"], up["scorers"]["polite"]["scored"]) == (1, 1)


def test_a_wrong_key_stops_before_any_trace_is_touched(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"), answer("b"))
    stub.faults = {"401": 1.0}

    refused = project.run("once", "--json")
    stub.faults = {}

    told = refused.json()
    assert refused.code == 1
    assert 'judge "polite"' in refused.err
    assert (told["calls"] > 0, told["cost_usd"], told["cost_unknown"]) == (True, 0, 0)
    assert "Traceback" not in refused.err
    assert project.sql("select * from ledger") == []
    assert project.run("once", "--json").json()["results"] == 4


def test_retry_puts_up_what_was_given_up(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"))
    stub.faults = {"refusal": 1.0}
    given_up = project.run("once", "--json").json()
    stub.faults = {}

    put_up = project.run("retry", "--judge", "polite")
    again = project.run("once", "--json").json()

    assert given_up["scorers"]["polite"]["unscored"] == 1
    assert put_up.out == "1 result is up for another attempt at the next tick\n"
    assert again["scorers"]["polite"]["scored"] == 1
    assert project.sql("select value is not null as valued from assessments where name = 'polite'") == [
        {"valued": True}
    ]


def test_retry_tells_of_what_is_tried_again_anyway(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"))
    stub.faults = {"prose": 1.0}
    project.run("once")
    at_once = project.run("retry").out
    project.run("once")
    later = project.run("retry").out

    assert at_once == "1 result is up for another attempt at the next tick (1 due anyway)\n"
    assert later.splitlines() == [
        "0 results are up for another attempt at the next tick",
        "1 result is due later than that (`evaluator explain` tells when)",
    ]


def test_pause_makes_no_paid_call_and_resume_catches_up(tmp_path: Path, stub: StubProvider) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a"))

    project.run("pause", "--judge", "polite")
    paused = project.run("once", "--json").json()
    told = project.run("explain", trace_id("a"), "--json").json()
    status = project.run("status", "--json").json()
    project.run("resume")
    resumed = project.run("once", "--json").json()

    assert (paused["calls"], paused["results"], paused["deferred"]) == (0, 1, 1)
    assert {one["scorer"]: one["state"] for one in told["scorers"]} == {
        "polite": "deferred",
        "greets": "scored",
    }
    assert (status["paused"], status["backlog"]["deferred"]["count"]) == (["polite"], 1)
    assert (resumed["calls"], resumed["results"]) == (1, 1)


def test_try_shows_the_prompt_the_reply_and_the_cost_and_writes_nothing(
    tmp_path: Path, stub: StubProvider
) -> None:
    project = judged(tmp_path, stub)
    project.append(answer("a", "A very particular answer"))

    [tried] = project.run("try", "--judge", "polite", "--json").json()

    assert "A very particular answer" in tried["messages"][-1]["content"]
    assert tried["replies"]
    assert tried["value"] in ("yes", "no")
    assert tried["cost_usd"] > 0
    assert project.sql("select * from ledger") == []


def test_traces_trace_and_status_answer(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(
        answer("a", "Bye", **{"session.id": "s1"}),
        span("a", "tool", parent="root"),
        answer("b", at=datetime.now(UTC)),
    )
    project.run("once")

    failed = project.run("traces", "--failed", "greets", "--json").json()
    recent = project.run("traces", "--since", "1h", "--json").json()
    of_session = project.run("traces", "--session", "s1", "--json").json()
    filtered = project.run("traces", "--filter", "response = 'Bye'", "--json").json()
    tree = project.run("trace", trace_id("a"))
    status = project.run("status", "--json").json()

    assert [row["trace_id"] for row in failed] == [trace_id("a")]
    assert [row["trace_id"] for row in recent] == [trace_id("b")]
    assert [row["trace_id"] for row in of_session] == [row["trace_id"] for row in filtered] == [trace_id("a")]
    assert "tool" in tree.out
    assert "greets" in tree.out
    assert status["commits_behind"] == 0
    assert [sink["behind"] for sink in status["sinks"]] == [0]
    [scorer] = status["scorers"]
    assert (scorer["name"], scorer["in_force"], scorer["coverage"]) == ("greets", True, 1.0)


def test_status_counts_what_a_run_said_once_though_it_is_put_up_again(tmp_path: Path) -> None:
    project = Project.create(tmp_path, 'scorers:\n  - {name: answers, sql: "length(response) > 0"}\n')
    project.append(answer("a", "Hello", at=datetime.now(UTC)), span("b", at=datetime.now(UTC)))
    project.run("once")
    [before] = project.run("status", "--json").json()["last_runs"]

    retried = project.run("retry", "--since", "1h")
    [after] = project.run("status", "--json").json()["last_runs"]

    assert retried.out.startswith("1 result")
    assert (before["traces"], before["scored"], before["unscored"]) == (2, 1, 1)
    assert after == before


def test_status_counts_the_traces_of_an_evaluation(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a", at=datetime.now(UTC)), answer("b", "Bye", at=datetime.now(UTC)))
    project.run("eval", "--last", "1h")

    [run] = project.run("status", "--json").json()["last_runs"]

    assert (run["scope"], run["traces"], run["scored"]) == ("eval", 2, 2)


def test_status_tells_what_waits_because_mlflow_does_not_have_the_traces(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.configure(publish=["annotations", "mlflow"])
    project.append(answer("a"), answer("b"))
    project.run("once")

    told = project.run("status")
    status = project.run("status", "--json").json()

    assert "mlflow: up to date; 2 results wait for their trace" in told.out
    assert "2 results are not in mlflow yet" in told.err
    assert {sink["name"]: sink["waiting"] for sink in status["sinks"]} == {"annotations": 0, "mlflow": 2}
    assert any("`collect: {tee: mlflow}`" in note for note in status["notes"])


def test_status_tells_how_long_the_log_keeps_what_is_unread(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))
    project.run("once")
    read = project.run("status", "--json").json()
    project.append(answer("b"))
    project.append(answer("c"))
    behind, shown = project.run("status", "--json").json(), project.run("status").out
    project.spans.open().checkpoint()
    (tmp_path / "traces/agent_otel_spans/_delta_log" / f"{2:020d}.json").unlink()
    gone = project.run("status", "--json").json()

    until = datetime.fromisoformat(behind["log_keeps_unread_until"]) - datetime.now(UTC)
    assert (read["log_keeps_unread_until"], read["log_kept_hours"]) == (None, 720)
    assert timedelta(days=29) < until <= timedelta(days=30)
    assert "2 commits behind; the log keeps these until 20" in shown
    assert gone["log_keeps_unread_until"] is None
    assert ["no longer has version 2" in note for note in gone["notes"]] == [True]


def test_what_others_annotate_under_a_judges_name_takes_nothing_from_its_results(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))
    project.run("once")
    annotations = DeltaStore(str(tmp_path / "traces" / "agent_otel_annotations"))
    [ours] = annotations.open().query("select * from t").to_pylist()
    later = ours["updated_at"] + timedelta(hours=1)
    theirs = {**ours, "annotation_id": "theirs", "value": '"no"', "metadata": None, "updated_at": later}
    annotations.open().append(pa.Table.from_pylist([theirs], schema=ANNOTATIONS))

    rows = project.sql("select is_current from assessments where version is not null")
    assert rows == [{"is_current": True}]


@pytest.mark.parametrize(
    "query",
    [
        "drop table traces",
        "select 1; select 2",
        "select * from read_csv('/etc/passwd')",
        "copy traces to 'x'",
        "sel",
    ],
)
def test_sql_reads_only(tmp_path: Path, query: str) -> None:
    project = Project.create(tmp_path)

    ran = project.run("sql", query)

    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_sql_formats(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))

    csv = project.run("sql", "select service_name, models from traces", "--format", "csv")
    table = project.run("sql", "select service_name from traces")

    assert csv.out == "service_name,models\nsupport,[]\n"
    assert "support" in table.out


def test_csv_ends_its_lines_as_a_shell_expects(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    out = subprocess.run(
        [*COMMAND, "sql", "select 1 as a, 'b\r\nc' as t", "--format", "csv"],
        cwd=tmp_path, env=project.env({}), capture_output=True, timeout=60, check=True,
    ).stdout  # fmt: skip

    assert out == b'a,t\n1,"b\r\nc"\n'


def test_a_result_that_nobody_reads_is_told_by_the_exit_code_alone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as unread:
        ran = subprocess.run(
            [*COMMAND, "--version"], cwd=tmp_path, stdout=unread, stderr=subprocess.PIPE, timeout=60, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )  # fmt: skip

    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--verison", 2)])
def test_a_command_that_is_done_ends_before_the_interpreter_takes_itself_apart(
    tmp_path: Path, argument: str, code: int
) -> None:
    """By then a thread of Arrow's that gives back what it has read aborts the process, now and then."""
    (tmp_path / "ends.py").write_text(
        "import atexit, os, sys\nfrom evaluator.cli.main import main\n"
        "class Late:\n    def __del__(self): os.write(1, b'torn down')\n"
        f"late, sys.argv = Late(), ['evaluator', {argument!r}]\n"
        "try:\n    main()\nfinally:\n    atexit.register(print, 'said at the end')\n"
    )

    ran = subprocess.run(
        [sys.executable, "ends.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert (ran.returncode, "said at the end" in ran.stdout) == (code, True), ran.stderr
    assert "torn down" not in ran.stdout


@pytest.mark.parametrize("command", [("trace",), ("explain",), ("try", "--judge", "greets"), ("forget",)])
def test_white_space_around_a_trace_id_is_no_part_of_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))

    ran = project.run(*command, f" {trace_id('a')}\r\n", "--json")

    assert (ran.code, trace_id("a") in ran.out) == (0, True), ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("once", "--config", "nowhere.yaml"), "no such configuration file"),
        (("eval",), "--from"),
        (("eval", "--from", "tomorrow", "--to", "2026-11-21"), "is not a time"),
        (("eval", "--last", "1h", "--judge", "greet"), 'did you mean "greets"?'),
        (("eval", "--last", "1h", "--filter", "respons = 1"), 'did you mean "response"'),
        (("eval", "--last", "1h", "--output", "x.pdf"), "must end in"),
        (("eval", "--last", "1h", "--dry-run", "--fail-under", "0.9"), "--dry-run goes without"),
        (("pause", "--judge", "nobody"), "no judge or scorer"),
        (("nonsense",), "No such command"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_the_way_out(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    project = Project.create(tmp_path)

    ran = project.run(*arguments)

    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_missing_and_foreign_tables_are_told_in_words(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    missing = project.run("once", EVALUATOR_SPANS="./elsewhere")
    foreign = project.run("once", EVALUATOR_SPANS="./traces/agent_otel_annotations")

    assert (missing.code, foreign.code) == (1, 1)
    assert "evaluator init" in missing.err
    assert "not a table of OpenTelemetry spans" in foreign.err


def test_what_steers_a_terminal_is_spelled_out_and_stays_in_json(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    hostile = "\x1b[2J\x1b]0;pwn\x07 Hello \x9b31m \u202e reversed"
    project.append(answer("a", hostile, hostile, name=hostile))
    project.run("once")

    shown = [
        project.run("traces").out,
        project.run("trace", trace_id("a")).out,
        project.run("sql", "select name, response from traces").out,
        project.run("try", "--judge", "greets").out,
    ]

    for out in shown:
        assert not any(char in out for char in ("\x1b", "\x07", "\x9b", "\u202e"))
    assert "\\x1b[2J" in shown[0]
    assert project.sql("select response from traces") == [{"response": hostile}]


def test_an_empty_folder_of_guidelines_decides_nothing(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))
    (tmp_path / "guidelines" / "guidelines.yaml").unlink()

    ran = project.run("once")

    assert ran.code == 2
    assert "no judge and no scorer is enabled" in ran.err
    assert project.sql("select * from ledger") == []


def test_a_data_file_that_is_gone_is_told_in_words(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.append(answer("a"))
    for file in (tmp_path / "traces" / "agent_otel_spans").glob("*.parquet"):
        file.unlink()

    for command in (("once",), ("traces",), ("eval", "--last", "100d")):
        ran = project.run(*command)
        assert ran.code == 1
        assert "is gone" in ran.err
        assert "Traceback" not in ran.err


def test_a_scorer_of_code_is_not_paused(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    ran = project.run("pause", "--judge", "greets")

    assert ran.code == 2
    assert "costs nothing" in ran.err


def test_connecting_finds_a_foreign_annotations_table(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    ran = project.run("check", "--connect", EVALUATOR_ANNOTATIONS="./traces/agent_otel_spans")

    assert ran.code == 1
    assert "not an annotations table" in ran.out


async def test_connecting_tells_which_tables_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of root, whom no permission stops, the system's own answer is the only one that can be had."""
    Project.create(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)

    told = {one.name: one async for one in connections(load_config(tmp_path / "evaluator.yaml"))}

    assert {name: one.state for name, one in told.items()} == {
        "spans": "ok", "annotations": "failed", "ledger": "failed",
    }  # fmt: skip
    assert "agent_eval_ledger: cannot be written: no permission" in told["ledger"].detail


@pytest.mark.parametrize("paused", [(), ("--judge", "polite")])
def test_connecting_asks_no_model_whose_judges_are_paused(
    tmp_path: Path, stub: StubProvider, paused: tuple[str, ...]
) -> None:
    project = judged(tmp_path, stub)
    project.run("pause", *paused)
    resting = project.run("check", "--connect")
    calls = len(stub.requests)
    project.run("resume")
    going_on = project.run("check", "--connect")

    assert (resting.code, going_on.code) == (0, 0), resting.out + going_on.out
    assert "its judges are paused" in resting.out
    assert (calls, len(stub.requests)) == (0, 1)


def test_check_tells_every_mistake_with_its_place(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    project.guide(CODE_ONLY + "    sampel_rate: 1\n  - name: broken\n    sql: 'duration_m < 1'\n")
    project.configure(settel="1s")

    configuration = project.run("check")
    (tmp_path / "evaluator.yaml").write_text("publish: [annotations]\n")
    guidelines = project.run("check")

    assert (configuration.code, guidelines.code) == (2, 2)
    assert "evaluator.yaml:" in configuration.err
    assert 'did you mean "settle"?' in configuration.err
    for lines in (guidelines.err.splitlines(), configuration.err.splitlines()):
        assert any(
            line.startswith("guidelines/guidelines.yaml:5:") and "sample_rate" in line for line in lines
        )
        assert any(
            line.startswith("guidelines/guidelines.yaml:7:") and "duration_ms" in line for line in lines
        )


def test_run_ticks_reloads_edits_keeps_the_last_good_ones_and_stops_on_sigterm(tmp_path: Path) -> None:
    project = Project.create(tmp_path, every="1s")
    worker = project.start("run", "--port", "0")
    try:
        assert worker.stderr is not None
        address = next(line for line in worker.stderr if "serving on" in line).split()[-1]
        project.append(answer("a"))
        _until(
            lambda: 'evaluator_results_total{result="pass",scorer="greets"} 1.0' in _get(f"{address}/metrics")
        )
        project.guide("scorers: [{name: greets, regex: '('}]")
        _until(lambda: "evaluator_guidelines_broken 1.0" in _get(f"{address}/metrics"))
        project.append(answer("b"))
        _until(
            lambda: 'evaluator_results_total{result="pass",scorer="greets"} 2.0' in _get(f"{address}/metrics")
        )
        project.guide("scorers: [{name: says_bye, regex: Bye}]")
        _until(lambda: "evaluator_guidelines_broken 0.0" in _get(f"{address}/metrics"))
        project.append(answer("c"))
        _until(
            lambda: (
                'evaluator_results_total{result="fail",scorer="says_bye"} 1.0' in _get(f"{address}/metrics")
            )
        )
        healthy = (_get(f"{address}/healthz"), _get(f"{address}/readyz"))
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=20)
    finally:
        worker.kill()

    assert worker.returncode == 0
    assert "alive" in healthy[0]
    assert '"ready"' in healthy[1]
    assert "Traceback" not in err


def test_sigterm_lets_what_is_being_judged_end_within_grace(tmp_path: Path) -> None:
    with StubProvider(latency=2.0) as slow:
        project = judged(tmp_path, slow, every="1h")
        project.append(answer("a"))
        worker = project.start("run", "--port", "0")
        _until(lambda: bool(slow.requests))
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=30)

        assert worker.returncode == 0
        assert "Traceback" not in err
        assert len(project.sql("select * from ledger where state = 'scored'")) == 2


def test_sigterm_leaves_a_tick_that_outlasts_grace_and_says_one_line(tmp_path: Path) -> None:
    with StubProvider(latency=30.0) as slow:
        project = judged(tmp_path, slow, every="1h", grace="1s")
        project.append(answer("a"))
        worker = project.start("run", "--port", "0")
        _until(lambda: bool(slow.requests))
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=30)

    assert worker.returncode == 0
    assert len(err.splitlines()) == 3, err
    assert "the tick did not end within `grace`: it is left where it is" in err


def test_a_port_that_is_taken_is_told_in_words(tmp_path: Path, stub: StubProvider) -> None:
    project = Project.create(tmp_path)

    ran = project.run("run", "--port", stub.base_url.split(":")[2].split("/")[0])

    assert ran.code == 1
    assert "--port picks another" in ran.err
    assert "Traceback" not in ran.err


def test_run_beyond_loopback_wants_a_token(tmp_path: Path) -> None:
    project = Project.create(tmp_path)

    ran = project.run("run", "--host", "0.0.0.0", "--port", "0")

    assert ran.code == 2
    assert "EVALUATOR_HTTP__TOKEN" in ran.err


def test_run_with_collect_takes_otlp_on_its_own_port_and_judges_it(tmp_path: Path) -> None:
    project = Project.create(tmp_path, every="1s", collect={"http_port": 0, "grpc_port": 0})
    worker = project.start("run", "--collect", "--port", "0")
    try:
        assert worker.stderr is not None
        address = next(line for line in worker.stderr if "serving on" in line).split()[-1]
        body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [_otlp_span()]}]}]}).encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        request = urllib.request.Request(f"{address}/v1/traces", gzip.compress(body), headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            taken = response.status
        _until(
            lambda: 'evaluator_results_total{result="pass",scorer="greets"} 1.0' in _get(f"{address}/metrics")
        )
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=30)
    finally:
        worker.kill()

    assert (taken, worker.returncode) == (200, 0)


def _otlp_span() -> dict[str, object]:
    now = time.time_ns()
    return {
        "traceId": "a" * 32,
        "spanId": "b" * 16,
        "name": "chat",
        "startTimeUnixNano": str(now - 10**9),
        "endTimeUnixNano": str(now),
        "attributes": [{"key": "output.value", "value": {"stringValue": "Hello"}}],
    }


def test_once_waits_for_a_worker_and_does_not_wait_for_a_dead_one(tmp_path: Path) -> None:
    with StubProvider(latency=4.0) as slow:
        project = judged(tmp_path, slow)
        project.append(answer("a"))
        first = project.start("once", "--json")
        _until(lambda: bool(slow.requests))
        refused = project.run("once", "--no-wait", "--json")
        first.send_signal(signal.SIGKILL)
        first.communicate()
        began = time.monotonic()
        slow.latency = 0.0
        second = project.run("once", "--json").json()

    [note] = refused.json()["notes"]
    assert (refused.code, refused.err) == (0, f"{note}\n")
    assert note.startswith("another worker is at work: process")
    assert second["results"] == 2
    assert time.monotonic() - began < 20


def _until(holds: "object", seconds: float = 30) -> None:
    """Wait for something to become true; a timeout is a failure."""
    assert callable(holds)
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not become true in time"
        time.sleep(0.1)


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            text: str = response.read().decode()
            return text
    except OSError as error:
        return str(error)


def test_times_are_shown_in_the_configured_zone_and_stay_utc_in_json(tmp_path: Path) -> None:
    project = Project.create(tmp_path, timezone="Asia/Tokyo")
    project.append(answer("a", at=NOON))

    assert "2026-11-20 21:00:00" in project.run("traces").out
    assert "2026-11-20 21:00:00" in project.run("sql", "select start_time from traces").out
    assert project.sql("select start_time from traces") == [{"start_time": "2026-11-20T12:00:00+00:00"}]
