"""Local Prometheus and Pushgateway servers on loopback, for a Ray cluster on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from cluster.local.programs import Program, check_port, free_ports
from icre.errors import IcreError, UserError

HERE = Path(__file__).parent
_NAMES = {"prometheus": ("prometheus",), "prometheus-pushgateway": ("prometheus-pushgateway", "pushgateway")}


class Monitoring:
    """Both servers for the duration of a ``with`` block; their data is removed with them.

    discovery: Ray's list of its metrics agents, ``prom_metrics_service_discovery.json`` in its temporary folder; it
    may not exist yet. ``prometheus``, ``pushgateway``: their URLs. Ports: None selects free ones. scrape_s: seconds
    between scrapes; None keeps the value in prometheus.yml. Raises UserError for a port in use or a missing folder,
    IcreError for a program that is missing or does not start.
    """

    def __init__(
        self,
        discovery: Path,
        *,
        prometheus_port: int | None = None,
        pushgateway_port: int | None = None,
        scrape_s: int | None = None,
    ) -> None:
        if not discovery.parent.is_dir():
            raise UserError(
                f"{discovery.parent}: no such folder, so no Ray keeps its files there",
                hint="--ray-folder: as `--temp-dir` of `ray start`, by default /tmp/ray",
            )
        free = iter(free_ports(2))
        ports = [
            next(free) if port is None else check_port(port, option=option)
            for port, option in ((prometheus_port, "--port"), (pushgateway_port, "--pushgateway-port"))
        ]
        self.discovery, self._scrape_s = discovery.absolute(), scrape_s
        self._addresses = [f"127.0.0.1:{port}" for port in ports]
        self.prometheus, self.pushgateway = (f"http://{address}" for address in self._addresses)

    def __enter__(self) -> Monitoring:
        with ExitStack() as undo:
            self.folder = Path(tempfile.mkdtemp(prefix="icre-monitoring-"))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            shutil.copy(HERE / "rules.yml", self.folder)
            (self.folder / "prometheus.yml").write_text(yaml.safe_dump(self._configuration()))
            gateway = [_program("prometheus-pushgateway"), f"--web.listen-address={self._addresses[1]}"]
            gateway.append("--persistence.file=")  # Debian's package persists to /var/lib by default
            self._start("the Pushgateway", gateway, self.pushgateway, undo)
            options = {
                "config.file": "prometheus.yml",
                "storage.tsdb.path": "data",
                "storage.tsdb.retention.time": "2d",
            }
            flags = [f"--{key}={value}" for key, value in options.items()]
            server = [_program("prometheus"), f"--web.listen-address={self._addresses[0]}", *flags]
            self._start("Prometheus", server, self.prometheus, undo)
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _configuration(self) -> dict[str, Any]:
        """prometheus.yml with this cluster's discovery file and this gateway's address."""
        found: dict[str, Any] = yaml.safe_load((HERE / "prometheus.yml").read_text())
        jobs = {job["job_name"]: job for job in found["scrape_configs"]}
        jobs["ray"]["file_sd_configs"][0]["files"] = [str(self.discovery)]
        jobs["pushgateway"]["static_configs"][0]["targets"] = [self._addresses[1]]
        if self._scrape_s is not None:
            found["global"] |= {"scrape_interval": f"{self._scrape_s}s", "evaluation_interval": f"{self._scrape_s}s"}
            jobs["ray"]["file_sd_configs"][0]["refresh_interval"] = f"{self._scrape_s}s"
        return found

    def _start(self, label: str, command: list[str], url: str, undo: ExitStack) -> None:
        environment = {"PATH": os.defpath, "HOME": str(self.folder)}
        program = Program(label, command, log=self.folder / f"{Path(command[0]).name}.log", environment=environment)
        undo.callback(program.kill)
        program.start(lambda: _answers(f"{url}/-/ready"))


def _program(name: str) -> str:
    """Path of a program. Debian and the upstream archives name the gateway differently."""
    for candidate in _NAMES[name]:
        if (found := shutil.which(candidate)) is not None:
            return found
    raise IcreError(
        f"there is no `{name}` on this machine",
        hint=f"`apt-get install {name}` (RUNLEVEL=1 keeps it from starting a service), or prometheus.io/download",
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
