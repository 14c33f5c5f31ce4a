"""OTLP in, tables out."""
