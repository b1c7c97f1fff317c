"""Claim: telemetry costs less than 0.5 % of training time.

    python -m benchmarks.metrics_overhead [--seconds 30] [--rounds 3] [--step-seconds 0.1]

A Ray worker replays metrics.jsonl of a made-up training, one line every ``--step-seconds``, and sleeps in between. It
alternates between telemetry (live gauges set every second and sent to the node's agent, TensorBoard's event file and
one upload of it per round) and none. The result is the difference in the process's CPU seconds, including all
threads, over the wall seconds: the share of one core, hence at most that share of a step. Steps shorter than real
ones overestimate it. Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray

from icre import config
from pipelines.runs.run import Run
from pipelines.runtime.session import Demand, ray_session
from pipelines.storage import Storage
from pipelines.telemetry.telemetry import Telemetry


@ray.remote(num_cpus=1)
class Trainer:
    """A process like a training worker's, without the training."""

    def spend(self, folder: str, *, seconds: float, step_s: float, watched: bool) -> float:
        """CPU seconds of this process during a replay of ``seconds``."""
        run = Run(Storage(folder))
        began, cpu = time.perf_counter(), time.process_time()
        with Telemetry.open(config.load_recipe(None, ["name=x"]), run) if watched else nullcontext() as told:
            for number in range(1, int(seconds / step_s) + 1):
                row = _row(number, step_s)
                if told is not None:
                    told.step(row)
                time.sleep(max(0.0, began + number * step_s - time.perf_counter()))
            if told is not None:
                told.checkpoint(step=number, seconds=1.0, stall_seconds=0.1)
        return time.process_time() - cpu


def _row(number: int, step_s: float) -> dict[str, Any]:
    """A line of metrics.jsonl with all loss terms."""
    terms = dict.fromkeys(("loss", "id", "icg_pull", "icg_push", "icg_center"), 1.0 / number)
    times = {"time": time.time(), "images_per_s": 64 / step_s, "data_wait_s": 0.001}
    return {"kind": "step", "step": number, "epoch": 0, "lr": 0.01, **terms, **times}


def main() -> None:
    """Alternate the sides and print the share."""
    options = _options()
    shares = []
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as name, ray_session(Path(name), demand=Demand(2)):
        trainer = Trainer.remote()  # type: ignore[attr-defined]

        def cpu_s(folder: str, seconds: float, *, watched: bool) -> float:
            spent = trainer.spend.remote(folder, seconds=seconds, step_s=options.step_seconds, watched=watched)
            return float(ray.get(spent))

        cpu_s(f"{name}/warm-up", 3.0, watched=True)  # imports
        for turn in range(options.rounds):
            without, with_it = (
                cpu_s(f"{name}/{turn}-{watched}", options.seconds, watched=watched) for watched in (False, True)
            )
            shares.append(100 * (with_it - without) / options.seconds)
    share = statistics.median(shares)
    result = {
        "benchmark": "metrics_overhead",
        "seconds": options.seconds,
        "step_s": options.step_seconds,
        "share_percent": round(share, 3),
        "shares_percent": [round(found, 3) for found in shares],
    }
    print(f"| telemetry at {1 / options.step_seconds:.0f} steps a second | {share:.2f} % of a core |")
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds per round (default: 30)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per side (default: 3)")
    parser.add_argument("--step-seconds", type=float, default=0.1, help="seconds per step (default: 0.1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
