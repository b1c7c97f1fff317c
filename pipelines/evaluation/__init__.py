"""Evaluation: features from a checkpoint, and metrics from features."""
