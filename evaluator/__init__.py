"""Continuous evaluation of AI agents in production, on open tables."""

__version__ = "0.1.0"
