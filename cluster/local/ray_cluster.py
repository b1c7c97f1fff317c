"""A real Ray cluster on this machine: a head and further nodes, each a ``ray start --block`` with its own address.

The nodes have the loopback addresses 127.0.0.2, 127.0.0.3, ...: Ray takes them for machines, so what it decides by
address (where the ranks are, whom to ask for metrics, what is lost with a node) is as it is in a cluster.

Ray's own ports listen on all addresses of the machine, whatever it is told; so the cluster wants a token.
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
"""The variables that the processes of a node, and of all of them, are known by."""
OBJECT_STORE_BYTES = 200_000_000
NODE_BYTES = 600_000_000
"""Memory that one node takes: its object store, raylet, agents and one idle worker."""
MAX_NODES = 250
_END_S = 10.0
# Workers have the id on their command lines, too.
_RAYLET = re.compile(rb"/raylet\0.*--node[-_]id=([0-9a-f]{56})", re.DOTALL)


@dataclass(frozen=True)
class Node:
    """One node that was started. ``address``: its IP address; ``mark``: the value of :data:`MARK`."""

    number: int
    address: str
    cpus: int
    mark: str
    program: Program

    @property
    def pids(self) -> list[int]:
        """Its processes, with those of the jobs and workers that run on it."""
        return processes_with(MARK, self.mark)

    @property
    def raylet(self) -> int:
        """The process id of its raylet. Raises IcreError if none runs."""
        for pid in self.pids:
            if _RAYLET.search(_command_line(pid)):
                return pid
        raise IcreError(f"node {self.number} has no raylet that runs", hint="was it killed?")

    @property
    def ray_id(self) -> str:
        """Ray's id of it, in hexadecimal. Raises IcreError if no raylet runs."""
        found = _RAYLET.search(_command_line(self.raylet))
        return found[1].decode() if found else ""


class LocalCluster:
    """A head, which is node 0, and ``nodes - 1`` others, for the length of a ``with`` block.

    cpus: logical CPUs of each, ``head_cpus`` of the head if it differs; object store: 200 MB each. environment: added
    to that of all their processes, hence of workers and jobs. port, dashboard_port: of the head; None finds free ones.
    Leaving the block ends all processes by their ids.

    Raises UserError for a port that is in use or more nodes than there is memory for, and IcreError, with the end of
    its log, for a node that does not come up.
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
        # Of its own these are the same for all clusters, and Prometheus would ask this one's head and hear another's.
        names = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
        self._metrics_ports = {name: str(port) for name, port in zip(names, metrics_ports, strict=False)}
        self._first = [cpus if head_cpus is None else head_cpus, *[cpus] * (nodes - 1)]
        self._cpus, self._added = cpus, dict(environment or {})
        self._id, self._started = secrets.token_hex(6), 0
        self.nodes: dict[int, Node] = {}

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return f"{self._address_of(0)}:{self._port}"

    @property
    def dashboard_url(self) -> str:
        """Of the dashboard and the job server."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def discovery(self) -> Path:
        """The file in which Ray lists its metrics agents for Prometheus; it comes up some seconds after the nodes."""
        return self.folder / "prom_metrics_service_discovery.json"

    def environment(self) -> dict[str, str]:
        """The variables by which drivers, ``icre`` and ``ray`` find the cluster and may use it."""
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
        """Start one more node, and wait until it is part of the cluster; its number, which is never used again."""
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
        self.nodes[number] = node  # so that it is ended whatever happens
        program.start(lambda: "block forever" in program.said and (number > 0 or self._answers()))
        return number

    def kill_node(self, number: int) -> None:
        """What a power failure does to a node: SIGKILL for all it runs, at once. Raises UserError for the head."""
        if number == 0:
            raise UserError("node 0 is the head: without it there is no cluster", hint="kill one of the others")
        self._end(self._node(number))

    def node_of(self, pid: int) -> int:
        """The number of the node that a process runs on. Raises UserError for a process of none."""
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
            # As the system gives them: the default range is the same for all nodes, which share a machine.
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        if number > 0:
            # On machines of their own nodes share no files; with one folder for all, a node that unpacks the code of a
            # job takes it away from under the processes of the others.
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
        """Whether the job server does."""
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.dashboard_url}/api/jobs/", headers=headers)):
                return True
        except OSError:
            return False

    def _end(self, *nodes: Node) -> None:
        """No process of ``nodes`` is left; a raylet that sees the others die may start one more."""
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
        shutil.rmtree(self.folder, ignore_errors=True)  # a file may still go while it is listed
        self._guard.dismiss()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # over
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
