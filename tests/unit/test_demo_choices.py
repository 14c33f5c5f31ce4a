"""What the demo chooses and touches before it runs."""

import shutil
from pathlib import Path

import pytest
import yaml

from evaluator.config import load_config
from evaluator.demo import judges
from evaluator.demo.__main__ import (
    EMBEDDED_JUDGE,
    MARK,
    fresh_folder,
    own_environment,
    tune_guidelines,
    write_configuration,
)
from evaluator.demo.judges import PROVIDERS, DemoJudge, choose_judge
from evaluator.errors import ConfigurationError

STARTERS = Path(__file__).parents[2] / "guidelines"


def a_judge(kind: str) -> DemoJudge:
    return DemoJudge(kind=kind, model=None, base_url=None, note="")  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "model"), PROVIDERS.items())
def test_a_provider_s_key_chooses_that_provider(key: str, model: str) -> None:
    judge = choose_judge({key: "a-key", "HOME": "/"})

    assert (judge.kind, judge.model) == ("provider", model)
    assert key in judge.note


def test_a_named_model_goes_before_a_key() -> None:
    judge = choose_judge({"EVALUATOR_JUDGE__MODEL": "ollama/llama3", "OPENAI_API_KEY": "a-key"})

    assert judge.model == "ollama/llama3"


def test_without_a_key_the_embedded_model_is_called_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "available", lambda: True)

    judge = choose_judge({})

    assert judge.kind == "embedded"
    assert "at chance: its verdicts mean nothing" in judge.note


def test_without_the_embedded_model_s_wheel_the_code_scorers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "available", lambda: False)

    judge = choose_judge({})

    assert (judge.kind, judge.model) == ("none", None)
    assert "wheel" in judge.note


def test_only_a_folder_of_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    folder = fresh_folder(tmp_path / "demo-output")
    (folder / "old").touch()

    assert [path.name for path in fresh_folder(folder).iterdir()] == [MARK]
    (folder / MARK).unlink()
    (folder / "mine").touch()

    with pytest.raises(ConfigurationError, match="not the demo's"):
        fresh_folder(folder)
    assert (folder / "mine").exists()


def test_the_demo_does_not_see_somebody_s_real_tables() -> None:
    environment = {
        "EVALUATOR_TABLES": "s3://real",
        "EVALUATOR_JUDGE__MODEL": "m",
        "PATH": "/bin",
        "OTEL_X": "1",
    }

    assert own_environment(environment) == {"EVALUATOR_JUDGE__MODEL": "m", "PATH": "/bin"}


@pytest.mark.parametrize("kind", ["provider", "embedded", "none"])
def test_the_configuration_and_the_tuned_guidelines_are_valid(kind: str, tmp_path: Path) -> None:
    shutil.copytree(STARTERS, tmp_path / "guidelines")
    starters = yaml.safe_load((STARTERS / "judges.yaml").read_text())["judges"]
    expected = {"provider": {one["name"] for one in starters}, "embedded": {EMBEDDED_JUDGE}, "none": set()}

    write_configuration(tmp_path, a_judge(kind))
    kept = tune_guidelines(tmp_path / "guidelines", a_judge(kind))

    assert kept == expected[kind]
    assert load_config(tmp_path / "evaluator.yaml", environment={}).settle.total_seconds() == 0
