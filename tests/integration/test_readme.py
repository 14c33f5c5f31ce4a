"""The README's commands do what it says, in the order in which it gives them."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from evaluator.config import Config, Settings
from tests.project import Project
from tests.stub_provider import StubProvider
from tests.traffic import answer, trace_id

README = (Path(__file__).parents[2] / "README.md").read_text()
VERDICTS = {"--fail-under": {0, 3}, "--examples": {0, 1}, "attack-test": {0, 3}}
"""Options whose exit code is a judge's verdict, which a stub gives at random."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of the shell blocks that is ours, as words; comments and what a shell does itself left out."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "evaluator"]


def test_every_setting_is_told() -> None:
    """Of a part, by the names of its settings; what this version refuses is no setting."""
    start = README.index("| setting | default |")
    told = set(re.findall(r"[a-z_]+", README[start : README.index("## Add a judge", start)]))

    settings: set[str] = set()
    for name, field in Config.model_fields.items():
        part = field.annotation
        settings |= {name}
        if isinstance(part, type) and issubclass(part, Settings):
            settings |= part.model_fields.keys()

    assert settings - told == {"home", "alerts"}


def test_there_are_commands_to_run() -> None:
    assert len(commands()) >= 16


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    with StubProvider() as stub:
        environment = {
            "EVALUATOR_JUDGE__BASE_URL": stub.base_url,
            "EVALUATOR_JUDGE__MODEL": "openai/gpt-4o-mini",
            "EVALUATOR_SETTLE": "0s",
            "EVALUATOR_PYTHON_MODULES": "[my_team.*]",
            "EVALUATOR_COLLECT__HTTP_PORT": "0",
            "EVALUATOR_COLLECT__GRPC_PORT": "0",
            "EVALUATOR_HTTP__PORT": "0",
        }
        project = Project(folder=tmp_path, environment=environment)
        failed = []
        for arguments in commands():
            if arguments[0] == "init":
                ran = project.run(*arguments)
                _furnish(project, tmp_path / arguments[1])
            elif arguments[0] in ("collect", "run"):
                code = _starts_and_stops(project, *(word for word in arguments if word != "&"))
                failed += [f"{arguments}: exit {code}"] if code else []
                continue
            else:
                ran = project.run(*(word.replace("TRACE_ID", trace_id("a")) for word in arguments))
            expected = next((VERDICTS[word] for word in arguments if word in VERDICTS), {0})
            if ran.code not in expected:
                failed.append(f"{arguments}: exit {ran.code}: {ran.err}")

    assert failed == []


def test_the_guidelines_of_the_readme_have_no_mistake(tmp_path: Path) -> None:
    project = Project.create(tmp_path, blocks("yaml")[0], python_modules=["my_team.*"])
    more = [block for block in blocks("yaml")[1:] if block.startswith("judges:")]
    for number, block in enumerate(more):
        project.guide(block, f"more{number}.yaml")
    _team(tmp_path)

    checked = project.run("check")

    assert checked.code == 0, checked.err
    assert "actionable_insights" in checked.out
    assert "right_query" in checked.out
    assert "escalat" not in checked.err


def _furnish(project: Project, folder: Path) -> None:
    """What the README takes for given: the folder that it changes to, some traces, a draft, a judge named tone."""
    project.folder = folder
    project.append(answer("a", "Refunds rose by 12 %: add one person."), answer("b", "It depends."))
    example = blocks("yaml")[0]
    declared = yaml.safe_load(example)
    project.guide(
        yaml.safe_dump({"judges": [judge for judge in declared["judges"] if judge["name"] == "tone"]})
    )
    (folder / "draft.yaml").write_text(example)
    _team(folder)


def _team(folder: Path) -> None:
    (folder / "my_team").mkdir()
    (folder / "my_team" / "__init__.py").write_text("")
    (folder / "my_team" / "scorers.py").write_text("def follows_schema(outputs):\n    return bool(outputs)\n")


def _starts_and_stops(project: Project, *arguments: str) -> int:
    """Start what goes on for long, wait until it says that it serves, and end it."""
    process = project.start(*arguments)
    try:
        assert process.stderr is not None
        next(line for line in process.stderr if "serving on" in line or "collecting OTLP" in line)
        process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode
