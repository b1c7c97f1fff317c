"""From images to batches: catalog, prepare, read, feed."""
