"""What listens and runs for long: `run`, `collect`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
