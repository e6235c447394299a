"""The invariants that everything else rests on, each a function that proves one here and returns a figure."""
