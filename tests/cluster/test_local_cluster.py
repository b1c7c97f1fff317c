"""The local cluster: real nodes with addresses of their own that come, go, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local.programs import processes_with
from cluster.local.ray_cluster import MARK, LocalCluster
from icre.errors import IcreError, UserError
from pipelines.jobs.server import connect

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0
# Of its own the head needs half a minute to see that a node is gone.
ALERT = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
FOLLOW = """
import json, sys, time
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
def alive():
    return sorted((n["NodeManagerAddress"], n["Resources"]["CPU"]) for n in ray.nodes() if n["Alive"])
before = None
while True:  # a line whenever it changes, until standard input ends
    if alive() != before:
        before = alive()
        print(json.dumps(before), flush=True)
    time.sleep(0.05)
"""


def eventually(look: Callable[[], Any]) -> Any:
    """The first true thing that ``look`` finds."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, cpus=1, head_cpus=2, environment=ALERT) as started:
        yield started


JOB = """
import os
import ray
ray.init(log_to_driver=False, logging_level="ERROR")

@ray.remote
def on_node():
    return ray.get_runtime_context().get_node_id()

here = os.stat(".").st_ino
nodes = [node["NodeID"] for node in ray.nodes()]
place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
there = ray.get([on_node.options(scheduling_strategy=place(node, soft=False)).remote() for node in nodes])
print(there == nodes and len(nodes) == 2, os.stat(os.getcwd()).st_ino == here)
"""


@pytest.mark.slow
def test_a_job_keeps_its_folder_when_its_code_comes_to_other_nodes(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines of their own: the nodes are to share no files."""
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "job.py").write_text(JOB)
    client = connect().client
    name = client.submit_job(entrypoint="python job.py", runtime_env={"working_dir": str(tmp_path)})
    eventually(lambda: client.get_job_status(name).is_terminal())
    assert client.get_job_logs(name).splitlines()[-1] == "True True"


def test_nodes_have_addresses_of_their_own_and_come_and_go(cluster: LocalCluster) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", FOLLOW], env=os.environ | cluster.environment(), stdout=subprocess.PIPE, text=True
    )

    def next_change() -> Any:
        assert driver.stdout is not None  # where Ray, too, says that a node is gone
        return json.loads(next(line for line in driver.stdout if line.startswith("[[")))

    try:
        assert next_change() == [["127.0.0.2", 2], ["127.0.0.3", 1]]
        lost = cluster.nodes[1]
        assert len(lost.pids) > 3 and len(lost.ray_id) == 56
        assert {cluster.node_of(pid) for pid in lost.pids} == {1}
        cluster.kill_node(1)
        assert lost.pids == [] and list(cluster.nodes) == [0]
        assert next_change() == [["127.0.0.2", 2]]
        assert cluster.add_node(cpus=3) == 2
        assert next_change() == [["127.0.0.2", 2], ["127.0.0.4", 3]]
    finally:
        driver.kill()
        driver.communicate()


def test_only_who_has_the_token_is_answered(cluster: LocalCluster) -> None:
    url = f"{cluster.environment()['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url)
    refused.value.close()
    assert refused.value.code == 401
    file = Path(cluster.environment()["RAY_AUTH_TOKEN_PATH"])
    assert file.stat().st_mode & 0o077 == 0
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {file.read_text()}"})
    with urllib.request.urlopen(request) as answer:
        assert isinstance(json.load(answer), list)


def test_what_a_cluster_cannot_do_is_refused(cluster: LocalCluster) -> None:
    for wrong in (
        lambda: cluster.kill_node(0),
        lambda: cluster.kill_node(77),
        lambda: cluster.node_of(os.getpid()),
    ):
        with pytest.raises(UserError):
            wrong()


def test_ports_in_use_and_more_nodes_than_there_is_memory_for_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("port", "dashboard_port"):
            with pytest.raises(UserError, match=str(port)):
                LocalCluster(**{option: port})
    for nodes in (0, 10_000):
        with pytest.raises(UserError, match=str(nodes)):
            LocalCluster(nodes=nodes)


def test_nothing_is_left_when_a_node_does_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = tmp_path / "ray"
    ray.write_text("#!/bin/sh\nsleep 1000 &\necho out of order\nexit 3\n")
    ray.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    cluster = LocalCluster(nodes=1)
    with pytest.raises(IcreError, match=r"exit code 3.*\n.*out of order"), cluster:
        pass
    assert processes_with("RAY_AUTH_TOKEN_PATH", cluster.environment()["RAY_AUTH_TOKEN_PATH"]) == []
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_all_is_gone_when_the_command_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.local", "--nodes", "1", "--cpus", "1"]
    environment = os.environ | {"ICRE_TEST": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        exported = {}
        for line in process.stdout:
            if line.startswith("export "):
                name, _, value = shlex.split(line)[1].partition("=")
                exported[name] = value
            if line.startswith("# ready"):
                break
        assert {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"} < exported.keys()
        head, store = exported["RAY_ADDRESS"], exported["AWS_ENDPOINT_URL"].removeprefix("http://")
        assert answers(head) and answers(store)
        started = processes_with("ICRE_TEST", str(tmp_path))
        assert len(started) > 5
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: not processes_with("ICRE_TEST", str(tmp_path)))
    eventually(lambda: not answers(head) and not answers(store))
    eventually(lambda: not Path(exported["RAY_AUTH_TOKEN_PATH"]).parent.exists())
    assert not any(name.startswith(MARK) for name in os.environ)


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    wrong = [([], 1, "weed"), (["--nodes", "100000", "--no-object-store"], 2, "100000")]
    for options, code, word in wrong:
        # No SeaweedFS beside this interpreter, nor on PATH.
        program = f"import runpy, sys, sysconfig; sysconfig.get_path = lambda name: {str(tmp_path)!r}; "
        program += f"sys.argv = ['-', *{options!r}]; runpy.run_module('cluster.local', run_name='__main__')"
        environment = os.environ | {"PATH": str(tmp_path)}
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert (ran.returncode, ran.stdout) == (code, "")
        assert word in ran.stderr and "hint:" in ran.stderr and "Traceback" not in ran.stderr
