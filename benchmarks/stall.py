"""Claim: checkpoints stall training for less than 1 % of the time.

    python -m benchmarks.stall [--device cpu] [--rounds 5] [--threads 2]

Uses the network of the field's recipes (ResNet-50, 395 identities) with its optimiser's momentum. Training waits while
both are copied to the CPU; a thread writes them to this machine's disk afterwards. Prints the seconds of both, and the
copy's share of the time with the default `checkpoints.minutes`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.step import CLASSES, random_batch
from icre import config
from icre.model.build import build_network
from icre.training import checkpoint
from icre.training.checkpoint import Progress
from icre.training.optimizer import build_optimizer
from icre.training.step import train_step

SMALL = {"batch": {"identities": 2, "visible": 1, "infrared": 1}, "data": {"height": 64, "width": 32}}
"""Batch and image size do not affect the content of a checkpoint."""


def main() -> None:
    """Copy, write and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = config.parse_recipe(SMALL, where="this benchmark")
    network = build_network(recipe, classes=CLASSES).to(device).train()
    optimizer = build_optimizer(network, recipe.optimizer)
    train_step(network, optimizer, random_batch(recipe, device), recipe=recipe, epoch=0)  # creates the momentum
    progress = Progress(step=1, best_metric=None, best_step=None)
    copies, writes = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        snapshot = checkpoint.take_snapshot(network=network, optimizer=optimizer, progress=progress, classes=CLASSES)
        copies.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as scratch:
            start = time.perf_counter()
            checkpoint.write_checkpoint(Path(scratch), snapshot)
            writes.append(time.perf_counter() - start)
            mib = sum(file.stat().st_size for file in Path(scratch).iterdir()) / 2**20
    period = 60 * recipe.checkpoints.minutes
    result = {
        "benchmark": "stall",
        "device": options.device,
        "checkpoint_mib": round(mib),
        "copy_s": round(statistics.median(copies), 3),
        "longest_copy_s": round(max(copies), 3),
        "write_s": round(statistics.median(writes), 2),
        "share": round(max(copies) / (period + max(copies)), 6),
    }
    print(
        f"| checkpoint of {result['checkpoint_mib']} MiB, {options.device} "
        f"| training waits {result['copy_s']} s, at most {result['longest_copy_s']} s "
        f"| {result['share']:.3%} of the time, every {recipe.checkpoints.minutes:g} minutes "
        f"| written in {result['write_s']} s |"
    )
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints")
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
