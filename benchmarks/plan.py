"""Claim: an epoch over ten million images of a million identities is planned in seconds, on each of 1,024 workers.

    python -m benchmarks.plan [--images 10000000] [--identities 1000000] [--workers 1024] [--sample 500000]

Builds the index of a made-up training split and one epoch's plan, as each training process does. Prints seconds, the
plan's size, the process's peak memory, and the time to start at a step in mid-epoch. Then writes a sample of the split
as one shard with zero-byte images, opens it as a training process does, and prints the bytes of labels read, scaled to
all images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from icre.data import plan
from icre.data.records import PARQUET_SCHEMA
from pipelines.data.prepared import ROW_GROUP_ROWS, PreparedData
from pipelines.storage import Storage

VISIBLE = INFRARED = 4


def main() -> None:
    """Build, plan, slice, read and print."""
    options = _options()
    result = {"benchmark": "plan", "images": options.images, "identities": options.identities}
    result |= {"workers": options.workers} | _planned(options)
    result["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    result |= _labels_read(options)
    print(
        f"| plan, {options.images:,} images, {options.identities:,} identities, {options.workers:,} workers "
        f"| index {result['index_s']} s | epoch {result['plan_s']} s | start in mid-epoch {result['restart_s']} s "
        f"| peak {result['peak_memory_mib']:,} MiB "
        f"| labels read {result['labels_mib']:,} MiB in {result['labels_s']} s |"
    )
    print(json.dumps(result))


def _planned(options: argparse.Namespace) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    # Every identity has at least two images per modality; the rest are assigned at random.
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
    return {
        "steps": steps,
        "images_per_step": int(epoch[0].size),
        "index_s": round(indexed - started, 2),
        "plan_s": round(planned - indexed, 2),
        "plan_mib": round(epoch.nbytes / 2**20),
        "restart_s": round(cut_at - planned, 4),
        "worker_rows_per_step": int(cut[0].size),
    }


def _labels_read(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as scratch:
        shard, classes = _write_shard(Path(scratch), options)
        data = PreparedData(Storage(scratch), {"shards": [{"file": shard}], "classes": classes})
        before, started = _bytes_read(), time.perf_counter()
        data.training_index()
        seconds, read = time.perf_counter() - started, _bytes_read() - before
    scale = options.images / options.sample
    return {"labels_mib": round(scale * read / 2**20), "labels_s": round(scale * seconds, 1)}


def _write_shard(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    each = options.images // options.identities
    number = np.arange(options.sample)
    pids = [f"person-{n // each:07d}" for n in number]
    infrared = number % each >= each // 2
    paths = [
        f"{'infrared' if ir else 'visible'}/{pid}/camera-{n % 40}_{n:08d}.jpg"
        for n, pid, ir in zip(number.tolist(), pids, infrared.tolist(), strict=True)
    ]
    columns = {
        "image": pa.StructArray.from_arrays([pa.array([b""] * options.sample), pa.array(paths)], ["bytes", "path"]),
        "identity": pids,
        "modality": ["infrared" if ir else "visible" for ir in infrared.tolist()],
        "camera": [f"camera-{n}" for n in (number % 40).tolist()],
        "split": ["train"] * options.sample,
        "source": ["folder"] * options.sample,
        "sha256": [hashlib.sha256(path.encode()).hexdigest() for path in paths],
    }
    table = pa.table(columns, schema=PARQUET_SCHEMA)
    pq.write_table(table, folder / "shard.parquet", compression="none", row_group_size=ROW_GROUP_ROWS)
    return "shard.parquet", sorted(set(pids))


def _bytes_read() -> int:
    """Bytes read by this process since its start, from disk or from the page cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1024)
    parser.add_argument("--sample", type=int, default=500_000, help="rows whose labels are written and read")
    return parser.parse_args()


if __name__ == "__main__":
    main()
