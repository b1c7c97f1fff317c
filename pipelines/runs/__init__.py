"""The run folder: opening it, its networks, its provenance, and the lease on it."""
