"""What judges a record: guideline judges and code."""
