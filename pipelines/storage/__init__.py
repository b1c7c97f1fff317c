"""Storage of whole objects on disk or in S3, addressed by URL."""

from pipelines.storage.storage import Storage

__all__ = ["Storage"]
