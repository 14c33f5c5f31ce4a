"""Setting up and checking: `init`, `check`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
