"""Cost of a step on W workers: traffic and time on this machine, compared with the model in docs/scaling.md.

    python -m benchmarks.scaling [--rounds 3] [--steps 20] [--warm-up 5]

1, 2 and 4 single-threaded processes over gloo on this machine alternate with the same global batch; results are medians
of the rounds' mean steps. Each round also times the same processes in parallel without communication: their slowdown
from sharing cores and memory is not a communication cost; the rest is. The cost of an image comes from one process,
latency and bandwidth from two, so four processes are a prediction. CPU seconds are those of all processes together.
Prints Markdown tables, then JSON. Exits with an error if the byte counts differ from the model's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.scaling_model import CLASSES, Machine, Network, network_of, predict
from benchmarks.step import random_batch
from icre import config
from icre.model.build import build_network
from icre.training import distributed
from icre.training.optimizer import build_optimizer
from icre.training.step import Batch, train_step

WORKERS = (1, 2, 4)
LARGE = 4 * 2**20
"""Floats in the collective used to measure bandwidth."""
CPU = torch.device("cpu")


class Traffic:
    """Bytes and calls of this process's collectives, while patched in."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the traffic of the body. Gradients are what DistributedDataParallel reduces in the background."""
        gather, reduce = dist.all_gather, dist.all_reduce

        def all_gather(parts: list[Tensor], *args: Any, **kwargs: Any) -> Any:
            self._add("gathered", sum(part.nbytes for part in parts))
            return gather(parts, *args, **kwargs)

        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._add("gradients" if kwargs.get("async_op") else "reduced", tensor.nbytes)
            return reduce(tensor, *args, **kwargs)

        with patch.multiple(dist, all_gather=all_gather, all_reduce=all_reduce):
            yield

    def _add(self, kind: str, size: int) -> None:
        self.bytes[kind] += size
        self.calls[kind] += 1


def main() -> None:
    """Measure all rounds, fit the constants and print the tables."""
    options = _options()
    recipe = _recipe(options)
    network = network_of(recipe)
    turns = [{workers: _turn(workers, recipe, options) for workers in WORKERS} for _ in range(options.rounds)]
    found = {workers: _medians([turn[workers] for turn in turns]) for workers in WORKERS}
    cores = len(os.sched_getaffinity(0))
    images = [float(size) for size in found[1]["sizes"]]
    image_s, fixed_s = np.polyfit(images, found[1]["silent_s"], 1).tolist()
    here = Machine(
        fixed_s=max(0.0, fixed_s),
        image_s=image_s,
        latency_s=found[2]["latency_s"],
        bandwidth=found[2]["bandwidth"],
        copy_bandwidth=found[1]["copy_bandwidth"],
        ring=True,
    )
    _check_traffic(network, found, recipe.batch.size)
    print(
        f"{options.backbone} {options.height}x{options.width}, {recipe.batch.size} images a step, {cores} cores, gloo\n"
    )
    print(f"{_traffic_markdown(found)}\n\n{_steps_markdown(network, here, found, recipe.batch.size)}\n")
    constants = {name: float(f"{value:.3g}") for name, value in asdict(here).items() if isinstance(value, float)}
    print(json.dumps({"benchmark": "scaling", "constants": constants, "network": asdict(network), "measured": found}))


def _turn(workers: int, recipe: config.Recipe, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as folder:
        spawn(_worker, (workers, folder, recipe, options), nprocs=workers)  # type: ignore[no-untyped-call]
        ranks: list[dict[str, Any]] = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]
    return ranks[0] | {"cpu_s": sum(rank["cpu_s"] for rank in ranks)}


def _worker(rank: int, workers: int, folder: str, recipe: config.Recipe, options: argparse.Namespace) -> None:
    """One process of a round. A single process also runs smaller batches, to derive the cost of an image."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    network = build_network(recipe, classes=CLASSES)
    optimizer = build_optimizer(network, recipe.optimizer)
    whole = random_batch(recipe, CPU)
    rows = torch.arange(recipe.batch.size).view(recipe.batch.identities, -1)[rank::workers]
    cuts = [rows[: len(rows) // parts].ravel() for parts in ((1, 2, 4) if workers == 1 else (1,))]
    batches = [Batch(*(column[cut] for column in whole)) for cut in cuts]
    with patch.object(distributed, "world_size", lambda: 1):
        silent = [_timed(_stepper(network.train(), optimizer, batch, recipe), options)[0] for batch in batches]
    found: dict[str, Any] = {"sizes": [len(cut) for cut in cuts], "silent_s": silent}
    model: nn.Module = network
    if workers > 1:
        distributed.synchronise_batch_norm(network)
        optimizer = build_optimizer(network, recipe.optimizer)  # weights diverged during steps without communication
        wrapped = DistributedDataParallel(network, forward_sync_buffers=False)
        wrapped.register_comm_hook(None, default_hooks.allreduce_hook)
        model = wrapped
    step = _stepper(model, optimizer, batches[0], recipe)
    found["wall_s"], found["cpu_s"] = _timed(step, options)
    traffic = Traffic()
    with traffic.counted():
        terms = step()
    found |= {"terms": len(terms), "bytes": dict(traffic.bytes), "calls": dict(traffic.calls), **_wire(workers)}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, recipe: config.Recipe
) -> Callable[[], dict[str, float]]:
    return lambda: train_step(model, optimizer, batch, recipe=recipe, epoch=0)


def _timed(step: Callable[[], object], options: argparse.Namespace) -> tuple[float, float]:
    for _ in range(options.warm_up):
        step()
    return _mean_seconds(step, options.steps)


def _mean_seconds(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Wall and CPU time of one call, after a barrier of all workers."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def _wire(workers: int) -> dict[str, float]:
    """Latency per hop and bandwidth, from reductions of one number and of many."""
    large = torch.zeros(LARGE)
    copy_s, _ = _mean_seconds(large.clone, 5)
    found = {"copy_bandwidth": large.nbytes / copy_s}
    if workers == 1:
        return found
    small = torch.zeros(1)
    small_s, _ = _mean_seconds(lambda: dist.all_reduce(small), 50)
    large_s, _ = _mean_seconds(lambda: dist.all_reduce(large), 5)
    sent = 2 * (workers - 1) / workers * large.nbytes
    return found | {"latency_s": small_s / (2 * (workers - 1)), "bandwidth": sent / (large_s - small_s)}


def _medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of every number over the rounds."""
    return {
        key: [statistics.median(turn[key][i] for turn in turns) for i in range(len(value))]
        if isinstance(value, list)
        else value
        if isinstance(value, dict)
        else statistics.median(turn[key] for turn in turns)
        for key, value in turns[0].items()
    }


def _check_traffic(network: Network, found: dict[int, dict[str, Any]], batch: int) -> None:
    """Check that the counted traffic matches the model."""
    for workers in WORKERS[1:]:
        gathered, reduced = network.statistics_bytes(workers)
        terms = 4 * found[workers]["terms"]
        expected = {
            "gradients": network.gradient_bytes,
            "gathered": network.gathered_bytes(batch) + gathered,
            "reduced": 4 * network.feature_dim * batch + reduced + terms,
        }
        counted, calls = found[workers]["bytes"], found[workers]["calls"]
        if counted != expected or calls["gradients"] != network.buckets:
            raise SystemExit(f"{workers} workers send {counted} in {calls} calls; the model has {expected}")


def _traffic_markdown(found: dict[int, dict[str, Any]]) -> str:
    lines = [
        "| workers | gradients reduced | buckets | gathered | other reduced | small collectives |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for workers in WORKERS[1:]:
        size, calls = found[workers]["bytes"], found[workers]["calls"]
        small = calls["gathered"] + calls["reduced"]
        lines.append(
            f"| {workers} | {size['gradients'] / 2**20:.1f} MiB | {calls['gradients']} "
            f"| {size['gathered'] / 2**10:.0f} KiB | {size['reduced'] / 2**10:.0f} KiB | {small} |"
        )
    return "\n".join(lines)


def _steps_markdown(network: Network, here: Machine, found: dict[int, dict[str, Any]], batch: int) -> str:
    lines = [
        "| workers | step ms | silent ms | sending ms | the model's sending ms | gradients | features | batch norm "
        "| CPU ms, all workers |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workers in WORKERS:
        wall_s, silent_s = found[workers]["wall_s"], found[workers]["silent_s"][0]
        step = predict(network, here, workers=workers, batch=batch)
        parts = [step.gradients, step.features, step.batch_norm]
        cells = [wall_s, silent_s, wall_s - silent_s, sum(parts), *parts, found[workers]["cpu_s"]]
        lines.append(f"| {workers} | " + " | ".join(f"{1000 * cell:.0f}" for cell in cells) + " |")
    return "\n".join(lines)


def _recipe(options: argparse.Namespace) -> config.Recipe:
    values = {
        "data": {"height": options.height, "width": options.width},
        "model": {"backbone": options.backbone, "dim": 128, "heads": 4},
        "batch": {"identities": 8, "visible": 2, "infrared": 2},
        "augmentation": {"pad": 4},
        # Small, so that the loss stays finite on repeated noise.
        "optimizer": {"lr": 1e-4, "backbone_lr": 1e-4},
    }
    return config.parse_recipe(values, where="the options")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds per number of workers; the median is reported")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per round")
    parser.add_argument("--warm-up", type=int, default=5, help="untimed steps before them")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    return parser.parse_args()


if __name__ == "__main__":
    main()
