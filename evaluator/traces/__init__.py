"""Spans in, whole traces out."""
