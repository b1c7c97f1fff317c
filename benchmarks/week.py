"""Claim: the registry, the metrics and the alerts reflect what happened in a week of nights with failures.

    python -m benchmarks.week [--steps 40] [--keep FOLDER]

Uses two Ray nodes on this machine, a real S3 server, a real Prometheus with ICRE's alerts and a Pushgateway. A night is
an `icre submit retrain` to the cluster's job server, on synthetic identities that arrive over the week:

    monday      the first model
    tuesday     new identities
    wednesday   nothing new
    thursday    new identities, and a broken recipe: from scratch, with a learning rate that learns nothing
    friday      the same recipe; the tick is killed with SIGKILL during training, and called again
    saturday    the recipe is fixed; the object store fails during training; called again once it is back
    sunday      two concurrent ticks; then a rollback

Prints a Markdown row for each call, then the registry's history. Exits with 1 if an outcome, the history, a training, a
metric or the set of firing alerts differs from the expected one. Needs Debian's prometheus and prometheus-pushgateway.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.local.object_store import ObjectStore
from cluster.local.programs import kill_all
from cluster.local.ray_cluster import LocalCluster
from cluster.monitoring.servers import Monitoring
from icre.data.synthetic import SyntheticSpec, generate
from pipelines.retraining.registry import Registry
from pipelines.runs.lease import holder
from pipelines.runs.run import Run
from pipelines.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
MODEL = "week"
WAIT_S = 600.0
ARRIVALS = {"monday": 60, "tuesday": 60, "thursday": 20, "friday": 20, "saturday": 60, "sunday": 60}
"""New identities before each night."""
TRAINED = ("monday", "tuesday", "thursday", "friday", "saturday", "sunday")
SPOILT = ("retrain.start=scratch", "optimizer.lr=1.0e-8", "optimizer.backbone_lr=1.0e-8")
RECIPE = (
    f"name={MODEL}", f"data.name={MODEL}", "data.synthetic=null", "data.split.file=null", "data.height=64",
    "data.width=32", "model.dim=64", "batch.visible=2", "batch.infrared=2", "schedule.milestones=[]",
    "schedule.warmup_epochs=0", "train.epochs=1", "train.workers=1", "checkpoints.minutes=0.03",
    "evaluation.workers=1", "evaluation.trials=4", "retrain.min_queries=10", "retrain.floor=0.5", "retrain.lease_s=10",
)  # fmt: skip
OF_THE_MACHINE = {"ICREDiskFull"}
"""Alerts that may fire on this machine independently of the benchmark."""
REFUSED, FAILED, BROKEN_OFF = "ICRERetrainRefused", "ICRERetrainFailed", "ICRETrainingFailed"


@dataclass(frozen=True)
class End:
    """Result of a call: exit code, newest registry entry, firing alerts."""

    code: int
    serves: int
    alerts: frozenset[str] = frozenset()

    def cells(self) -> list[str]:
        """Cells of a Markdown table."""
        return [f"{self.code}", f"{self.serves}", ", ".join(sorted(self.alerts))]


@dataclass
class Week:
    """The benchmark's environment, and the deviations found."""

    folder: Path
    store: ObjectStore
    cluster: LocalCluster
    monitoring: Monitoring
    steps: int
    wrong: list[str] = field(default_factory=list)

    @property
    def storage(self) -> Storage:
        """Storage of all runs."""
        return Storage(f"{self.store.url}/{MODEL}")

    @property
    def registry(self) -> Registry:
        """The model's registry."""
        return Registry(self.storage, MODEL)

    def challenger(self, night: str) -> Run:
        """A night's run."""
        return Run(self.storage / f"runs/{MODEL}-tick-{night}")

    def submit(self, night: str, *overrides: str, call: int = 1) -> subprocess.Popen[bytes]:
        """Run `icre submit retrain` for a night; its output goes to a file."""
        places = [f"storage={self.storage.url}", f"data.root={self.folder / 'images'}"]
        places += [f"train.steps_per_epoch={self.steps}", f"telemetry.pushgateway={self.monitoring.pushgateway}"]
        words = ["--config", "configs/demo.yaml", "--tick", night, "--exit-code", *RECIPE, *places, *overrides]
        with (self.folder / f"{night}-{call}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "submit", "--id", f"{night}-{call}", "retrain", *words],
                cwd=ROOT,
                env=os.environ | self.cluster.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def close(
        self,
        night: str,
        story: str,
        process: subprocess.Popen[bytes],
        told: End,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Print how a call ended and Prometheus's alerts. ``then`` runs before the storage is read."""
        code = _ended(process)
        alerts = self._alerts()
        then()
        found = End(code, self.registry.newest(), alerts)
        if found != told:
            self.wrong.append(f"{night}, {story}: {found}, not {told}")
        print(
            f"| {' | '.join([night, story, *found.cells()])} |" + ("" if found == told else " NOT AS TOLD"), flush=True
        )

    def until_in_training(self, night: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until the night's training has its own first checkpoint."""
        run, start = self.challenger(night), "step-00000000"
        until(lambda: process.poll() is not None or (run.checkpoints.pointed("last") or start) > start)
        if process.poll() is not None or run.state != "running":
            raise SystemExit(f"{night}: its training was over before it could be disturbed; more --steps")

    def kill_driver(self) -> None:
        """Send SIGKILL to the job's process and its shell."""
        pids = [pid for node in self.cluster.nodes.values() for pid in node.pids]
        kill_all(pid for pid in pids if b"pipelines.retrain" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def until_free(self) -> None:
        """Wait until the lease of a killed command expires."""
        until(lambda: holder(self.registry.lease) is None)

    def ask(self, query: str, *, since: float | None = None) -> list[Any]:
        """Result of a Prometheus query; since: for every second from then to now."""
        asked = {"query": query} if since is None else {"query": query, "start": since, "end": time.time(), "step": 1}
        kind = "query" if since is None else "query_range"
        return list(self._get(f"{kind}?{urllib.parse.urlencode(asked)}")["result"])

    def _alerts(self) -> frozenset[str]:
        """Firing alerts, once all metrics pushed so far are scraped and every rule is evaluated on them."""
        asked = time.time()

        def evaluated() -> bool:
            times = [group["lastEvaluation"] for group in self._get("rules?type=alert")["groups"]]
            return all(datetime.fromisoformat(text).timestamp() > asked + 4 for text in times)

        until(evaluated)
        fired = {found["metric"]["alertname"] for found in self.ask('ALERTS{alertstate="firing"}')}
        return frozenset(fired - OF_THE_MACHINE)

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.monitoring.prometheus}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]


def main() -> None:
    """Run the week, print and compare."""
    options = _options()
    started = time.time()
    with _place(options) as week:
        print("| night | what happens | exit code | serves | alerts that fire |\n|---|---|---:|---:|---|")
        play(week)
        week.wrong += history_differs(week) + trainings_differ(week) + metrics_differ(week, started)
    minutes = round((time.time() - started) / 60, 1)
    print(json.dumps({"benchmark": "week", "minutes": minutes, "not_as_told": week.wrong}))
    if week.wrong:
        sys.exit(1)


def play(week: Week) -> None:
    """Run the seven nights."""

    def night(name: str, story: str, told: End, *overrides: str, call: int = 1) -> None:
        week.close(name, story, week.submit(name, *overrides, call=call), told)

    refused = frozenset({REFUSED})
    arrive(week.folder, "monday")
    night("monday", "the first model", End(0, 1))
    arrive(week.folder, "tuesday")
    night("tuesday", "new people", End(0, 2))
    night("wednesday", "nothing new", End(21, 2))
    arrive(week.folder, "thursday")
    night("thursday", "new people, a spoilt recipe", End(20, 2), *SPOILT)

    arrive(week.folder, "friday")
    tick = week.submit("friday", *SPOILT)
    week.until_in_training("friday", tick)
    week.kill_driver()
    week.close("friday", "new people, a spoilt recipe; killed in its training", tick, End(137, 2))
    week.until_free()
    night("friday", "called again", End(20, 2, refused), *SPOILT, call=2)

    arrive(week.folder, "saturday")
    tick = week.submit("saturday")
    week.until_in_training("saturday", tick)
    week.store.kill()
    down = End(1, 2, refused | {FAILED, BROKEN_OFF})
    week.close("saturday", "new people; the object store goes away", tick, down, then=week.store.restart)
    week.until_free()
    night("saturday", "it is back; called again", End(0, 3), call=2)

    arrive(week.folder, "sunday")
    two = [week.submit("sunday", call=call) for call in (1, 2)]
    won, left = sorted(two, key=_ended)
    week.close("sunday", "new people; two ticks at once: one", won, End(0, 4))
    week.close("sunday", "the other", left, End(22, 4))
    rollback = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "registry", "rollback", MODEL, f"storage={week.storage.url}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    week.close("sunday", "somebody rolls back", rollback, End(0, 5))


def history_differs(week: Week) -> list[str]:
    """Check for one registry entry per promotion, by its tick, and one for the rollback to Saturday's model."""
    entries = week.registry.entries()
    print("\n| entry | kind | by | run |\n|---:|---|---|---|")
    for entry in entries:
        kind = entry.kind if entry.kind == "promote" else f"rollback to {entry.origin}"
        by = entry.by if entry.by.startswith("tick") else "a person"
        print(f"| {entry.number} | {kind} | {by} | {entry.run} |")
    nights = ("monday", "tuesday", "saturday", "sunday")
    told = [("promote", f"tick {night}", number) for number, night in enumerate(nights, 1)]
    found = [(entry.kind, entry.by, entry.origin) for entry in entries]
    same = found[:-1] == told and (entries[-1].kind, entries[-1].origin) == ("rollback", 3)
    week.registry.verify(entries[-1])
    return [] if same else [f"history: {found}"]


def trainings_differ(week: Week) -> list[str]:
    """Check for one training per night with new identities, with every step exactly once."""
    names = Storage(week.storage.url + "/runs").list()
    wrong = [] if names == sorted(f"{MODEL}-tick-{night}" for night in TRAINED) else [f"trainings: {names}"]
    for night in TRAINED:
        steps = [row["step"] for row in week.challenger(night).metrics() if row["kind"] == "step"]
        if steps != list(range(1, week.steps + 1)):
            wrong.append(f"steps of {night}: {steps}")
    return wrong


def metrics_differ(week: Week, since: float) -> list[str]:
    """Check the week in Prometheus: outcomes in order, alerts, and the metric of the last promoted model."""
    series = week.ask("icre_retrain_outcome == 1", since=since)
    seen = sorted((float(when), one["metric"]["outcome"]) for one in series for when, _ in one["values"])
    outcomes = [name for name, _ in itertools.groupby(seen, key=lambda pair: pair[1])]
    fired = {one["metric"]["alertname"] for one in week.ask('ALERTS{alertstate="firing"}', since=since)}
    wrong = []
    if outcomes != ["promoted", "nothing_new", "kept", "failed", "promoted", "busy", "promoted"]:
        wrong.append(f"outcomes: {outcomes}")
    if fired - OF_THE_MACHINE != {REFUSED, FAILED, BROKEN_OFF}:
        wrong.append(f"alerts: {sorted(fired)}")
    decision = (week.storage / f"retraining/{MODEL}/sunday/decision.json").read_json()
    (sample,) = week.ask('icre_champion_metric_ratio{metric="mAP"}')
    if abs(float(sample["value"][1]) - decision["frozen"]["challenger"]["mAP"]) > 1e-9:
        wrong.append(f"champion's mAP: {sample}")
    return wrong


def arrive(folder: Path, night: str) -> None:
    """Add the night's identities to the images."""
    nights = list(ARRIVALS)
    before = sum(ARRIVALS[name] for name in nights[: nights.index(night)])
    for modality in ("visible", "infrared"):
        people = sorted((folder / "people" / modality).iterdir())
        for person in people[before : before + ARRIVALS[night]]:
            shutil.copytree(person, folder / "images" / modality / person.name)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; exits after :data:`WAIT_S`."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain; the logs of the calls say more (--keep FOLDER)")
        time.sleep(0.2)


def _ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise SystemExit(f"did not end: {process.args!r}; the logs of the calls say more (--keep FOLDER)") from None


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[Week]:
    with tempfile.TemporaryDirectory(prefix="icre-week-") as scratch:
        folder = options.keep or Path(scratch)
        spec = SyntheticSpec(sum(ARRIVALS.values()), images_per_modality=8, height=64, width=32, difficulty=0.3)
        generate(folder / "people", spec, workers=os.cpu_count() or 1)
        with ObjectStore(bucket="icre-week") as store:
            # Requests to an unavailable store fail after seconds instead of a minute; metrics are sent every second.
            known = store.environment() | {"AWS_MAX_ATTEMPTS": "3"}
            os.environ |= known
            environment = known | {"RAY_metrics_report_interval_ms": "1000", "ICRE_CACHE": str(folder / "cache")}
            with (
                LocalCluster(nodes=2, cpus=2, environment=environment) as cluster,
                Monitoring(cluster.discovery, scrape_s=1) as monitoring,
            ):
                yield Week(folder, store, cluster, monitoring, options.steps)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps per training (default: 40)")
    parser.add_argument("--keep", type=Path, help="folder for the logs of the calls (default: a temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
