"""A real Ray cluster of two nodes that wants a token, and the command line in this process."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator

import pytest

from cluster.local.ray_cluster import LocalCluster
from pipelines.cli import app
from pipelines.runtime.command import run_app

PLANTED = {
    name: f"planted{secrets.token_hex(16)}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD")
}
"""Secrets of the nodes: what runs there may use them, and nothing may tell them."""

Icre = Callable[..., tuple[int, str, str]]


@pytest.fixture
def icre(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Icre:
    """``icre("submit", ...)``: exit code, standard output and standard error, without a new process."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["icre", *arguments])
        try:
            run_app(app)
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="package")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, cpus=2, environment=PLANTED) as found:
        yield found


@pytest.fixture
def at_cluster(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    """This process is a client of the cluster's job server, by its environment."""
    found = cluster.environment()
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, found[name])
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return cluster
