"""One training step and its components, on one or many workers."""
