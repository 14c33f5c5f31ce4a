"""The command `evaluator`: it finds the command, and turns an error into a sentence and an exit code."""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from evaluator import __version__
from evaluator.cli import evaluate, inspect, live, serve, setup, trials, upkeep
from evaluator.errors import EvaluatorError
from evaluator.footprint import keep_small

keep_small()
os.environ.setdefault(
    "LITELLM_LOCAL_MODEL_COST_MAP", "True"
)  # without it, importing litellm tries the network

app = typer.Typer(
    name="evaluator",
    help="Continuous evaluation of AI agents in production, on open tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (setup, serve, live, evaluate, trials, inspect, upkeep):
    commands.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"evaluator {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Continuous evaluation of AI agents in production, on open tables."""


def main() -> None:
    """Run one command. An EvaluatorError is said on stderr, without a traceback, and gives its exit code."""
    _replace_closed()
    ending = _Ending()
    atexit.register(ending.leave)  # comes last of all that is registered from here on
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where it is known what to do when nobody reads on
    except SystemExit as done:
        ending.code = done.code
        raise
    except EvaluatorError as error:
        print(error, file=sys.stderr)
        ending.code = error.exit_code
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ending.code = 1
        raise SystemExit(1) from None


class _Ending:
    """Ends a process whose command is done before the interpreter takes itself apart.

    A thread of Arrow's may give back a piece of a file that it has read a moment ago; when the interpreter is on its way
    out by then, the process aborts (pyarrow 25.0), and a command that did all it had to do ends with a signal.
    """

    def __init__(self) -> None:
        self.code: object = "not known"
        """The exit code once the command has one; what is no number is left to the interpreter to tell."""

    def leave(self) -> None:
        if self.code is None or isinstance(self.code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code or 0)


def _replace_closed() -> None:
    """Let what is printed to a closed stdout or stderr (`>&-`) go nowhere: Python has None in their place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 -- open to the end


if __name__ == "__main__":
    main()
