"""From images to batches: survey, prepare, read, feed."""
