"""What `deploy/` ships: valid, without a secret, not root, and its start commands start."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from evaluator.config import load_config

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
MANIFESTS = sorted(path for path in DEPLOY.glob("kubernetes/**/*.yaml") if path.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted(DEPLOY.glob("kubernetes/*/kustomization.yaml"))
UNITS = sorted(DEPLOY.glob("systemd/*.service"))


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_the_dockerfile_has_nothing_to_lint() -> None:
    linted = run(BIN / "hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile")

    assert linted.returncode == 0, linted.stdout


def test_the_image_installs_what_is_locked_and_is_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()

    installs = re.findall(r"pip install (.*)", text)
    assert all("--require-hashes" in one or "--no-deps" in one for one in installs)
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["10001:10001"]
    copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)).split()
    assert copied
    assert all((DEPLOY.parent / source).exists() for source in copied)


def test_the_compose_file_is_one() -> None:
    checked = run(
        BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"
    )

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_kubernetes_manifest_has_only_fields_that_kubernetes_knows(manifest: Path) -> None:
    checked = run(BIN / "kubernetes-validate", "--strict", manifest)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_manifest_is_applied_by_a_kustomization_and_every_name_in_one_is_there() -> None:
    applied = {
        (kustomization.parent / name).resolve()
        for kustomization in KUSTOMIZATIONS
        for name in loaded(kustomization)["resources"]
    }

    assert set(MANIFESTS) <= applied
    assert all(path.exists() for path in applied)


def pods() -> Iterator[dict[str, Any]]:
    for manifest in map(loaded, MANIFESTS):
        match manifest["kind"]:
            case "Deployment":
                yield manifest["spec"]["template"]["spec"]
            case "CronJob":
                yield manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_pods_meet_the_restricted_standard_and_outlive_a_tick() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["terminationGracePeriodSeconds"] > load_config(environment={}).grace.total_seconds()
        for container in pod["initContainers"] + pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_cron_job_never_runs_beside_itself() -> None:
    [job] = [one for one in map(loaded, MANIFESTS) if one["kind"] == "CronJob"]

    assert job["spec"]["concurrencyPolicy"] == "Forbid"


def test_no_secret_stands_in_a_file() -> None:
    for pod in pods():
        for container in pod["initContainers"] + pod["containers"]:
            for variable in container.get("env", []):
                assert "value" not in variable
                assert "secretKeyRef" in variable["valueFrom"]
    for service in loaded(DEPLOY / "compose.yaml")["services"].values():
        for value in service["environment"].values():
            assert value is None or value.startswith("${")


def configurations() -> dict[str, str]:
    found = {"compose": (DEPLOY / "evaluator.yaml").read_text()}
    for manifest in map(loaded, MANIFESTS):
        if manifest["kind"] == "ConfigMap":
            found["kubernetes"] = manifest["data"]["evaluator.yaml"]
    return found


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_a_shipped_configuration_is_understood_and_writes_to_the_volume_alone(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "evaluator.yaml"
    file.write_text(configurations()[name])

    config = load_config(file, environment={})

    for path in (config.table_uri("otel_spans"), config.path(config.state), config.path(config.guidelines)):
        assert str(path).startswith("/data/")


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed on this machine"
)
def test_systemd_finds_nothing_wrong_with_the_units_and_little_exposed(tmp_path: Path) -> None:
    units = []
    for unit in UNITS:
        text = unit.read_text().replace("/opt/evaluator/bin/", f"{BIN}/")
        units.append(tmp_path / unit.name)
        units[-1].write_text(text)

    verified = run("systemd-analyze", "verify", *units)
    exposed = [run("systemd-analyze", "security", "--offline=true", unit) for unit in units]

    assert [line for line in verified.stderr.splitlines() if "evaluator" in line] == []
    for one in exposed:
        [level] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", one.stdout)
        assert float(level) < 2


def test_a_unit_s_lines_are_settings_of_its_sections() -> None:
    for unit in UNITS:
        section = ""
        for line in unit.read_text().splitlines():
            if match := re.fullmatch(r"\[(\w+)\]", line):
                section = match[1]
            elif line and not line.startswith("#"):
                assert re.fullmatch(r"[A-Z]\w+=.*", line), line
                assert section in ("Unit", "Service", "Install")


def start_commands() -> dict[str, list[str]]:
    """What each artefact starts `evaluator` with, from the files."""
    found: dict[str, list[str]] = {}
    text = (DEPLOY / "Dockerfile").read_text()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)", text, re.MULTILINE)[0]) == ["evaluator"]
    found["image"] = json.loads(re.findall(r"^CMD (.*)", text, re.MULTILINE)[0])
    for name, service in loaded(DEPLOY / "compose.yaml")["services"].items():
        if "entrypoint" not in service:
            found[f"compose {name}"] = service["command"]
    for pod in pods():
        for container in pod["initContainers"] + pod["containers"]:
            found[f"kubernetes {' '.join(container['args'])}"] = container["args"]
    for unit in UNITS:
        for line in re.findall(
            r"^ExecStart(?:Pre)?=/opt/evaluator/bin/evaluator (.*)", unit.read_text(), re.MULTILINE
        ):
            found[f"systemd {line}"] = line.split()
    return found


def test_mlflow_s_server_knows_the_options_it_is_started_with() -> None:
    service = loaded(DEPLOY / "compose.yaml")["services"]["mlflow"]
    assert service["entrypoint"] == ["mlflow"]
    told = run(BIN / "mlflow", service["command"][0], "--help").stdout

    for argument in service["command"][1:]:
        assert argument.split("=")[0] in told


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `init` set up, with the annotations table as its one sink."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "evaluator.yaml").write_text("publish: [annotations]\nsettle: 0s\n")
    initialised = run(BIN / "evaluator", "init", cwd=folder)
    assert initialised.returncode == 0, initialised.stderr
    return folder


def an_environment(home: Path) -> dict[str, str]:
    """What the image's environment and the files' own give, with free ports in place of the fixed ones."""
    listening = {
        "EVALUATOR_HTTP__PORT": "0",
        "EVALUATOR_COLLECT__HTTP_PORT": "0",
        "EVALUATOR_COLLECT__GRPC_PORT": "0",
    }
    names = {"EVALUATOR_CONFIG": str(home / "evaluator.yaml"), "EVALUATOR_HTTP__TOKEN": "a-token"}
    judge = {"OPENAI_API_KEY": "a-key", "EVALUATOR_JUDGE__BASE_URL": "http://127.0.0.1:9/v1"}
    return {**os.environ, **listening, **names, **judge}


COMMANDS = start_commands()
LISTENS = {"run": "serving on", "collect": "collecting OTLP over"}
LISTENING = sorted(name for name, argv in COMMANDS.items() if argv[0] in LISTENS)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - set(LISTENING)))
def test_a_start_command_that_ends_does_its_work(name: str, home: Path, tmp_path: Path) -> None:
    done = run(BIN / "evaluator", *COMMANDS[name], cwd=tmp_path, env=an_environment(home))

    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # a read-only root file system is no hindrance


@pytest.mark.parametrize("name", LISTENING)
def test_a_start_command_that_listens_comes_up_and_ends_by_sigterm(
    name: str, home: Path, tmp_path: Path
) -> None:
    argv = [re.sub(r"(--(?:grpc-)?port)=\d+", r"\1=0", part) for part in COMMANDS[name]]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "evaluator", *argv], cwd=tmp_path, env=an_environment(home), stdout=output, stderr=output
        )
    try:
        for _ in range(300):
            found = re.search(
                rf"{LISTENS[argv[0]]} http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)", log.read_text()
            )
            if found:
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        assert found, log.read_text()
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=5).close()
        if argv[0] == "run":
            [address] = re.findall(r"serving on (http://\S+)", log.read_text())
            assert urlopen(f"{address}/healthz", timeout=5).status == 200
    finally:
        process.terminate()
        process.wait(30)

    assert process.returncode == 0, log.read_text()
