"""Everything between a prompt and a completion."""
