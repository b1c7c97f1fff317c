"""Clusters for the pipelines: local, Kubernetes and monitoring."""
