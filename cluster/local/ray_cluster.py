"""A real Ray cluster on this machine: a head and other nodes, each a ``ray start --block`` with its own address.

The nodes use the loopback addresses 127.0.0.2, 127.0.0.3, ... Ray treats them as separate machines, so everything
decided by address (placement of ranks, metrics endpoints, losses with a node) behaves as in a real cluster.

Ray's ports listen on all addresses of the machine and cannot be restricted, so the cluster requires a token.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cluster.local.programs import Guard, Program, check_port, free_ports, kill_all, processes_with, variable_of
from icre.errors import IcreError, UserError

MARK, CLUSTER_MARK = "ICRE_LOCAL_NODE", "ICRE_LOCAL_CLUSTER"
"""Environment variables that mark the processes of one node, and of the whole cluster."""
OBJECT_STORE_BYTES = 200_000_000
NODE_BYTES = 600_000_000
"""Memory of one node: its object store, raylet, agents and one idle worker."""
MAX_NODES = 250
_END_S = 10.0
# Workers also have the id on their command lines.
_RAYLET = re.compile(rb"/raylet\0.*--node[-_]id=([0-9a-f]{56})", re.DOTALL)


@dataclass(frozen=True)
class Node:
    """A started node. ``address``: its IP address; ``mark``: the value of :data:`MARK`."""

    number: int
    address: str
    cpus: int
    mark: str
    program: Program

    @property
    def pids(self) -> list[int]:
        """Process ids of the node, including its jobs and workers."""
        return processes_with(MARK, self.mark)

    @property
    def raylet(self) -> int:
        """Process id of the node's raylet. Raises IcreError if none is running."""
        for pid in self.pids:
            if _RAYLET.search(_command_line(pid)):
                return pid
        raise IcreError(f"node {self.number} has no raylet that runs", hint="was it killed?")

    @property
    def ray_id(self) -> str:
        """Ray's hexadecimal id of the node. Raises IcreError if no raylet is running."""
        found = _RAYLET.search(_command_line(self.raylet))
        return found[1].decode() if found else ""


class LocalCluster:
    """A head, which is node 0, and ``nodes - 1`` others, for the duration of a ``with`` block.

    cpus: logical CPUs per node; head_cpus: those of the head, if different. Object stores have 200 MB each.
    environment: added to that of all processes, hence of workers and jobs. port, dashboard_port: ports of the head;
    None selects free ones. Leaving the block ends all processes by their ids.

    Raises UserError for a port in use or too little memory for the nodes, and IcreError, with the end of its log, for a
    node that does not start.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        cpus: int = 2,
        head_cpus: int | None = None,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
        dashboard_port: int | None = None,
    ) -> None:
        if nodes < 1 or cpus < 0:
            raise UserError(
                f"{nodes} nodes with {cpus} CPUs: a cluster has at least its head", hint="--nodes 2 --cpus 2"
            )
        _check_memory(nodes)
        free = iter(free_ports(5))
        self._port = next(free) if port is None else check_port(port, option="--port")
        self._dashboard_port = (
            next(free) if dashboard_port is None else check_port(dashboard_port, option="--dashboard-port")
        )
        self._client_port, *metrics_ports = free
        # By default all clusters share these ports, and Prometheus would scrape another cluster's head.
        names = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
        self._metrics_ports = {name: str(port) for name, port in zip(names, metrics_ports, strict=False)}
        self._first = [cpus if head_cpus is None else head_cpus, *[cpus] * (nodes - 1)]
        self._cpus, self._added = cpus, dict(environment or {})
        self._id, self._started = secrets.token_hex(6), 0
        self.nodes: dict[int, Node] = {}

    @property
    def address(self) -> str:
        """Value of RAY_ADDRESS."""
        return f"{self._address_of(0)}:{self._port}"

    @property
    def dashboard_url(self) -> str:
        """URL of the dashboard and the job server."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def discovery(self) -> Path:
        """Ray's list of its metrics agents for Prometheus; it appears some seconds after the nodes start."""
        return self.folder / "prom_metrics_service_discovery.json"

    def environment(self) -> dict[str, str]:
        """Environment variables with which drivers, ``icre`` and ``ray`` find and access the cluster."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
        }

    def __enter__(self) -> LocalCluster:
        with ExitStack() as undo:
            self.folder = Path(tempfile.mkdtemp(prefix="icre-ray-"))
            self._guard = Guard(CLUSTER_MARK, self._id, self.folder)
            undo.callback(self._remove)
            self._token = self.folder / "token"
            self._token.touch(mode=0o600)
            self._token.write_text(secrets.token_hex(16))
            for cpus in self._first:
                self.add_node(cpus=cpus)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def add_node(self, *, cpus: int | None = None) -> int:
        """Start another node and wait until it has joined; returns its number, which is never reused."""
        number, cpus = self._started, self._cpus if cpus is None else cpus
        self._started += 1
        mark = f"{self._id}-{number}"
        ray = Path(sysconfig.get_path("scripts")) / "ray"
        program = Program(
            f"node {number} of the local Ray cluster",
            [ray, "start", "--block", *self._options(number, cpus)],
            log=self.folder / f"node-{number}.log",
            environment=self._environment({MARK: mark, CLUSTER_MARK: self._id}),
            guarded=True,
        )
        node = Node(number, self._address_of(number), cpus, mark, program)
        self.nodes[number] = node  # registered first, so it is always ended
        program.start(lambda: "block forever" in program.said and (number > 0 or self._answers()))
        return number

    def kill_node(self, number: int) -> None:
        """Simulate a power failure: SIGKILL for all of a node's processes at once. Raises UserError for the head."""
        if number == 0:
            raise UserError("node 0 is the head: without it there is no cluster", hint="kill one of the others")
        self._end(self._node(number))

    def node_of(self, pid: int) -> int:
        """The number of the node a process runs on. Raises UserError for a process outside the cluster."""
        for node in self.nodes.values():
            if variable_of(pid, MARK) == node.mark or pid in node.pids:
                return node.number
        raise UserError(f"process {pid} runs on no node of this cluster", hint=f"nodes: {sorted(self.nodes)}")

    def _node(self, number: int) -> Node:
        if number not in self.nodes:
            raise UserError(f"there is no node {number}", hint=f"nodes that run: {sorted(self.nodes)}")
        return self.nodes[number]

    def _address_of(self, number: int) -> str:
        return f"127.0.0.{2 + number}"

    def _environment(self, added: Mapping[str, str]) -> dict[str, str]:
        scripts = sysconfig.get_path("scripts")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        ours = {
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # for jobs: `icre`, `python`
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
        }
        return {**inherited, **ours, **self._metrics_ports, **self._added, **added}

    def _options(self, number: int, cpus: int) -> list[str]:
        options = {
            "node-ip-address": self._address_of(number),
            "num-cpus": cpus,
            "object-store-memory": OBJECT_STORE_BYTES,
            "dashboard-agent-listen-port": 0,
            # Ports from the system: Ray's default range would be shared by all nodes on this machine.
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        if number > 0:
            # Real nodes share no files: with a common folder, a node that unpacks a job's code removes it under the
            # processes of the others.
            options |= {"address": self.address, "temp-dir": self.folder / f"{number}"}
        else:
            options |= {
                "port": self._port,
                "temp-dir": self.folder,
                "dashboard-host": "127.0.0.1",
                "dashboard-port": self._dashboard_port,
                "ray-client-server-port": self._client_port,
            }
        head = [] if number else ["--head"]
        return [*head, *(f"--{name}={value}" for name, value in options.items())]

    def _answers(self) -> bool:
        """Whether the job server responds."""
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.dashboard_url}/api/jobs/", headers=headers)):
                return True
        except OSError:
            return False

    def _end(self, *nodes: Node) -> None:
        """End all processes of ``nodes``; a raylet may start another one while the others die."""
        deadline = time.monotonic() + _END_S
        while (pids := [pid for node in nodes for pid in node.pids]) and time.monotonic() < deadline:
            kill_all(pids)
            for node in nodes:
                node.program.kill(patience_s=1.0)
        for node in nodes:
            node.program.kill()
            self.nodes.pop(node.number, None)

    def _remove(self) -> None:
        for node in self.nodes.values():
            node.program.ask_to_end()
        for node in self.nodes.values():
            node.program.kill(patience_s=_END_S)
        self._end(*self.nodes.values())
        shutil.rmtree(self.folder, ignore_errors=True)  # a file may disappear while being listed
        self._guard.dismiss()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # ended
        return b""


def _check_memory(nodes: int) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    available = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    room = MAX_NODES if available is None else min(MAX_NODES, available // NODE_BYTES)
    if nodes > max(room, 1):
        raise UserError(
            f"{nodes} nodes on this machine: there is room for {room}, at {NODE_BYTES / 1e6:.0f} MB of memory each",
            hint=f"--nodes {max(room, 1)} or fewer",
        )
