"""Claim: an epoch over ten million images of a million identities is planned in seconds, on each of 1,024 workers.

    python -m benchmarks.plan [--images 10000000] [--identities 1000000] [--workers 1024]

Builds the index of a made-up training split and one epoch's plan, as each process that reads batches does. Prints
seconds, the plan's size, the process's peak memory, and how long it takes to start at a step in mid-epoch.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from icre.data import plan

VISIBLE = INFRARED = 4


def main() -> None:
    """Build, plan, cut, print."""
    options = _options()
    generator = np.random.default_rng(0)
    # Every identity has two images in each modality at least; the rest fall where chance lets them.
    base = np.tile(np.arange(options.identities), 4)
    labels = np.concatenate([base, generator.integers(0, options.identities, options.images - len(base))])
    infrared = np.concatenate(
        [np.arange(len(base)) >= len(base) // 2, generator.random(options.images - len(base)) < 0.5]
    )
    rows = np.arange(options.images)
    started = time.perf_counter()
    index = plan.TrainingIndex.build(rows, labels, infrared)
    indexed = time.perf_counter()
    per_batch = 2 * options.workers
    steps = index.steps(visible=VISIBLE, infrared=INFRARED, identities=per_batch)
    epoch = plan.plan_epoch(
        index, identities=per_batch, visible=VISIBLE, infrared=INFRARED, steps=steps, seed=0, epoch=3
    )
    planned = time.perf_counter()
    cut = plan.cut(epoch[steps // 2 :], rank=options.workers - 1, world_size=options.workers)
    cut_at = time.perf_counter()
    result = {
        "benchmark": "plan",
        "images": options.images,
        "identities": options.identities,
        "workers": options.workers,
        "steps": steps,
        "images_per_step": int(epoch[0].size),
        "index_s": round(indexed - started, 2),
        "plan_s": round(planned - indexed, 2),
        "plan_mib": round(epoch.nbytes / 2**20),
        "restart_s": round(cut_at - planned, 4),
        "worker_rows_per_step": int(cut[0].size),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }
    print(
        f"| plan, {options.images:,} images, {options.identities:,} identities, {options.workers:,} workers "
        f"| index {result['index_s']} s | epoch {result['plan_s']} s | start in mid-epoch {result['restart_s']} s "
        f"| peak {result['peak_memory_mib']:,} MiB |"
    )
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1024)
    return parser.parse_args()


if __name__ == "__main__":
    main()
