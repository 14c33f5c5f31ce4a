"""What the evaluator says of itself: log lines, and its calls to models as spans."""

SERVICE = "agent-evaluator"

OWN = "evaluator.telemetry"
"""The resource attribute that the evaluator's own spans carry, so that none of them is ever collected or judged: each
judged span would make further spans."""
