"""What a run will cost and how it follows from one dial."""
