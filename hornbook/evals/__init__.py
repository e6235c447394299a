"""What a model is worth: tasks, scores with intervals, and the report of a run."""
