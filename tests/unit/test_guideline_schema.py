"""The published JSON Schema and the starters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluator.guidelines.files import load_guidelines
from evaluator.guidelines.schema import json_schema
from evaluator.resources import shipped

FILES = sorted(shipped("guidelines").glob("*.yaml"))
SCHEMA = shipped("guidelines") / "guidelines.schema.json"


def test_the_published_schema_is_made_from_the_types() -> None:
    published = SCHEMA.read_text()

    assert published == json_schema(), "run: python -m evaluator.guidelines.schema"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_starter_names_the_schema_on_its_first_line(file: Path) -> None:
    first = file.read_text().splitlines()[0]

    assert first == "# yaml-language-server: $schema=./guidelines.schema.json"


def test_the_starters_are_free_of_mistakes_and_hold_the_judges_of_a_support_manager() -> None:
    definitions = load_guidelines(shipped("guidelines")).definitions

    judges = [definition.name for definition in definitions if type(definition).__name__ == "JudgeDefinition"]
    assert judges[0] == "actionable_insights"
    assert 4 <= len(judges) <= 6
    assert (
        "The response must provide at least one concrete, data-backed recommendation." in FILES[0].read_text()
    )


def test_an_editor_knows_the_starters_as_valid_and_a_typo_as_none(tmp_path: Path) -> None:
    typo = tmp_path / "typo.yaml"
    typo.write_text("scorers: [{name: a, builtin: latency, options: {atmost: 3s}}]")

    def check(*files: Path) -> int:
        command = [sys.executable, "-m", "check_jsonschema", "--schemafile", SCHEMA, *files]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert check(*FILES) == 0
    assert check(typo) == 1


def test_every_field_of_the_schema_says_what_it_is_for() -> None:
    schema = json.loads(SCHEMA.read_text())
    for name in ("JudgeEntry", "SqlEntry", "RegexEntry", "PythonEntry", "BuiltinEntry"):
        fields = schema["$defs"][name]["properties"]

        assert [field for field, told in fields.items() if "description" not in told] == []
