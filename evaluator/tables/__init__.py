"""Spans, annotations and the ledger, as Delta tables."""
