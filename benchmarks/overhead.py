"""Claim: Ray Train adds almost nothing to the training step: at most 1.03 times a bare loop under torchrun.

    python -m benchmarks.overhead [--rounds 3] [--steps 150] [--warm-up 30] [--workers 2]

Two sides alternate, with the same number of processes on the same prepared images, kept decoded, over gloo with
synchronised batch norm: the unchanged `icre train` (Ray Train, telemetry, watchdog, progress, notices), and `torchrun`
with a loop of only the step. Ray runs only during its own rounds. A round's result is the mean over its steps, which
includes once-a-second work but excludes the start, the final checkpoint and the first steps; the median round is
reported. CPU seconds are those of the training processes. Both sides train the same; their final losses are compared.
Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import ray.train
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from icre.training import distributed
from icre.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from icre.training.step import train_step
from pipelines.data import ingest
from pipelines.data.feed import Feed
from pipelines.data.prepared import open_data
from pipelines.runs.networks import initial_network
from pipelines.runtime.session import Demand, ray_session
from pipelines.training import execution, launch
from pipelines.training.trainer import Trainer
from pipelines.training.worker_loop import train_worker

HEIGHT, WIDTH = 96, 48
CPU = torch.device("cpu")


class Cost(NamedTuple):
    """Cost of one step: mean over the workers and the timed steps of a round."""

    wall_s: float
    cpu_s: float
    loss: float


class Clock:
    """Wall and CPU time of this process at the start of every step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def tick(self) -> None:
        """Record the start of a step."""
        self.times.append((time.perf_counter(), time.process_time()))

    def write(self, folder: Path, rank: int) -> None:
        """Write the times for the parent process."""
        folder.mkdir(exist_ok=True)
        (folder / f"{rank}.json").write_text(json.dumps(self.times))


def main() -> None:
    """Prepare a data set, alternate the sides and print the ratio."""
    options = _options()
    if options.bare is not None:
        bare_loop(config.load_recipe(options.bare), Path(options.bare).parent)
        return
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as name:
        scratch = Path(name)
        os.environ["ICRE_CACHE"] = str(scratch / "cache")
        recipe = _recipe(scratch, options)
        spec = SyntheticSpec(identities=40, images_per_modality=8, height=HEIGHT, width=WIDTH)
        generate(scratch / "images", spec)
        with ray_session(scratch / "logs", demand=Demand(2)):
            ingest.prepare(recipe)
        turns: dict[str, list[Cost]] = {"ray": [], "torchrun": []}
        for turn in range(options.rounds):
            turns["ray"].append(_under_ray(recipe, scratch / f"ray-{turn}", options))
            turns["torchrun"].append(_under_torchrun(recipe, scratch / f"torchrun-{turn}", options))
    _report(options, turns)


def _under_ray(recipe: config.Recipe, folder: Path, options: argparse.Namespace) -> Cost:
    """Run a complete ``icre train``."""

    def measured(settings: dict[Any, Any]) -> None:
        clock, step = Clock(), Trainer.step

        def timed_step(worker: Trainer, batch: Any) -> Any:
            clock.tick()
            return step(worker, batch)

        with patch.object(Trainer, "step", timed_step):
            train_worker(settings)
        clock.write(folder, ray.train.get_context().get_world_rank())

    demand = Demand.of_training(recipe.train)
    with ray_session(folder.parent / "logs", demand=demand), patch.object(execution, "train_worker", measured):
        run = launch.start(recipe, folder.name)
        execution.execute(run)
    losses = [row["loss"] for row in run.metrics() if row["kind"] == "step"]
    return _cost(folder, losses[-1], options)


def _under_torchrun(recipe: config.Recipe, folder: Path, options: argparse.Namespace) -> Cost:
    """Run :func:`bare_loop` in the same number of processes."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.workers}"]
    command += ["-m", "benchmarks.overhead", "--bare", str(folder / "recipe.yaml")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return _cost(folder, float((folder / "loss").read_text()), options)


def bare_loop(recipe: config.Recipe, folder: Path) -> None:
    """One process under torchrun: the step and its prerequisites only."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world, steps = dist.get_rank(), dist.get_world_size(), recipe.train.steps_per_epoch or 1
    data = open_data(recipe)
    network = initial_network(recipe, classes=len(data.classes))
    distributed.synchronise_batch_norm(network)
    optimizer = build_optimizer(network, recipe.optimizer)
    model = DistributedDataParallel(network, forward_sync_buffers=False)
    clock, terms = Clock(), {"loss": float("nan")}
    for step, batch in enumerate(Feed(data, recipe, steps, rank, world).batches(start=0, stop=steps, device=CPU)):
        clock.tick()
        set_learning_rate(optimizer, learning_rate_factor(step / steps, recipe.schedule))
        model.train()  # type: ignore[no-untyped-call]
        terms = train_step(model, optimizer, batch, recipe=recipe, epoch=0)
    clock.write(folder, rank)
    if rank == 0:
        (folder / "loss").write_text(str(terms["loss"]))
    dist.destroy_process_group()


def _cost(folder: Path, loss: float, options: argparse.Namespace) -> Cost:
    spans = []
    for rank in range(options.workers):
        times = json.loads((folder / f"{rank}.json").read_text())
        (wall, cpu), (last_wall, last_cpu) = times[options.warm_up], times[-1]
        steps = len(times) - 1 - options.warm_up
        spans.append(((last_wall - wall) / steps, (last_cpu - cpu) / steps))
    wall_s, cpu_s = (statistics.mean(values) for values in zip(*spans, strict=True))
    return Cost(wall_s, cpu_s, loss)


def _recipe(scratch: Path, options: argparse.Namespace) -> config.Recipe:
    values = {
        "storage": str(scratch / "storage"),
        "data": {"root": str(scratch / "images"), "height": HEIGHT, "width": WIDTH, "split": {"val": 0.1, "test": 0.1}},
        "model": {"backbone": "resnet18", "dim": 128, "heads": 4},
        "batch": {"identities": 8, "visible": 2, "infrared": 2},
        # Small, so that the losses of both sides stay comparable.
        "optimizer": {"lr": 1e-4, "backbone_lr": 1e-4},
        "schedule": {"warmup_epochs": 0, "milestones": []},
        "train": {
            "epochs": 1,
            "steps_per_epoch": options.warm_up + options.steps + 1,
            "workers": options.workers,
            "cache": "decoded",
            "loaders": 1,
        },
    }
    return config.parse_recipe(values, where="the options")


def _report(options: argparse.Namespace, turns: dict[str, list[Cost]]) -> None:
    losses = {cost.loss for costs in turns.values() for cost in costs}
    if max(losses) - min(losses) > 1e-3 * abs(max(losses)):
        raise SystemExit(f"the sides did not train the same: last losses {turns}")
    medians = {
        f"{side}_{unit}": statistics.median(getattr(cost, unit) for cost in costs)
        for side, costs in turns.items()
        for unit in ("cpu_s", "wall_s")
    }
    result = {
        "benchmark": "overhead",
        "workers": options.workers,
        "batch": 32,
        "steps": options.steps,
        "rounds": options.rounds,
        **{name: round(value, 4) for name, value in medians.items()},
        "cpu_ratio": round(medians["ray_cpu_s"] / medians["torchrun_cpu_s"], 3),
        "wall_ratio": round(medians["ray_wall_s"] / medians["torchrun_wall_s"], 3),
        "cpu_ratios": [round(a.cpu_s / b.cpu_s, 3) for a, b in zip(*turns.values(), strict=True)],
        "wall_ratios": [round(a.wall_s / b.wall_s, 3) for a, b in zip(*turns.values(), strict=True)],
        "same_losses": len(losses) == 1,
    }
    print(
        f"| training step under Ray Train, {options.workers} workers, 32 images of {HEIGHT}x{WIDTH}, ResNet-18 "
        f"| Ray Train: {1000 * medians['ray_cpu_s']:.1f} ms CPU, {1000 * medians['ray_wall_s']:.1f} ms "
        f"| torchrun: {1000 * medians['torchrun_cpu_s']:.1f} ms CPU, {1000 * medians['torchrun_wall_s']:.1f} ms "
        f"| x{result['cpu_ratio']} CPU, x{result['wall_ratio']} wall |"
    )
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds per side; the median is reported")
    parser.add_argument("--steps", type=int, default=150, help="timed steps per round")
    parser.add_argument("--warm-up", type=int, default=30, help="untimed steps before them")
    parser.add_argument("--workers", type=int, default=2, help="training processes per side")
    parser.add_argument("--bare", help="internal: run as a torchrun process with this recipe")
    return parser.parse_args()


if __name__ == "__main__":
    main()
