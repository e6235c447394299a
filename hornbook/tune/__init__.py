"""From a model that continues text to one that answers."""
