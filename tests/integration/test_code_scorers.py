"""A user's own Python, in its process: whatever it does ends with the record it did it for."""

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Outcome, Reason, Unscored
from evaluator.guidelines.definitions import PythonDefinition
from evaluator.scorers.code import CodeScorer
from evaluator.scorers.process import ScorerProcess
from tests.a_trace import a_record, a_tool_call

Build = Callable[..., CodeScorer]


@pytest.fixture
async def scorer(tmp_path: Path) -> AsyncIterator[Build]:
    """Builds a scorer out of the source of its module."""
    processes: list[ScorerProcess] = []

    def build(source: str, name: str = "judge", seconds: float = 20.0) -> CodeScorer:
        (tmp_path / "mine.py").write_text(textwrap.dedent(source))
        processes.append(ScorerProcess("mine", tmp_path, call_seconds=seconds))
        return CodeScorer(PythonDefinition(name="a", python=f"mine:{name}"), processes[-1], tmp_path)

    yield build
    for process in processes:
        await process.close()


async def outcomes(scorer: CodeScorer, *records: Record) -> list[Outcome]:
    return [scored.outcome for scored in await scorer.score(records)]


def passed(passed: bool, rationale: str) -> Feedback:
    return Feedback(value="yes" if passed else "no", passed=passed, rationale=rationale)


def failed(detail: str) -> Unscored:
    return Unscored(reason=Reason.SCORER_FAILED, detail=detail)


async def test_a_function_is_called_by_the_names_of_its_parameters(scorer: Build) -> None:
    code = scorer(
        """
        def judge(outputs, *, inputs, trace=None, other=3):
            return f"{inputs}|{outputs}|{trace['duration_ms']}|{trace['tools']}|{trace['spans'][0]['tool_name']}"
        """
    )

    [outcome] = await outcomes(code, a_record(request="a", response="b", steps=(a_tool_call(),)))

    assert outcome == Feedback(
        value="a|b|2000.0|['search']|search",
        passed=None,
        rationale="judge returned \"a|b|2000.0|['search']|search\"",
    )


async def test_every_sort_of_result_is_told_apart(scorer: Build) -> None:
    code = scorer(
        """
        import enum, numpy
        class Rating(enum.Enum):
            YES = "yes"
        RESULTS = {
            "true": True, "no": "no", "PASS": "PASS", "number": 0.5, "word": "warm", "none": None,
            "enum": Rating.YES, "numpy": numpy.bool_(False), "nan": float("nan"), "list": [True], "dict": {},
        }
        def judge(outputs):
            return RESULTS[outputs]
        """
    )
    names = ["true", "no", "PASS", "number", "word", "none", "enum", "numpy", "nan", "list", "dict"]

    results = await outcomes(code, *(a_record(response=name) for name in names))

    told = dict(zip(names, results, strict=True))
    assert told["true"] == passed(True, "judge returned True")
    assert told["no"] == passed(False, "judge returned 'no'")
    assert told["PASS"] == passed(True, "judge returned 'PASS'")
    assert told["number"] == Feedback(value=0.5, passed=None, rationale="judge returned 0.5")
    assert told["word"] == Feedback(value="warm", passed=None, rationale="judge returned 'warm'")
    assert told["none"] == Unscored(reason=Reason.NOT_APPLICABLE, detail="judge returned None")
    assert told["enum"] == passed(True, "judge returned 'yes'")
    assert told["numpy"] == passed(False, "judge returned False")
    assert told["nan"] == failed("returned nan")
    for name in ("list", "dict"):
        outcome = told[name]
        assert isinstance(outcome, Unscored)
        assert outcome.detail.startswith(f"returned a value of type {name}; return a bool")


async def test_what_goes_wrong_with_one_record_is_no_other_ones_loss(scorer: Build) -> None:
    code = scorer(
        """
        import ctypes, os, subprocess, sys, time
        def judge(outputs):
            if outputs == "raise":
                raise KeyError("secret")
            if outputs == "exit":
                sys.exit(3)
            if outputs == "die":
                os._exit(3)
            if outputs == "hang":
                subprocess.Popen(["sleep", "60"])
                time.sleep(60)
            if outputs == "print":
                print("noise")
                os.write(1, b"noise")
                os.system("echo noise")
                assert sys.stdin.read() == ""
            return True
        """,
        seconds=1.5,
    )
    names = ["fine", "raise", "exit", "die", "hang", "print", "fine"]

    results = await outcomes(code, *(a_record(response=name) for name in names))

    fine = passed(True, "judge returned True")
    assert results == [
        fine,
        failed("raised KeyError (mine.py:5)"),
        failed("raised SystemExit (mine.py:7)"),
        failed("ended its process (exit code 3)"),
        Unscored(reason=Reason.SCORER_TIMEOUT, detail="took longer than 1.5 s"),
        fine,
        fine,
    ]


async def test_a_scorer_that_hangs_always_does_not_hold_up_the_tick(scorer: Build) -> None:
    code = scorer("import time\ndef judge(): time.sleep(60)", seconds=0.2)

    results = await outcomes(code, *[a_record()] * 20)

    assert [type(result) for result in results] == [Unscored] * 20
    assert results[-1] == Unscored(reason=Reason.SCORER_TIMEOUT, detail="not tried: 3 in a row took too long")


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("import nowhere", "module mine cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(1)", "module mine cannot be imported: SystemExit: 1"),
        ("import os\nos._exit(4)", "ended its process (exit code 4)"),
        ("x = 1", "judge is not a function"),
        ("class judge: pass", "judge is not a function"),
        ("async def judge(outputs): return True", "judge is async: write it as a plain function"),
        ("def judge(outputs, threshold): return True", "judge asks for threshold; there are inputs, outputs"),
        ("def judge(outputs, /): return True", "judge asks for outputs; there are inputs, outputs"),
    ],
)
async def test_a_scorer_that_cannot_be_called_says_so_for_each_record(
    scorer: Build, source: str, detail: str
) -> None:
    first, second = await outcomes(scorer(source), a_record(), a_record())

    assert first == second
    assert isinstance(first, Unscored)
    assert first.reason is Reason.SCORER_FAILED
    assert first.detail.startswith(detail)


async def test_an_mlflow_scorer_is_called_as_mlflow_calls_it(scorer: Build) -> None:
    code = scorer(
        """
        from mlflow.entities import AssessmentError, Feedback
        from mlflow.genai import scorer
        @scorer
        def judge(outputs, trace):
            if outputs == "error":
                return Feedback(error=AssessmentError(error_code="BUSY", error_message="secret"))
            if outputs == "list":
                return [Feedback(value=True)]
            return Feedback(value=trace["status"] == "OK", rationale="The status is fine.")
        """
    )

    good, bad, nonsense = await outcomes(code, *(a_record(response=text) for text in ("a", "error", "list")))

    assert good == passed(True, "The status is fine.")
    assert bad == failed("returned a Feedback with the error BUSY")
    assert isinstance(nonsense, Unscored)
    assert nonsense.detail.startswith("returned a value of type list")


async def test_a_lone_surrogate_and_a_megabyte_reach_the_function(scorer: Build) -> None:
    code = scorer("def judge(inputs, outputs): return len(inputs) + len(outputs)")

    [outcome] = await outcomes(code, a_record(request="\ud800", response="é" * 1_000_000))

    assert isinstance(outcome, Feedback)
    assert outcome.value == 1_000_001


async def test_a_call_that_is_given_up_leaves_no_reply_for_the_next_one(scorer: Build) -> None:
    code = scorer(
        """
        import time
        def judge(outputs):
            time.sleep(float(outputs))
            return outputs
        """
    )
    await outcomes(code, a_record(response="0"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(code.score([a_record(response="5")]), timeout=0.3)
    [outcome] = await outcomes(code, a_record(response="0.0"))

    assert isinstance(outcome, Feedback)
    assert outcome.value == "0.0"


async def test_closing_ends_the_process_and_the_next_call_starts_another(scorer: Build) -> None:
    code = scorer("import os\ndef judge(): return os.getpid()")
    [first] = await outcomes(code, a_record())

    await code.close()

    assert isinstance(first, Feedback)
    with pytest.raises(ProcessLookupError):
        os.kill(int(first.value), 0)
    [second] = await outcomes(code, a_record())
    assert isinstance(second, Feedback)
    assert second.value != first.value


async def test_a_version_changes_with_the_modules_source_and_with_nothing_else(
    scorer: Build, tmp_path: Path
) -> None:
    source = "def judge(): return True\ndef other(): return True\n"
    code = scorer(source)

    assert scorer(source).version == code.version
    assert scorer(source, "other").version != code.version
    assert scorer(source + "# edited\n").version != code.version
    renamed = PythonDefinition(name="b", python="mine:judge", filter="true", sample_rate=0.1)
    scorer(source)
    assert CodeScorer(renamed, ScorerProcess("mine", tmp_path), tmp_path).version == code.version


async def test_what_no_table_can_hold_does_not_reach_one(scorer: Build) -> None:
    code = scorer(
        """
        def judge(inputs):
            return {"surrogate": "a\\ud800b\\x00", "integer": 2**70}[inputs]
        """
    )

    text, integer = await outcomes(code, a_record(request="surrogate"), a_record(request="integer"))

    assert isinstance(text, Feedback)
    assert text.value == "a\ufffdb\ufffd"
    assert integer == failed("judge returned a number that no table can hold")
