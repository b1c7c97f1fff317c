"""Check a cluster from outside through its job server, and from inside with one small task per node."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from icre.errors import IcreError
from pipelines.checks import storage_checks
from pipelines.checks.machine import check_machine
from pipelines.checks.result import CheckResult, judge, reported
from pipelines.jobs.server import JobServer, find_token, version_warnings
from pipelines.storage import Storage

NODE_TIMEOUT_S = 90.0
_CONNECT_S = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_server(server: JobServer) -> Iterator[CheckResult]:
    """Check the job server's versions, nodes and token requirement."""
    there = server.versions
    differing = version_warnings(server)
    yield judge(
        "cluster: versions",
        "; ".join(differing) or f"Ray {there['ray']}, Python {there['python']}",
        rule="Ray and Python are those of this machine",
        fix="pip install -c constraints.txt on both sides",
        failed=False,
        warning=bool(differing),
    )
    yield judge(
        "cluster: nodes",
        f"{len(server.nodes)} alive",
        rule="at least the head is alive",
        fix="see `ray status` on the head",
        failed=not server.nodes,
    )
    open_to_all = not server.wants_token
    yield judge(
        "cluster: token",
        "not asked for" if open_to_all else "asked for, and taken",
        rule="whoever reaches the job server runs programs on the nodes: it wants a token",
        fix="RAY_AUTH_MODE=token where Ray starts, `ray get-auth-token --generate`; KubeRay: authOptions.mode: token",
        failed=open_to_all and urlsplit(server.address).hostname not in _LOOPBACK,
        warning=open_to_all,
    )


def token_file() -> Iterator[CheckResult]:
    """Check whether others on this machine can read the token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if find_token() is None or not path.is_file():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    yield judge(
        "token file",
        f"{path} {mode:o}",
        rule="only its owner reads it",
        fix=f"chmod 600 {path}",
        failed=False,
        warning=bool(mode & 0o077),
    )


def check_nodes(pins: Mapping[str, str], storage: Storage) -> list[CheckResult]:
    """Run one task on each node of this process's cluster, in parallel; an unresponsive node is a finding."""
    alive: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    probe, content = f".icre-doctor-{secrets.token_hex(8)}", secrets.token_bytes(64)
    written = reported("storage", storage_checks.RULE, lambda: _written(storage / probe, content))
    if written:
        return written
    try:
        asked = {
            _examine.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                dict(pins), storage.url, probe, content, _peers(node, alive), node["Resources"].get("GPU", 0)
            ): node
            for node in alive
        }
        ray.wait(list(asked), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
        return [found for task, node in asked.items() for found in _findings(task, node)]
    finally:
        (storage / probe).delete()


def reachable(peers: Mapping[str, tuple[str, int]]) -> CheckResult:
    """Check connections from this machine; ``peers``: description to host and port."""
    silent = [f"{name} {host}:{port}" for name, (host, port) in peers.items() if not _connects(host, port)]
    return judge(
        "ports of the others",
        f"no connection to {', '.join(silent)}" if silent else f"{len(peers)} reached",
        rule="nodes reach each other's raylets and object managers",
        fix="open the ports between nodes: firewall, security group, NetworkPolicy",
        failed=bool(silent),
    )


@ray.remote(num_cpus=0, max_retries=0)
def _examine(
    pins: dict[str, str], url: str, probe: str, content: bytes, peers: dict[str, tuple[str, int]], gpus: float
) -> list[CheckResult]:
    def stored() -> Iterator[CheckResult]:
        storage = Storage(url)
        yield storage_checks.sees(storage, probe, content)
        yield from storage_checks.check_storage(storage)
        yield from storage_checks.clock(storage)

    return [*check_machine(pins, gpus=gpus), reachable(peers), *reported("storage", storage_checks.RULE, stored)]


def _written(place: Storage, content: bytes) -> list[CheckResult]:
    place.write_bytes(content)
    return []


def _peers(node: Mapping[str, Any], alive: list[Any]) -> dict[str, tuple[str, int]]:
    return {
        f"{kind} of {other['NodeManagerAddress']}": (other["NodeManagerAddress"], other[port])
        for other in alive
        if other["NodeID"] != node["NodeID"]
        for kind, port in (("raylet", "NodeManagerPort"), ("object manager", "ObjectManagerPort"))
    }


def _findings(task: Any, node: Mapping[str, Any]) -> list[CheckResult]:
    name = f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"
    try:
        findings: list[CheckResult] = ray.get(task, timeout=0)
    except (RayError, IcreError) as error:
        told = str(error).strip().splitlines()[-1]
        findings = [
            CheckResult("node", "failed", told, "a task runs on it", "see the node's raylet.out and its memory")
        ]
    return [replace(found, node=name) for found in findings]


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False
