"""The training loop and what it takes: objectives, a meter, signals."""
