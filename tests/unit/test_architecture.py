"""The house: imports point down only, and foreign libraries have one door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "evaluator"

FLOORS = [
    ("cli", "demo"),
    ("commands",),
    ("worker",),
    ("wiring",),
    ("guidelines",),
    ("engines",),
    ("tick", "offline"),
    ("session_chunk",),
    ("chunk",),
    ("live",),
    ("publish", "notes", "score", "opened"),
    ("decisions", "ports"),
    ("telemetry.genai", "telemetry.spans"),
    ("scorers", "sinks", "collector"),
    ("tables", "dataset"),
    ("traces.assembly", "traces.tree", "traces.columns"),
    ("models", "guidelines.definitions"),
    ("schedule",),
    ("config", "resources"),
    ("access", "footprint", "summary", "lease", "yamlfile", "redaction", "telemetry"),
    ("traces", "feedback", "quality", "portions", "shards"),
    ("errors",),
]
"""From the top floor down. A file may import from floors below its own, and from its own room."""


def modules() -> dict[str, Path]:
    return {
        ".".join(("evaluator", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path: Path) -> Iterator[str]:
    """The modules that a file names in its imports, also within functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor(module: str) -> int | None:
    """The floor of a module: that of the longest name on the list which it lies under."""
    inner = module.removeprefix("evaluator.")
    matches = [
        (len(room), index)
        for index, rooms in enumerate(FLOORS)
        for room in rooms
        if inner == room or inner.startswith(f"{room}.")
    ]
    return max(matches)[1] if matches else None


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else module


def test_every_file_has_a_floor() -> None:
    homeless = [name for name in modules() if name != "evaluator" and floor(name) is None]

    assert homeless == []


def test_imports_point_down_only() -> None:
    known = modules()
    upward = [
        f"{name} -> {imported}"
        for name, path in known.items()
        for imported in imports(path)
        if imported in known
        and imported != "evaluator"
        and name != "evaluator"
        and room(imported) != room(name)
        if (floor(imported) or 0) <= (floor(name) or 0)
    ]

    assert upward == []


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("deltalake", {"tables.delta", "tables.snapshot"}),
        ("mlflow", {"sinks.mlflow_child", "collector.tee_child"}),
        ("litellm", {"models.litellm", "demo.planner"}),
        ("xllamacpp", {"models.local"}),
        ("databricks", {"tables.catalog"}),
    ],
)
def test_a_foreign_library_has_one_door(library: str, doors: set[str]) -> None:
    found = {
        name.removeprefix("evaluator.")
        for name, path in modules().items()
        if any(imported == library or imported.startswith(f"{library}.") for imported in imports(path))
    }

    assert found <= doors


def test_the_main_paths_import_no_concrete_part() -> None:
    concrete = (
        "tables.delta",
        "tables.ledger",
        "tables.spans",
        "sinks.annotations",
        "sinks.mlflow",
        "models",
        "scorers",
    )
    known = modules()
    named = [
        imported
        for path in ("tick", "offline", "chunk", "session_chunk", "publish")
        for imported in imports(known[f"evaluator.{path}"])
        if imported.startswith(tuple(f"evaluator.{part}" for part in concrete))
    ]

    assert named == []


def test_help_answers_without_heavy_imports() -> None:
    heavy = ["duckdb", "pyarrow", "deltalake", "aiohttp", "mlflow", "litellm", "grpc", "jinja2", "pydantic"]
    script = (
        f"import sys, evaluator.cli.main as main\nprint([name for name in {heavy} if name in sys.modules])"
    )

    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout

    assert printed.strip() == "[]"
