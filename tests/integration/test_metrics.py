"""What Prometheus reads of a worker: a turn with refusals and unreadable answers, and what was collected meanwhile."""

import json
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.project import Project
from tests.stub_provider import StubProvider
from tests.traffic import answer

JUDGES = """
judges:
  - {name: polite, guidelines: Be polite.}
  - {name: brief, guidelines: Be brief., batch: joint}
  - {name: kind, guidelines: Be kind., batch: joint}
"""


@pytest.fixture
def stub() -> Iterator[StubProvider]:
    with StubProvider(cached_tokens=5, retry_after="0") as provider:
        yield provider


class Page:
    """A worker's metrics as they are now, by name and labels."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as response:
            text = response.read().decode()
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, *sorted(labels.items())))


def test_the_page_after_a_turn_with_refusals(tmp_path: Path, stub: StubProvider) -> None:
    stub.script = ["429", "ok", "500"]
    judge = {"model": "openai/gpt-4o-mini", "base_url": stub.base_url, "timeout": "5s", "max_concurrency": 1}
    collect = {"http_port": 0, "grpc_port": 0}
    project = Project.create(tmp_path, JUDGES, judge=judge, every="1h", collect=collect)
    project.append(answer("a"))
    worker = project.start("run", "--collect", "--port", "0")
    try:
        assert worker.stderr is not None
        address = next(line for line in worker.stderr if "serving on" in line).split()[-1]
        _post(f"{address}/v1/traces", [_otlp_span("b")], own=False)
        _post(f"{address}/v1/traces", [_otlp_span("c"), _otlp_span("d")], own=True)
        _until(lambda: Page(address).value("evaluator_ticks_total", outcome="done") == 1)
        page = Page(address)
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=30)
    finally:
        worker.kill()

    assert (worker.returncode, "Traceback" in err) == (0, False)
    model, joint = {"model": "openai/gpt-4o-mini"}, "brief+kind"
    calls = {
        (judge, outcome): page.value("evaluator_model_calls_total", judge=judge, outcome=outcome, **model)
        for judge in ("polite", joint)
        for outcome in ("answered", "rate_limited", "unavailable")
    }
    assert sum(value or 0 for value in calls.values()) == stub.count == 4
    assert calls["polite", "answered"] == calls[joint, "answered"] == 1
    assert [value for (_, outcome), value in calls.items() if outcome == "rate_limited" and value] == [1]
    retries = [
        page.value("evaluator_model_retries_total", judge=judge, **model) for judge in ("polite", joint)
    ]
    assert sum(value or 0 for value in retries) == 2
    assert page.value("evaluator_model_call_seconds_count", **model) == 4
    assert page.value("evaluator_model_cached_tokens_total", judge="polite", **model) == 5
    assert (page.value("evaluator_model_tokens_total", judge=joint, direction="input", **model) or 0) > 100
    assert (page.value("evaluator_model_cost_usd_total", judge=joint, **model) or 0) > 0
    assert page.value("evaluator_model_in_flight", **model) == 0
    assert page.value("evaluator_results_total", scorer="kind", result="pass") is not None
    assert page.value("evaluator_commits_behind") is not None
    assert page.value("evaluator_backlog", state="deferred") == 0
    assert page.value("evaluator_sink_behind", sink="annotations") == 0
    records = [
        page.value("evaluator_collector_records_total", signal="traces", outcome=outcome)
        for outcome in ("accepted", "refused", "own")
    ]
    assert records == [1, 0, 2]
    assert page.value("evaluator_collector_commits_total", signal="traces", outcome="done") == 1


def _otlp_span(name: str) -> dict[str, Any]:
    now = time.time_ns()
    return {
        "traceId": name.encode().hex().rjust(32, "0"),
        "spanId": name.encode().hex().rjust(16, "0"),
        "name": name,
        "startTimeUnixNano": str(now),
        "endTimeUnixNano": str(now),
    }


def _post(url: str, spans: list[dict[str, Any]], *, own: bool) -> None:
    attributes = [{"key": "evaluator.telemetry", "value": {"boolValue": True}}] if own else []
    groups = [{"resource": {"attributes": attributes}, "scopeSpans": [{"spans": spans}]}]
    body = json.dumps({"resourceSpans": groups}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answered = json.load(response)
    assert answered.get("partialSuccess", {}).get("rejectedSpans", "0") == (str(len(spans)) if own else "0")


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.1)
