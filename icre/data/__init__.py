"""From image files to training batches, without a cluster."""
