"""The stages of a run, each a function that is kept once it is done."""
