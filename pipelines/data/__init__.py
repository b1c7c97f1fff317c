"""The data pipeline from images to batches: catalog, prepare, read, feed."""
