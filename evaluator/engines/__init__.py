"""Where the chunks of an evaluation run."""
