"""When ticks run: one at once, or every so often for months."""
