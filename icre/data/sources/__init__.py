"""Data set layouts, one module each, which turn file names into records."""
