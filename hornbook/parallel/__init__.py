"""One model on many processes, on torch's own engine: each file here transforms a built model from outside."""
