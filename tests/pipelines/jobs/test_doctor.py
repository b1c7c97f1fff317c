"""The doctor: every check can fail, and a cluster is looked at from outside and on each of its nodes."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.local.ray_cluster import LocalCluster
from icre.errors import StorageError
from pipelines.checks import machine, nodes, storage_checks
from pipelines.checks.result import CheckResult
from pipelines.jobs.server import JobServer
from pipelines.storage import Storage
from tests.pipelines.jobs.conftest import Icre

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30


def states(findings: Any) -> dict[str, str]:
    return {found.name: found.state for found in findings}


def test_what_is_wrong_is_told_with_its_fix_and_what_is_right_without() -> None:
    wrong, right = machine.python_version((3, 10, 9)), machine.python_version((3, 11, 0))
    assert (wrong.state, right.state) == ("failed", "ok")
    assert wrong.fix and not right.fix


def test_packages_are_held_against_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = machine.read_pins()
    assert states(machine.packages(pins)) == {"packages": "ok"}
    [other] = machine.packages(pins | {"ray": "1.2.3"})
    assert other.state == "warning" and "ray" in other.value and "1.2.3" in other.value
    assert states(machine.packages({})) == {"packages": "warning"}
    there = metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "version", without_torch)
    [missing] = machine.packages(pins)
    assert missing.state == "failed" and "torch" in missing.value


def test_a_gpu_that_is_wanted_has_to_be_there() -> None:
    assert machine.gpu(0).state == "ok"
    assert machine.gpu(1000).state == "failed"


@pytest.mark.parametrize(
    ("memory", "state"),
    [(GIB, "ok"), (10**9 * GIB, "warning")],
)
def test_shared_memory_is_held_against_the_memory(memory: int, state: str) -> None:
    assert machine.shared_memory(Path("/dev/shm"), memory).state == state
    assert machine.shared_memory(Path("/nonexistent"), memory).state == "failed"


@pytest.mark.parametrize(
    ("free", "total", "state"),
    [(100, 200, "ok"), (15, 100, "warning"), (50, 1000, "failed"), (0.5, 2, "failed"), (80, 1000, "warning")],
)
def test_free_space(free: float, total: float, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(total=int(total * GIB), free=int(free * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert machine.disk("x", tmp_path / "not" / "made" / "yet").state == state


@pytest.mark.parametrize(("limit", "state"), [(256, "failed"), (4096, "warning"), (65536, "ok"), (-1, "ok")])
def test_the_limit_of_open_files(limit: int, state: str) -> None:
    assert machine.open_files(limit).state == state


def test_ports_that_are_taken() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert machine.free_ports({"x": port}).state == "ok"
        server.listen()
        assert machine.free_ports({"x": port}).state == "warning"
        assert nodes.reachable({"x": ("127.0.0.1", port)}).state == "ok"
    assert nodes.reachable({"x": ("127.0.0.1", port)}).state == "failed"


def test_a_token_that_others_can_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 32)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for mode, state in ((0o644, "warning"), (0o600, "ok")):
        token.chmod(mode)
        assert states(nodes.token_file()) == {"token file": state}
    token.unlink()
    assert states(nodes.token_file()) == {}


# The storage


def test_a_storage_that_works_is_left_as_it_was(
    object_store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    for storage in (Storage(tmp_path / "here"), Storage(object_store.url) / "doctor"):
        assert states(storage_checks.check_storage(storage)) == {"storage": "ok", "storage: create once": "ok"}
        assert storage.walk_files() == []
    assert states(storage_checks.clock(Storage(object_store.url))) == {"clock": "ok"}


@pytest.mark.parametrize("storage", ["/proc/icre", "s3://not-there/x"])
def test_a_storage_that_cannot_be_written(
    storage: str, object_store: Any, monkeypatch: pytest.MonkeyPatch, icre: Icre
) -> None:
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    code, out, _ = icre("doctor", "--json", f"storage={storage}")
    report = json.loads(out)
    assert code == 1 and report["ok"] is False
    [failed] = [found for found in report["findings"] if found["name"] == "storage"]
    assert failed["state"] == "failed" and storage in failed["value"] and failed["fix"]


def test_a_store_that_lets_two_create_the_same_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def overwrite(storage: Storage, data: bytes) -> bool:
        storage.write_bytes(data)
        return True

    monkeypatch.setattr(Storage, "create", overwrite)
    assert states(storage_checks.check_storage(Storage(tmp_path)))["storage: create once"] == "failed"


def test_a_store_that_keeps_or_changes_what_it_should_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "list", lambda storage: ["old"])
        assert states(storage_checks.check_storage(Storage(tmp_path / "a")))["storage"] == "failed"
    write = Storage.write_bytes
    monkeypatch.setattr(Storage, "write_bytes", lambda storage, data: write(storage, data[:-1]))
    assert states(storage_checks.check_storage(Storage(tmp_path / "b")))["storage"] == "failed"


def test_another_machines_storage(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert storage_checks.sees(storage, "probe", b"x").state == "failed"
    (storage / "probe").write_bytes(b"x")
    assert storage_checks.sees(storage, "probe", b"x").state == "ok"
    assert storage_checks.sees(storage, "probe", b"y").state == "failed"


@contextlib.contextmanager
def server_with_date(offset_s: float | None) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            if offset_s is not None:
                self.send_header("Date", self.date_time_string(time.time() + offset_s))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("offset_s", "state"),
    [(0, "ok"), (20, "warning"), (-20, "warning"), (3600, "failed"), (-3600, "failed"), (None, "warning")],
)
def test_the_clock_is_held_against_the_stores(offset_s: float | None, state: str) -> None:
    with server_with_date(offset_s) as url:
        assert storage_checks.clock_against(url).state == state
    with pytest.raises(StorageError):
        storage_checks.clock_against(url)


# A cluster


def server(address: str, *, wants_token: bool, ray: str, alive: int) -> JobServer:
    made = JobServer(address, None, wants_token)
    made.__dict__["versions"] = {"ray": ray, "python": ".".join(map(str, sys.version_info[:3]))}
    made.__dict__["nodes"] = [{}] * alive
    return made


def test_a_cluster_is_judged_from_outside() -> None:
    ours = metadata.version("ray")
    good = nodes.check_server(server("http://head:8265", wants_token=True, ray=ours, alive=1))
    assert set(states(good).values()) == {"ok"}
    bad = states(nodes.check_server(server("http://head:8265", wants_token=False, ray="2.9.0", alive=0)))
    assert bad == {"cluster: versions": "warning", "cluster: nodes": "failed", "cluster: token": "failed"}
    tunnel = states(nodes.check_server(server("http://127.0.0.1:8265", wants_token=False, ray=ours, alive=1)))
    assert tunnel["cluster: token"] == "warning"


@pytest.mark.parametrize("wrong", ["address", "token"])
def test_a_cluster_that_cannot_be_asked(
    wrong: str, icre: Icre, at_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if wrong == "address":
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    code, out, _ = icre("doctor", "--json", f"storage={tmp_path}")
    failed = [found["name"] for found in json.loads(out)["findings"] if found["state"] == "failed"]
    assert (code, failed) == (1, ["cluster: address"])


@pytest.mark.timeout(180)
def test_each_node_of_a_cluster_is_looked_at(
    icre: Icre, at_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = icre("doctor", "--json", f"storage={tmp_path}")
    findings = [CheckResult(**found) for found in json.loads(out)["findings"]]
    assert not [found for found in findings if found.state == "failed"], err
    assert code == 0
    there = Counter(found.name for found in findings if found.node != "here")
    assert {found.node.split()[-1] for found in findings} == {"here", "127.0.0.2", "127.0.0.3"}
    expected = {
        "python",
        "packages",
        "gpu",
        "open files",
        "ports of the others",
        "storage: shared",
        "storage: create once",
    }
    assert expected <= set(there) and set(there.values()) == {2}
    assert [found.value for found in findings if found.name == "ports of the others"] == ["2 reached"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(180)
def test_a_storage_that_the_nodes_cannot_write(
    icre: Icre, at_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = icre("doctor", "storage=/proc/icre")
    assert code == 1 and "/proc/icre" in out.replace("\n", "")
