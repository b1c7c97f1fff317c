"""Claim: a driver can hold a thousand trials on 64 nodes: what Ray Tune itself costs when trials cost nothing.

    python -m benchmarks.many_trials [--trials 1000] [--nodes 64] [--epochs 3]

A simulation: 64 nodes are one node that says it has 64 CPUs, a trial reports a few numbers and ends, every other part
is the sweep's own (scheduler, callback, snapshots into a real S3 server on this machine). Prints the CPU time and the
memory of the driver, what it stored, and how often it asked the object store for something.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ray import tune

from cluster.local.object_store import ObjectStore
from icre import config
from pipelines.experiments import engine
from pipelines.experiments.plan import listed_trials
from pipelines.experiments.sweep import sweep_of
from pipelines.experiments.trial import Sweep
from pipelines.runtime.session import Demand, ray_session
from pipelines.storage import Storage

SPACE = "tune.space={optimizer.lr: {low: 1.0e-5, high: 1.0e-1, log: true}, loss.icg.weight: {low: 0.1, high: 3.0}}"


def main() -> None:
    """Run the sweep, print what it took."""
    options = _options()
    with ObjectStore(bucket="icre-benchmark") as store, tempfile.TemporaryDirectory() as logs:
        os.environ |= store.environment()
        recipe = config.override(
            config.Recipe(),
            [
                "storage=s3://icre-benchmark/many",
                "tune.method=asha",
                f"tune.trials={options.trials}",
                SPACE,
                f"train.epochs={options.epochs}",
                "schedule.warmup_epochs=0",
            ],
            where="this benchmark",
        )
        sweep = sweep_of(recipe, "many", listed_trials(recipe, "many"))
        with ray_session(Path(logs), demand=Demand(options.nodes)), _trivial_trials():
            before, start, asked_before = _cpu_s(), time.monotonic(), store.requests()
            engine.run_trials(sweep, range(options.trials), concurrent=options.nodes)
            wall_s, cpu_s, asked = time.monotonic() - start, _cpu_s() - before, store.requests() - asked_before
        snapshots = Storage(sweep.location) / "tune"
        files = snapshots.walk_files()
        stored = sum((snapshots / name).size() for name in files)
    result = {
        "benchmark": "many_trials",
        "trials": options.trials,
        "nodes": options.nodes,
        "wall_s": round(wall_s),
        "driver_cpu_s": round(cpu_s),
        "driver_cpu_ms_per_trial": round(1000 * cpu_s / options.trials),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "requests": dict(asked),
        "objects": len(files),
        "stored_mib": round(stored / 2**20, 1),
    }
    print(
        f"| {options.trials} trivial trials, {options.nodes} at once | wall {result['wall_s']} s "
        f"| driver {result['driver_cpu_ms_per_trial']} ms of CPU a trial, {result['driver_peak_mib']} MiB "
        f"| {sum(asked.values())} requests, {result['objects']} objects, {result['stored_mib']} MiB |"
    )
    print(json.dumps(result))


@contextlib.contextmanager
def _trivial_trials() -> Iterator[None]:
    """On one machine 64 processes take turns instead of a new one for each trial: their start is not Tune's."""
    config_of = engine._tune_config

    def reusing(*asked: Any, **options: Any) -> tune.TuneConfig:
        return dataclasses.replace(config_of(*asked, **options), reuse_actors=True)

    with mock.patch.object(engine, "train_trial", _trivial), mock.patch.object(engine, "_tune_config", reusing):
        yield


def _trivial(settings: dict[str, Any], *, sweep: Sweep, retry_failed: bool) -> None:
    """A trial that trains nothing."""
    for epoch in range(1, sweep.base.train.epochs + 1):
        reached = (settings["trial"] * 7919 % 1000) / 1000
        names = ("mAP", "rank1", "mINP", "best_mAP", "best_rank1", "best_mINP")
        tune.report({"epoch": epoch, "run": sweep.trials[settings["trial"]].run, **dict.fromkeys(names, reached)})


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
