"""An evaluation as a file: JSON for machines, HTML for people, JUnit for a pipeline."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from jinja2 import Environment, StrictUndefined

from evaluator.errors import ConfigurationError, EvaluatorError
from evaluator.feedback import Assessment, Feedback
from evaluator.offline import Evaluation
from evaluator.resources import shipped_file

FORMS = (".json", ".html", ".xml")
WORST_SHOWN = 200


def check_output(path: Path) -> None:
    """Raises ConfigurationError for a file that could not be written in the end, before anything is paid for."""
    if path.suffix not in FORMS:
        raise ConfigurationError(f"--output: {path} must end in .json, .html or .xml")
    if not path.parent.is_dir():
        raise ConfigurationError(f"--output: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigurationError(f"--output: {path} is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"--output: no permission to write {path}")


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write the report that the file's ending asks for. Raises EvaluatorError."""
    content = {".json": as_json, ".html": as_html, ".xml": as_junit}[path.suffix](evaluation)
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise EvaluatorError(f"{path}: cannot be written: {error.strerror}") from error


def as_json(evaluation: Evaluation) -> str:
    """The summary, and every result."""
    told = {
        "from": evaluation.range.start.isoformat(),
        "to": evaluation.range.end.isoformat(),
        "summary": evaluation.summary.to_json(),
        "results": [_result(evaluation, assessment) for assessment in evaluation.assessments],
    }
    return json.dumps(told, ensure_ascii=False, indent=1, default=_time)


def as_html(evaluation: Evaluation) -> str:
    """One page that needs nothing else; every text of a trace is escaped."""
    results = [_result(evaluation, assessment) for assessment in evaluation.assessments]
    worst = [result for result in results if result["passed"] is False or result["error"]]
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(shipped_file("report.html.jinja").read_text(encoding="utf-8"))
    return page.render(
        range=evaluation.range,
        summary=evaluation.summary.to_json(),
        reasons={name: counted.unscored for name, counted in evaluation.summary.scorers.items()},
        worst=worst[:WORST_SHOWN],
        left_out=max(len(worst) - WORST_SHOWN, 0),
        total=len(results),
    )


def as_junit(evaluation: Evaluation) -> str:
    """A test suite for each scorer, a test case for each trace; what has no verdict is skipped, never failed."""
    root = ET.Element("testsuites", name="evaluator")
    for name in sorted({assessment.name for assessment in evaluation.assessments}):
        of_scorer = [assessment for assessment in evaluation.assessments if assessment.name == name]
        failures = sum(_passed(assessment) is False for assessment in of_scorer)
        skipped = sum(_passed(assessment) is None for assessment in of_scorer)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(of_scorer)),
            failures=str(failures),
            errors="0",
            skipped=str(skipped),
        )
        for assessment in of_scorer:
            _junit_case(suite, evaluation, assessment)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _junit_case(suite: ET.Element, evaluation: Evaluation, assessment: Assessment) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=assessment.name,
        name=assessment.target.target_id,
        time=f"{(assessment.scored.usage.latency_ms or 0) / 1000:.3f}",
    )
    result = _result(evaluation, assessment)
    passed = _passed(assessment)
    if passed is False:
        failure = ET.SubElement(case, "failure", message=_xml(f"{result['value']}"))
        failure.text = _xml(result["rationale"] or "")
    elif passed is None:
        ET.SubElement(case, "skipped", message=_xml(result["error"] or f"no verdict: {result['value']}"))


def _passed(assessment: Assessment) -> bool | None:
    outcome = assessment.scored.outcome
    return outcome.passed if isinstance(outcome, Feedback) else None


def _result(evaluation: Evaluation, assessment: Assessment) -> dict[str, Any]:
    outcome, usage = assessment.scored.outcome, assessment.scored.usage
    trace = evaluation.traces.get(assessment.target.trace_id)
    feedback = outcome if isinstance(outcome, Feedback) else None
    return {
        "trace_id": assessment.target.trace_id,
        "span_id": assessment.target.span_id,
        "session_id": assessment.target.session_id,
        "start_time": None if trace is None else trace.start_time,
        "service_name": None if trace is None else trace.service_name,
        "scorer": assessment.name,
        "version": assessment.version,
        "revision": assessment.revision,
        "value": None if feedback is None else feedback.value,
        "passed": None if feedback is None else feedback.passed,
        "rationale": None if feedback is None else feedback.rationale,
        "error": None if feedback is not None else f"{outcome.reason}: {outcome.detail}",  # type: ignore[union-attr]
        "reused": assessment.run_id != evaluation.summary.run_id,
        "model": usage.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": usage.cost_usd,
        "latency_ms": usage.latency_ms,
    }


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot carry, not even escaped."""
    return "".join(
        char
        for char in text
        if char in "\t\n\r"
        or "\x20" <= char <= "\ud7ff"
        or "\ue000" <= char <= "\ufffd"
        or char >= "\U00010000"
    )


def _time(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
