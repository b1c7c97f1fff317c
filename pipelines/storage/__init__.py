"""Whole objects on disk or in S3, by URL."""

from pipelines.storage.storage import Storage

__all__ = ["Storage"]
