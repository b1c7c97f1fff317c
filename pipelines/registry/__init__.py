"""Models in service: an append-only history for each, a copy of every promoted checkpoint, and the lease of a tick."""
