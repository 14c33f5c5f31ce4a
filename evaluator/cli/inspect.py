"""What answers questions: `explain`, `status`, `traces`, `trace`, `sql`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
