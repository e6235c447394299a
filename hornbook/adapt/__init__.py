"""What acts on a built model from outside, through hooks and replaced modules, so that no layer knows of it."""
