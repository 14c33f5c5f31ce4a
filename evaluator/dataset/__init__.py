"""Which trace gets which scorer, and what a scorer sees of it."""
