"""What judges: `once`, `eval`, `try`, `retry`, `pause`, `resume`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
