"""Trainings with failure injection, their environments, and their comparison, for benchmarks/chaos.py."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load

from cluster.local.object_store import ObjectStore
from cluster.local.ray_cluster import LocalCluster, Node
from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from pipelines.data import ingest
from pipelines.runs.run import Run
from pipelines.runtime.session import Demand, ray_session
from pipelines.storage import Storage

WAIT_S = 240.0
TIMES = {"time", "images_per_s", "data_wait_s"}
RECIPE: dict[str, Any] = {
    "data": {"height": 64, "width": 32, "shard_mib": 0.05, "split": {"val": 0.2, "test": 0.2}},
    "model": {"backbone": "resnet18", "dim": 32, "heads": 4},
    "batch": {"identities": 4, "visible": 2, "infrared": 2},
    "augmentation": {"pad": 4},
    "optimizer": {"name": "sgd", "lr": 2e-4, "backbone_lr": 2e-4},
    "schedule": {"warmup_epochs": 0, "milestones": []},
    "train": {
        "epochs": 3,
        "steps_per_epoch": 25,
        "workers": 2,
        "cpus_per_worker": 0.5,
        "loaders": 1,
        "loader_cpus": 0.25,
        "step_timeout_s": 25,
    },
    "checkpoints": {"minutes": 0.025},
    "evaluation": {"trials": 2},
}


@dataclass(frozen=True)
class Stage:
    """Environment of the scenarios: prepared images, an object store and a scratch folder."""

    folder: Path
    store: ObjectStore
    workers: int = 2

    def recipe(self, storage: str) -> Path:
        """A recipe file whose data set is prepared in ``storage``."""
        path = self.folder / f"{''.join(c if c.isalnum() else '-' for c in storage)}.yaml"
        if not path.exists():
            train = RECIPE["train"] | {"workers": self.workers}
            path.write_text(yaml.safe_dump(RECIPE | {"storage": storage, "train": train}))
            recipe = config.load_recipe(path, [f"data.root={self.folder / 'images'}"])
            with ray_session(self.folder / "logs", demand=Demand(4)):
                ingest.prepare(recipe)
        return path


@dataclass
class Outcome:
    """Outcome of a disturbed run."""

    lost: str
    """Repeated work."""
    restart_s: float | None
    """Seconds from the last activity of the old workers to the first of the new ones."""
    exit_codes: list[int]
    weights_off: float
    """Largest ||a - b|| / ||b|| of a tensor a and the undisturbed run's b; 0 is bit for bit. ||b|| is at least a
    thousandth of the largest tensor's norm, because biases that start at 0 stay very small."""
    metrics_off: float
    """Largest |a - b| / |b| of a number in metrics.jsonl; infinite for missing, duplicate or different lines."""
    bound: tuple[float, float] = (0.0, 0.0)
    """Allowed differences of weights and metrics."""
    said: str = ""
    """The line of standard error that reports the failure."""


@dataclass
class Command:
    """One ``icre train`` in a separate process; later commands resume the same run."""

    stage: Stage
    name: str
    storage: str
    environment: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def errors(self) -> Path:
        """File with the command's standard error."""
        return self.stage.folder / f"{self.name}.err"

    @property
    def said(self) -> str:
        """All standard error so far."""
        return self.errors.read_text()

    @property
    def run(self) -> Run:
        """The command's run folder."""
        return Run(Storage(self.storage) / f"runs/{self.name}")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command on the run in its current state."""
        recipe = str(self.stage.recipe(self.storage))
        arguments = ["--config", recipe, "--run", self.name, "--resume", "auto", *self.overrides]
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.train", *arguments],
                env=os.environ | {"ICRE_CHAOS": self.name} | self.environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the command ends, with any exit code."""
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"{self.name} did not end; it said:\n{self.said}") from None
        self.codes.append(process.returncode)

    @contextmanager
    def disturbed(self, *, from_step: int = 30) -> Iterator[subprocess.Popen[bytes]]:
        """Start the command; the body, which disturbs it, runs once a checkpoint of ``from_step`` is durable."""
        process = self.start()
        self.wait_for_step(process, from_step)
        yield process
        self.finish(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL, and wait until the workers have stopped: until then they train and write checkpoints."""
        process.kill()
        deadline = time.monotonic() + WAIT_S
        while self.workers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"workers of {self.name} have outlived their command by {WAIT_S:.0f} s")
            time.sleep(0.05)

    def wait_until_it_says(self, process: subprocess.Popen[bytes], text: str) -> None:
        """Wait until ``text`` is on standard error."""
        self._wait(process, lambda: text in self.said, f"never said {text!r}")

    def run_to_the_end(self) -> None:
        """Run the command undisturbed."""
        self.finish(self.start())

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> int:
        """Wait until a checkpoint of ``step`` or later is durable; returns its step."""
        self._wait(process, lambda: self.last_step >= step, f"has no checkpoint of step {step}")
        return self.last_step

    @property
    def last_step(self) -> int:
        """Step of the newest durable checkpoint."""
        last = self.run.checkpoints.pointed("last")
        return 0 if last is None else int(last.removeprefix("step-"))

    def _wait(self, process: subprocess.Popen[bytes], happened: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not happened():
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise RuntimeError(f"{self.name} {otherwise}; it said:\n{self.said}")
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """Process ids of the training workers."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                is_worker = entry.name.isdigit() and "RayTrainWorker" in (entry / "cmdline").read_text()
                if is_worker and f"ICRE_CHAOS={self.name}\0" in (entry / "environ").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    def outcome(self, calm: Run, *, lost: str = "", sign: str = "") -> Outcome:
        """Compare with the undisturbed run. sign: text of the standard-error line to quote."""
        restarts = (self.run.location / "status.json").read_json().get("restarts", [])
        repeated = ", ".join(f"{r['repeated']} steps after step {r['from_step']}" for r in restarts)
        return Outcome(
            lost=lost or repeated or "nothing",
            restart_s=restarts[0]["seconds"] if restarts else None,
            exit_codes=self.codes,
            weights_off=weights_off(self.run, calm),
            metrics_off=metrics_off(self.run, calm),
            said=next((line for line in self.said.splitlines() if sign and sign in line), ""),
        )


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Weights of the last checkpoint."""
    return load(
        (run.location / "checkpoints" / str(run.checkpoints.pointed("last")) / "model.safetensors").read_bytes()
    )


def weights_off(run: Run, calm: Run) -> float:
    """See :class:`Outcome`."""
    mine, theirs = weights(run), weights(calm)
    if mine.keys() != theirs.keys():
        return math.inf
    distances = {name: float((mine[name].double() - theirs[name].double()).norm()) for name in mine}
    norms = {name: float(value.double().norm()) for name, value in theirs.items()}
    floor = 1e-3 * max(norms.values())
    return max(distances[name] / max(norms[name], floor) for name in mine)


def metrics_off(run: Run, calm: Run) -> float:
    """See :class:`Outcome`. Excludes values that depend on the clock."""
    lines = [[sorted((k, v) for k, v in row.items() if k not in TIMES) for row in r.metrics()] for r in (run, calm)]
    keys = [[[k for k, _ in line] for line in side] for side in lines]
    if keys[0] != keys[1]:
        return math.inf
    pairs: list[tuple[Any, Any]] = [
        (a, b) for x, y in zip(*lines, strict=True) for (_, a), (_, b) in zip(x, y, strict=True)
    ]
    if any(a != b for a, b in pairs if not isinstance(b, float)):
        return math.inf
    return float(max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs if isinstance(b, float)))


@contextmanager
def stage(workers: int = 2) -> Iterator[Stage]:
    """Prepared images and an object store."""
    with tempfile.TemporaryDirectory(prefix="icre-chaos-") as scratch, ObjectStore(bucket="icre-chaos") as store:
        folder = Path(scratch)
        os.environ |= {**store.environment(), "ICRE_CACHE": str(folder / "cache")}
        generate(folder / "images", SyntheticSpec(identities=12, images_per_modality=4, height=64, width=32))
        yield Stage(folder, store, workers)


def undisturbed(place: Stage) -> Run:
    """The undisturbed reference run."""
    calm = Command(place, "calm", str(place.folder / "storage"))
    calm.run_to_the_end()
    if calm.codes != [0]:
        raise RuntimeError(f"the undisturbed run failed:\n{calm.said}")
    return calm.run


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    """A separate small file system. Requires permission to mount one."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Fill ``disk`` completely."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def nodes(name: str, *, others: int, cpus: int) -> Iterator[LocalCluster]:
    """A Ray cluster with a one-CPU node for the command, and others. name: the command that will use it."""
    environment = {"ICRE_CHAOS": name}  # workers inherit it from their raylet
    with LocalCluster(nodes=1 + others, cpus=cpus, head_cpus=1, environment=environment) as cluster:
        yield cluster


def using(cluster: LocalCluster) -> dict[str, str]:
    """Environment with which a command uses the cluster."""
    return cluster.environment() | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}


def one_that_trains(cluster: LocalCluster, workers: list[int]) -> Node:
    """A node other than the head that runs one of ``workers``."""
    return cluster.nodes[max(cluster.node_of(pid) for pid in workers)]


def give_notice(cluster: LocalCluster, node: Node, *, seconds: int) -> None:
    """Announce, as a cloud does, that ``node`` will be removed in ``seconds``; it is not actually removed."""
    ray = str(Path(sys.executable).with_name("ray"))
    drain = [ray, "drain-node", "--address", cluster.address, "--node-id", node.ray_id]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot machine is taken back"]
    drain += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(drain, check=True, capture_output=True, env=os.environ | cluster.environment())
