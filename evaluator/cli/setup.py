"""Setting up and checking: `init`, `check`."""

import asyncio
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluator.cli.options import ConfigFile, loaded
from evaluator.cli.show import print_table, say
from evaluator.errors import ConfigurationError, MistakesError, SinkError

if TYPE_CHECKING:
    from evaluator.config import Config


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(init)
    app.command()(check)


def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where to set up (default: here).")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Set up once: a configuration, starter guidelines, the trace tables, the ledger, the MLflow experiment.

    Run it again as often as you like: what is there stays as it is.

    Example: `evaluator init my-agent`
    """
    from evaluator.config import CONFIG_VARIABLE, DEFAULT_FILE
    from evaluator.resources import shipped, shipped_file
    from evaluator.tables.provision import provision
    from evaluator.wiring import build_publisher, build_tables

    file = config
    if file is None:
        import os

        named = os.environ.get(CONFIG_VARIABLE)
        file = Path(named) if named and folder is None else (folder or Path()) / DEFAULT_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(shipped_file("evaluator.yaml").read_text())
            print(f"{file} written")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be written: {error.strerror or error}") from error
    settings = loaded(file)
    guidelines = settings.path(settings.guidelines)
    if not guidelines.exists():
        shutil.copytree(shipped("guidelines"), guidelines)
        print(f"{guidelines} written: starter judges and scorers")
    for uri in provision(settings):
        print(f"{uri} created")
    if build_tables(settings).ledger.provision():
        print(f"{settings.table_uri('eval_ledger')} created")
    if "mlflow" in settings.publish or settings.collect.tee == "mlflow":
        try:
            asyncio.run(build_publisher(settings).ensure_experiment())
        except SinkError as error:
            say(f"{error}; the experiment is made when it is first needed")
        else:
            print(
                f'MLflow experiment "{settings.mlflow.experiment}" at {settings.mlflow.tracking_uri} is there'
            )
    elsewhere = config is None and folder not in (None, Path())
    there = f"`cd {shlex.quote(str(folder))}`, then " if elsewhere else ""
    print(
        f"Next: {there}`evaluator collect` receives traces, `evaluator once` judges them, `evaluator check` looks for mistakes."
    )


def check(
    config: ConfigFile = None,
    connect: Annotated[
        bool,
        typer.Option("--connect", help="Also open the tables and MLflow, and ask each model for one token."),
    ] = False,
    examples: Annotated[bool, typer.Option("--examples", help="Also run the judges' examples.")] = False,
) -> None:
    """Look for mistakes in the configuration and every guideline file, and tell them all at once.

    Example: `evaluator check --connect`
    """
    from evaluator.commands.check import check_configuration, check_guidelines
    from evaluator.config import load_what_holds

    settings, wrong = load_what_holds(config)
    if wrong:
        raise MistakesError([*wrong, *check_guidelines(settings)])
    settings = loaded(config)
    mistakes, warnings = check_configuration(settings, _file(config))
    say(*(str(warning) for warning in warnings))
    if mistakes:
        raise MistakesError(mistakes)
    failed = 0
    if connect:
        failed += asyncio.run(_connect(settings))
    if examples:
        failed += asyncio.run(_examples(settings))
    if failed:
        raise typer.Exit(1)
    from evaluator.guidelines.files import configured_guidelines

    names = [definition.name for definition in configured_guidelines(settings).definitions]
    print(f"{len(names)} judges and scorers, no mistakes: {', '.join(names)}")


def _file(named: Path | None) -> Path:
    """The configuration's file: the one that was named, or the usual one."""
    import os

    from evaluator.config import CONFIG_VARIABLE, DEFAULT_FILE

    return named or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)


async def _connect(settings: "Config") -> int:
    """Open everything, ask every model; the number of things that did not answer."""
    from evaluator.commands.connections import connections

    told = [connection async for connection in connections(settings)]
    print_table(("what", "state", "detail"), [(one.name, one.state, one.detail) for one in told])
    return sum(one.state == "failed" for one in told)


async def _examples(settings: "Config") -> int:
    """Run the judges' examples; how many came out otherwise than expected, or not at all."""
    from evaluator.commands.trials import run_examples

    results = await run_examples(settings)
    if not results:
        print("no judge has examples")
        return 0
    columns = ("judge", "example", "expected", "got", "rationale")
    print_table(columns, [(one.judge, one.number, one.expected, one.got, one.rationale) for one in results])
    return sum(not one.as_expected for one in results)
