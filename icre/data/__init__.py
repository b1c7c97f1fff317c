"""Image files to training batches, independent of any cluster."""
