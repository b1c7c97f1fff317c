"""Alerts and dashboard: by promtool, and by a real Prometheus that scrapes a real Ray and a real Pushgateway."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from cluster.local.ray_cluster import LocalCluster
from cluster.monitoring.servers import Monitoring
from icre.errors import IcreError, UserError
from pipelines.experiments import watch
from pipelines.retraining import tick_metrics
from pipelines.telemetry.prometheus import LIVE, SUMMARY

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "monitoring"
PATIENCE_S = 60.0


def need(program: str) -> None:
    """Debian packages of Prometheus; root installs them, so not everybody has them."""
    if shutil.which(program) is None:
        if os.environ.get("ICRE_REQUIRE_PROMETHEUS"):
            pytest.fail(f"ICRE_REQUIRE_PROMETHEUS is set and there is no {program}")
        pytest.skip(f"no {program} on this machine")


def eventually(look: Callable[[], Any]) -> Any:
    """The first true thing that ``look`` finds."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


# Alerts


def alerts() -> dict[str, Any]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def expected() -> dict[str, list[dict[str, str]]]:
    """Labels of the alerts that rules_test.yml wants to see firing, by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for test in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        for question in test["promql_expr_test"]:
            for sample in question["exp_samples"]:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
                found.setdefault(labels["alertname"], []).append(labels)
    return found


def anchors(text: str) -> set[str]:
    """Of the headings of a Markdown text, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    need("promtool")
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        ran = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_seen_firing_and_says_what_to_do_first() -> None:
    assert expected().keys() == alerts().keys()
    sections = anchors((ROOT / "docs" / "monitoring.md").read_text())
    for name, rule in alerts().items():
        told = rule["annotations"]
        assert set(told) == {"summary", "description", "runbook"} and "irst " in told["description"]
        page, _, anchor = told["runbook"].partition("#")
        assert page == "docs/monitoring.md" and anchor == name.lower() and anchor in sections
        for labels in expected()[name]:
            assert labels["severity"] == rule["labels"]["severity"]
            assert set(re.findall(r"\$labels\.(\w+)", told["summary"])) <= labels.keys()


# Dashboard


DASHBOARD = json.loads((ROOT / "cluster/monitoring/icre.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_only_metrics_that_the_pipelines_write_are_asked_for() -> None:
    asked = set(re.findall(r"\b(?:ray_)?icre_\w+", " ".join(queries() + [rule["expr"] for rule in alerts().values()])))
    written = {f"ray_{name}" for name in LIVE} | SUMMARY.keys() | tick_metrics.HELP.keys()
    written |= {f"ray_{name}" for name in re.findall(r'"(icre_sweep_\w+)"', inspect.getsource(watch))}
    assert asked - written == set()
    assert {f"ray_{name}" for name in LIVE} | tick_metrics.HELP.keys() <= asked


def test_the_dashboard_has_the_shape_that_grafana_imports() -> None:
    model = DASHBOARD
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
    taken = set[tuple[int, int]]()
    for panel in model["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references) and (references or panel["type"] == "row")
    # Every variable that is used is there.
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(model["panels"])))
    assert used == {variable["name"] for variable in model["templating"]["list"]}
    grafana = pytest.importorskip("ray.dashboard.modules.metrics.grafana_dashboard_factory")
    rays = json.loads(grafana.generate_train_grafana_dashboard()[0])
    assert model["schemaVersion"] == rays["schemaVersion"]
    assert model.keys() <= rays.keys()


# A real run, as far as Prometheus can tell

REPORT = """
import json, sys, time
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
folder = sys.argv[1]

@ray.remote(num_cpus=0.1)
class Worker:
    def start(self):
        from icre import config
        from pipelines.runs.run import Run
        from pipelines.storage import Storage
        from pipelines.telemetry.telemetry import Telemetry
        from ray.util.metrics import Gauge
        run = Run(Storage(folder + "/runs/night-1"))
        self.told = Telemetry.open(config.load_recipe(None, ["name=night"]), run, history=[])
        self.told.restarted(1)
        row = {"kind": "step", "epoch": 0, "lr": 0.1, "loss": 2.0, "id": 2.0, "images_per_s": 64.0, "data_wait_s": 0.1}
        self.told.step(row | {"step": 1})
        self.told.validation({"kind": "validation", "step": 1, "epoch": 0, "rank1": 0.5, "mAP": 0.25, "mINP": 0.1})
        self.told.checkpoint(step=1, seconds=3.0, stall_seconds=0.5)
        self.gauges = {
            name: Gauge(name, "As a sweep sets it.", ("sweep", *tags))
            for name, tags in (
                ("icre_sweep_trials", ("state",)),
                ("icre_sweep_best_ratio", ()),
                ("icre_sweep_last_report_timestamp_seconds", ()),
            )
        }

    def again(self):
        for state in ("pending", "running", "finished", "stopped", "failed"):
            self.gauges["icre_sweep_trials"].set(1, {"sweep": "s", "state": state})
        self.gauges["icre_sweep_best_ratio"].set(0.5, {"sweep": "s"})
        self.gauges["icre_sweep_last_report_timestamp_seconds"].set(time.time(), {"sweep": "s"})

worker = Worker.remote()
ray.get(worker.start.remote())
while True:
    ray.get(worker.again.remote())
    print("reported", flush=True)
    time.sleep(1)
"""


def push_retraining(gateway: str) -> None:
    """What a tick pushes, by the names that it gives itself."""
    registry = CollectorRegistry()
    labels = {"icre_retrain_outcome": {"outcome": "failed"}}
    for name, text in tick_metrics.HELP.items():
        more = {"metric": "mAP"} if name.endswith("_metric_ratio") else labels.get(name, {})
        gauge = Gauge(name, text, ["model", *more], registry=registry)
        gauge.labels(model="night", **more).set(time.time() if name.endswith("timestamp_seconds") else 1)
    pushadd_to_gateway(gateway, job=tick_metrics.JOB, registry=registry, grouping_key={"model": "night"})


def ask(prometheus: str, query: str) -> list[Any]:
    asked = urllib.parse.urlencode({"query": query.replace("$run", ".*")})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{asked}", timeout=PATIENCE_S) as answer:
        found = json.load(answer)
    assert found["status"] == "success"
    return list(found["data"]["result"])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus' URL; it watches a training, a sweep and a retraining, in a manner of speaking."""
    need("prometheus")
    need("prometheus-pushgateway")
    environment = {"RAY_metrics_report_interval_ms": "1000"}  # instead of 10 s
    with (
        LocalCluster(nodes=1, environment=environment) as cluster,
        Monitoring(cluster.discovery, scrape_s=1) as servers,
    ):
        push_retraining(servers.pushgateway)
        command = [sys.executable, "-c", REPORT, str(tmp_path_factory.mktemp("storage"))]
        driver = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | cluster.environment(), stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None and driver.stdout.readline() == "reported\n"
        yield servers.prometheus
        driver.kill()
        driver.wait()
        driver.stdout.close()


def test_every_query_of_the_dashboard_finds_something(watched: str) -> None:
    waiting = queries()
    found: dict[str, list[Any]] = {}

    def all_found() -> bool:
        found.update({query: samples for query in waiting if (samples := ask(watched, query))})
        waiting[:] = [query for query in waiting if query not in found]
        return not waiting

    try:
        eventually(all_found)
    except AssertionError:
        pytest.fail(f"nothing was found by {waiting}")
    for panel in PANELS:
        for target in panel["targets"]:
            samples, legend = found[target["expr"]], target["legendFormat"]
            labels = set(re.findall(r"\{\{(\w+)\}\}", legend))
            assert all(labels <= sample["metric"].keys() for sample in samples), (panel["title"], legend)
            if panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
                assert all(0 <= float(sample["value"][1]) <= 1 for sample in samples), panel["title"]


def test_an_alert_fires_in_prometheus(watched: str) -> None:
    fired = eventually(lambda: ask(watched, 'ALERTS{alertname="ICRERetrainFailed", alertstate="firing"}'))
    assert [sample["metric"]["model"] for sample in fired] == ["night"]
    assert not ask(watched, 'ALERTS{alertname!="ICRERetrainFailed", alertstate="firing"}')


# The servers and their command


def test_what_was_pushed_goes_to_no_disk(tmp_path: Path) -> None:
    """It would be written minutes later, and come up again with the next start."""
    need("prometheus")
    need("prometheus-pushgateway")
    with (
        Monitoring(tmp_path / "no-cluster.json") as servers,
        urllib.request.urlopen(f"{servers.pushgateway}/api/v1/status") as answer,
    ):
        assert json.load(answer)["data"]["flags"]["persistence.file"] == ""


def test_the_command_serves_on_loopback_until_interrupted(tmp_path: Path) -> None:
    need("prometheus")
    need("prometheus-pushgateway")
    command = [sys.executable, "-m", "cluster.monitoring", "--ray-folder", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--port=0", "--pushgateway-port=0"],
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, a CI run among them, with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        lines = list[str]()
        for line in process.stdout:
            lines.append(line)
            if line.startswith("# ready"):
                break
        prometheus, gateway = re.findall(r"http://127\.0\.0\.1:\d+", "".join(lines))
        with urllib.request.urlopen(f"{prometheus}/api/v1/status/config", timeout=PATIENCE_S) as answer:
            loaded = yaml.safe_load(json.load(answer)["data"]["yaml"])
        assert str(tmp_path / "prom_metrics_service_discovery.json") in json.dumps(loaded)
        assert gateway.removeprefix("http://") in json.dumps(loaded)
        with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=PATIENCE_S) as answer:
            groups = json.load(answer)["data"]["groups"]
        assert {rule["name"] for group in groups for rule in group["rules"]} == alerts().keys()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    for url in (prometheus, gateway):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0


def test_a_port_in_use_a_missing_folder_or_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discovery = tmp_path / "prom_metrics_service_discovery.json"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="in use"):
        Monitoring(discovery, prometheus_port=taken.getsockname()[1])
    with pytest.raises(UserError, match="no such folder"):
        Monitoring(tmp_path / "nowhere" / "x.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IcreError, match="prometheus-pushgateway") as missing, Monitoring(discovery):
        pass
    assert "apt-get install" in missing.value.hint
