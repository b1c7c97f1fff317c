"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.local.object_store import ObjectStore


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """A real S3 server with an empty bucket. A test that kills it restarts it."""
    with ObjectStore(bucket="icre-tests") as store:
        yield store
