"""One training step and what it needs, on one or many workers."""
