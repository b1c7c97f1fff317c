"""Cluster jobs: checks before submission, and following a job to its end."""
