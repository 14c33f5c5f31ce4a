"""What was asked: the judges and scorers that guideline files declare."""
