"""Telemetry of a run during training."""
