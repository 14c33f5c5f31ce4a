"""The demo as a whole: the real commands over the real agent's traces, with code scorers alone."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from evaluator.demo.__main__ import Demo, fresh_folder, write_configuration
from evaluator.demo.judges import DemoJudge
from evaluator.demo.questions import QUESTIONS
from evaluator.demo.summary import print_outcome


@pytest.mark.slow
def test_the_demo_shows_what_went_well_and_what_did_not(tmp_path: Path) -> None:
    judge = DemoJudge(kind="none", model=None, base_url=None, note="none: code scorers only")
    folder = fresh_folder(tmp_path / "demo-output")
    write_configuration(folder, judge)
    console = Console(file=StringIO(), width=120)

    outcome = Demo(folder, judge, console).run()
    print_outcome(outcome, folder, console)

    assert outcome.once["traces"] == len(QUESTIONS)
    assert outcome.mlflow_traces == len(QUESTIONS)
    assert outcome.mlflow_feedback == outcome.once["results"]
    failed = {name: counted["failed"] for name, counted in outcome.once["scorers"].items()}
    expected = ("no_pii", "fast_enough", "no_tool_errors", "no_repeated_tool_calls", "used_a_tool")
    assert [name for name in expected if not failed[name]] == []
    assert [failure["name"] for failure in outcome.failures] == ["no_pii", "fast_enough", "no_tool_errors"]
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert f"{len(QUESTIONS)} traces of the support-manager agent" in text
    assert "Please export the weekly report." in text
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in text
