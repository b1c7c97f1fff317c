"""Preparing to a real object store that is killed in the middle."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from cluster.local.object_store import ObjectStore
from icre import config
from icre.errors import DataError
from pipelines.data import ingest
from pipelines.data.prepared import MANIFEST, PreparedData
from pipelines.storage import Storage

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(240)]

OUTAGE_S = 10.0
SMALL_SHARDS = "data.shard_mib=0.0001"
"""One identity a shard, so that there are many shards to be interrupted between."""


@pytest.fixture
def place(object_store: ObjectStore) -> Iterator[Storage]:
    """An empty prefix of a store that is up again at the end."""
    yield Storage(f"{object_store.url}/{secrets.token_hex(6)}")
    if object_store.pid is None:
        object_store.restart()


def shard_bytes(data: PreparedData) -> dict[str, bytes]:
    return {shard["file"]: (data.location / shard["file"]).read_bytes() for shard in data.manifest["shards"]}


def until(condition: Callable[[], bool], *, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def receipts(location: Storage) -> list[str]:
    return [name for name in (location / "shards").list() if name.endswith(".json")]


@pytest.mark.slow
def test_a_store_that_comes_back_is_waited_for(recipes: Any, place: Storage, object_store: ObjectStore) -> None:
    whole, _ = ingest.prepare(recipes(SMALL_SHARDS))
    recipe = recipes(SMALL_SHARDS, f"storage={place.url}")
    location = place / "datasets" / recipe.data.name
    killed, back = threading.Event(), threading.Event()

    def outage() -> None:
        until(lambda: len(receipts(location)) >= 2)
        object_store.kill()
        killed.set()
        back.wait(OUTAGE_S)
        object_store.restart()
        back.set()

    disturber = threading.Thread(target=outage)
    disturber.start()
    try:
        data, written = ingest.prepare(recipe)
        # Had it been done before the kill, it would not have had to wait for the store.
        assert killed.is_set() and back.is_set() and written
    finally:
        disturber.join()
    assert data.manifest["shards"] == whole.manifest["shards"] and data.hash == whole.hash
    assert shard_bytes(data) == shard_bytes(whole)
    assert sorted((location / "shards").list()) == sorted(Path(file).name for file in shard_bytes(whole))


@pytest.mark.slow
def test_a_store_that_stays_away_is_an_error_and_the_same_command_goes_on_later(
    recipes: Any, place: Storage, object_store: ObjectStore, tmp_path: Path
) -> None:
    whole, _ = ingest.prepare(recipes(SMALL_SHARDS))
    recipe = recipes(SMALL_SHARDS, f"storage={place.url}")
    location = place / "datasets" / recipe.data.name
    code, error = _prepare_and_lose_the_store(recipe, location, object_store, tmp_path / "lost.yaml")
    assert code == 2, error
    # On a slow machine, lines of progress come first.
    assert "\nerror: " in f"\n{error}" and object_store.endpoint in error and "hint: " in error
    assert "Traceback" not in error

    object_store.restart()
    assert not (location / MANIFEST).exists()
    with pytest.raises(DataError):
        PreparedData.open(location)
    before = _written_at(object_store, location)
    finished = {name.replace(".json", ".parquet") for name in receipts(location)}
    assert 3 <= len(finished) < len(whole.manifest["shards"])
    data, written = ingest.prepare(recipe)
    after = _written_at(object_store, location)
    assert written and {name: after[name] for name in finished} == {name: before[name] for name in finished}
    assert shard_bytes(data) == shard_bytes(whole) and data.hash == whole.hash


def _prepare_and_lose_the_store(
    recipe: config.Recipe, location: Storage, object_store: ObjectStore, file: Path
) -> tuple[int, str]:
    """Exit code and standard error of ``icre prepare`` whose store is killed after the third shard."""
    file.write_text(recipe.to_yaml())
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.prepare", "--config", str(file)],
        cwd=Path(__file__).resolve().parents[2],
        # botocore's own variable: two attempts instead of a minute of them.
        env=environment | {"AWS_MAX_ATTEMPTS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: process.poll() is not None or len(receipts(location)) >= 3)
        assert process.poll() is None
        object_store.kill()
        _, error = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    return process.returncode, error


def _written_at(object_store: ObjectStore, location: Storage) -> dict[str, tuple[Any, str]]:
    """Time of writing and ETag of every shard, as the store itself tells them."""
    values = object_store.environment()
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        region_name=values["AWS_REGION"],
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
    )
    prefix = f"{location.url.removeprefix(object_store.url + '/')}/shards/"
    found = client.list_objects_v2(Bucket=object_store.bucket, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix): (entry["LastModified"], entry["ETag"]) for entry in found}
