"""Speed and memory, beside their references in the same run."""
