"""The storage layer: one contract, checked on a local directory and on a real S3 server."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local.object_store import ObjectStore
from icre.errors import StorageError
from pipelines.storage import Storage
from pipelines.storage import storage as storage_module
from pipelines.storage.errors import StorageNotFoundError

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty prefix of the test server, whose variables are set."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return Storage(f"{object_store.url}/{secrets.token_hex(6)}")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty location of either kind."""
    if request.param == "local":
        return Storage(tmp_path / "store")
    s3: Storage = request.getfixturevalue("s3")
    return s3


# Whole objects


def test_objects_come_back_as_written_and_are_replaced(place: Storage) -> None:
    item = place / "runs/a/metrics.json"
    for content in (b"", b"\x00\xff" * 70_000, b"short"):
        item.write_bytes(content)
        assert item.read_bytes() == content
        assert item.size() == len(content)
    item.write_text("größe")
    assert item.read_text() == "größe"
    item.write_json({"loss": [1.5, None], "name": "é"})
    assert item.read_json() == item.read_json(default=1) == {"loss": [1.5, None], "name": "é"}
    assert (place / "runs/a/none.json").read_json(default=None) is None
    with pytest.raises(StorageNotFoundError):
        (place / "runs/a/none.json").read_json()


@pytest.mark.parametrize("size", [0, 3_000_001])
def test_files_are_uploaded_and_downloaded(place: Storage, tmp_path: Path, size: int) -> None:
    content = secrets.token_bytes(size)
    (tmp_path / "source").write_bytes(content)
    item = place / "shards/0.parquet"
    item.write_bytes(b"an older version")
    item.upload(tmp_path / "source")
    assert item.read_bytes() == content
    target = tmp_path / "new/folder/copy"
    item.download(target)
    assert target.read_bytes() == content
    item.download(tmp_path / "source")
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_what_is_not_there_is_reported_as_such(place: Storage, tmp_path: Path) -> None:
    missing, target = place / "missing", tmp_path / "target"
    actions: list[Callable[[], object]] = [
        missing.read_bytes,
        missing.read_json,
        missing.size,
        lambda: missing.download(target),
        lambda: missing.upload(tmp_path / "no-source"),
    ]
    for action in actions:
        with pytest.raises(StorageNotFoundError):
            action()
    assert not missing.exists()
    assert not target.exists()
    (place / "folder/file").write_bytes(b"x")
    with pytest.raises(StorageNotFoundError):
        (place / "folder").size()


def test_damaged_text_and_json_are_reported(place: Storage) -> None:
    item = place / "manifest.json"
    item.write_bytes(b'{"files": [')
    with pytest.raises(StorageError, match=r"manifest\.json"):
        item.read_json()
    item.write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match=r"manifest\.json"):
        item.read_text()


def test_a_reader_never_sees_part_of_an_object(place: Storage) -> None:
    item, size, rounds = place / "weights", 2_000_000, 12
    versions = [bytes([letter]) * size for letter in b"ab"]
    item.write_bytes(versions[0])
    seen = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(_write_each, item, versions * rounds)
        while not writing.done():
            seen.append(item.read_bytes())
        writing.result()
    assert len(seen) > 1
    assert all(content in versions for content in seen)


def _write_each(item: Storage, contents: list[bytes]) -> None:
    for content in contents:
        item.write_bytes(content)


def test_a_killed_writer_leaves_neither_an_object_nor_a_name(tmp_path: Path) -> None:
    item = Storage(tmp_path) / "weights"
    writer = SPAWN.Process(target=_write_large, args=(item,))
    writer.start()
    deadline = time.monotonic() + 30
    while not os.listdir(tmp_path) and time.monotonic() < deadline:
        pass
    writer.kill()
    writer.join()
    assert os.listdir(tmp_path) not in ([], ["weights"])  # it was killed in the middle
    assert not item.exists()
    assert Storage(tmp_path).list() == Storage(tmp_path).walk_files() == []


def _write_large(item: Storage) -> None:
    item.write_bytes(bytes(300_000_000))


def test_local_files_get_the_mode_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (Storage(tmp_path) / "shared").write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640


# Create once


def test_create_does_not_replace(place: Storage) -> None:
    item = place / "lock"
    assert item.create(b"first")
    assert not item.create(b"second")
    assert not item.create(b"first")  # the same content is another writer all the same
    assert item.read_bytes() == b"first"
    item.delete()
    assert item.create(b"third")


def test_of_two_processes_exactly_one_creates(place: Storage) -> None:
    locks = [place / f"lock-{n}" for n in range(20)]
    for lock in locks:
        assert pickle.loads(pickle.dumps(lock)) == lock
    together, (here, there) = SPAWN.Barrier(2), SPAWN.Pipe()
    racer = SPAWN.Process(target=_race, args=(locks, together, there))
    racer.start()
    won = [_create_all(locks, b"0", together), here.recv()]
    racer.join()
    assert all(first != second for first, second in zip(*won, strict=True))
    assert [lock.read_bytes() == b"0" for lock in locks] == won[0]
    assert sorted(place.list()) == sorted(lock.name for lock in locks)


def _race(locks: list[Storage], together: Barrier, answer: Connection) -> None:
    answer.send(_create_all(locks, b"1", together))


def _create_all(locks: list[Storage], name: bytes, together: Barrier) -> list[bool]:
    locks[0].exists()  # connect before the start
    results = []
    for lock in locks:
        together.wait(30)
        results.append(lock.create(name))
    return results


def test_create_knows_its_own_object_after_a_lost_answer(
    s3: Storage, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = ("127.0.0.1", int(object_store.endpoint.rpartition(":")[2]))
    lost: list[bytes] = []
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        proxy = threading.Thread(target=_lose_first_success, args=(listener, upstream, lost, stop))
        proxy.start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            assert (s3 / "lock").create(b"mine")
            assert lost  # the first answer never reached the client
            assert not (s3 / "lock").create(b"mine")
        finally:
            stop.set()
            proxy.join()


def _lose_first_success(
    listener: socket.socket, upstream: tuple[str, int], lost: list[bytes], stop: threading.Event
) -> None:
    """Forward connections until told to stop, but drop the first `200 OK` and its connection."""
    peers: dict[socket.socket, socket.socket] = {}
    while not stop.is_set():
        for end in select.select([listener, *peers], [], [], 0.05)[0]:
            if end is listener:
                client, server = listener.accept()[0], socket.create_connection(upstream)
                peers |= {client: server, server: client}
            elif end in peers:
                data = end.recv(1 << 16)
                if data and (lost or b" 200 OK" not in data):
                    peers[end].sendall(data)
                    continue
                if data:
                    lost.append(data)
                for closed in (end, peers[end]):
                    del peers[closed]
                    closed.close()
    for end in peers:
        end.close()


# What is there


def test_listing_and_deleting_keep_to_the_location(place: Storage) -> None:
    for name in ("run/b.txt", "run/a.txt", "run/sub/deep/c.txt", "run-2/a.txt", "runs"):
        (place / name).write_bytes(b"x")
    assert place.list() == ["run", "run-2", "runs"]
    assert (place / "run").list() == ["a.txt", "b.txt", "sub"]
    assert (place / "run").walk_files() == ["a.txt", "b.txt", "sub/deep/c.txt"]
    assert (place / "run").exists() and (place / "run/sub").exists() and (place / "runs").exists()
    assert not (place / "ru").exists()
    assert (place / "ru").list() == (place / "ru").walk_files() == []
    (place / "run").delete()
    (place / "run").delete()
    (place / "ru").delete()
    assert not (place / "run").exists()
    assert place.list() == ["run-2", "runs"]
    assert place.walk_files() == ["run-2/a.txt", "runs"]


def test_large_trees_are_deleted_in_several_requests(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_DELETE_LIMIT", 2)
    for number in range(6):
        (s3 / f"tree/{number % 2}/{number}").write_bytes(b"")
    (s3 / "tree").delete()
    assert s3.walk_files() == []


@pytest.mark.parametrize("name", ["epoch [1]*", "100% + #1", "größe.txt", "a=1,b='2'"])
def test_unusual_names(place: Storage, name: str) -> None:
    item = place / "folder" / name
    item.write_bytes(b"x")
    (place / "folder/other").write_bytes(b"y")
    assert item.read_bytes() == b"x"
    assert name in (place / "folder").list()
    assert name in (place / "folder").walk_files()
    item.delete()
    assert (place / "folder").list() == ["other"]


def test_a_write_by_another_process_is_seen(place: Storage) -> None:
    assert place.list() == []
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        pool.submit((place / "done").write_text, "1").result()
    assert place.list() == ["done"]
    assert (place / "done").read_text() == "1"


def test_whole_stores_are_not_deleted(s3: Storage, object_store: ObjectStore) -> None:
    (s3 / "kept").write_bytes(b"x")
    for url in (object_store.url, "/"):
        with pytest.raises(StorageError):
            Storage(url).delete()
    assert (s3 / "kept").exists()


# pyarrow


def test_parquet_goes_through_arrow(place: Storage) -> None:
    table = pa.table({"identity": [3, 1, 2], "image": [b"a", b"b", b"c"]})
    filesystem, path = pickle.loads(pickle.dumps((place / "data").arrow()))
    filesystem.create_dir(path)
    pq.write_table(table, f"{path}/0.parquet", filesystem=filesystem)
    assert (place / "data").walk_files() == ["0.parquet"]
    assert pq.read_table(path, filesystem=filesystem).equals(table)


# Locations


@pytest.mark.parametrize("url", ["gs://bucket/p", "http://host/p", "file:///tmp/x", "s3:/bucket", "s3://ab", ""])
def test_other_locations_are_refused_with_a_hint(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hidden@bucket/p",
        "s3://AKIA:hid/hidden@bucket/p",
        "s3://bucket/p?secret=hidden",
        "http://u:hidden@h",
    ],
)
def test_secrets_in_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("relative", ["", "..", "a/../b", "/a", "a//b", "a/", "."])
def test_paths_do_not_leave_the_location(place: Storage, relative: str) -> None:
    with pytest.raises(StorageError):
        place / relative


def test_spellings_of_one_location_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("runs/") == Storage(tmp_path / "runs") == Storage(tmp_path) / "runs"
    assert Storage("s3://bucket//a/") == Storage("s3://bucket") / "a"
    assert (Storage("s3://bucket/a/b").name, Storage("/x/y").name) == ("b", "y")
    assert Storage("s3://bucket").is_remote and not Storage("runs").is_remote


# What can go wrong


def test_a_writable_place_passes_and_stays_clean(place: Storage) -> None:
    place.check_writable()
    assert place.list() == []


def test_unwritable_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file/below", Path("/proc/icre")):
        place = Storage(path)
        for action in (place.check_writable, partial((place / "x").write_bytes, b"")):
            with pytest.raises(StorageError) as caught:
                action()
            assert str(path) in str(caught.value) and caught.value.hint
            assert not isinstance(caught.value, StorageNotFoundError)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys(s3: Storage, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    (s3 / "x").write_bytes(b"kept")
    monkeypatch.setenv(variable, "wrong-value")
    for action in (s3.check_writable, (s3 / "x").read_bytes, (s3 / "x").exists, s3.list, (s3 / "x").delete):
        with pytest.raises(StorageError) as caught:
            action()
        assert object_store.endpoint in str(caught.value)
        assert object_store.secret_key not in str(caught.value) and "wrong-value" not in str(caught.value)
        assert not isinstance(caught.value, StorageNotFoundError)


def test_missing_bucket(s3: Storage) -> None:
    absent = Storage("s3://no-such-bucket/runs")
    for action in (absent.check_writable, absent.read_bytes, absent.list, lambda: absent.create(b"")):
        with pytest.raises(StorageError, match="no-such-bucket") as caught:
            action()
        assert not isinstance(caught.value, StorageNotFoundError)


def test_no_credentials(s3: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    with pytest.raises(StorageError) as caught:
        s3.check_writable()
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["localhost:8333", "http://user:hidden@localhost:8333"])
def test_malformed_endpoints(s3: Storage, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL") as caught:
        s3.check_writable()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_an_endpoint_that_does_not_answer_is_reported_within_seconds(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts connections, never reads them
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if not silent:
            listener.close()
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        start = time.monotonic()
        with pytest.raises(StorageError, match=endpoint):
            s3.check_writable()
        assert time.monotonic() - start < 15


def test_an_outage_is_waited_for(s3: Storage, object_store: ObjectStore, tmp_path: Path) -> None:
    content = secrets.token_bytes(200_000)
    (s3 / "before").write_bytes(content)
    uses: list[Callable[[], None]] = [
        partial((s3 / "after").write_bytes, content),
        partial((s3 / "before").download, tmp_path / "copy"),
    ]
    for use in uses:
        object_store.kill()
        back = threading.Timer(1.0, object_store.restart)
        back.start()
        try:
            use()
        finally:
            back.join()
    assert (s3 / "after").read_bytes() == (tmp_path / "copy").read_bytes() == content


def test_errors_keep_their_cause(tmp_path: Path) -> None:
    with pytest.raises(StorageNotFoundError) as caught:
        (Storage(tmp_path) / "missing").read_bytes()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), StorageNotFoundError)
