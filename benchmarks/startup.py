"""Claim: the first training step starts little later than Ray, torch and the network themselves require.

    python -m benchmarks.startup [--rounds 3]

Two pairs alternate on the same machine, with a tiny network and one worker. The first is `icre train` and a script with
a bare TorchTrainer that imports torch, builds the same network and takes one step. The second, on a local one-node
cluster, is `icre submit train` and `ray job submit` of that script. Prints the ratios of the seconds from the start of
the command to the end of the first step, and writes startup.json.
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
from collections.abc import Sequence
from pathlib import Path

from cluster.local.ray_cluster import LocalCluster
from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from pipelines.data import prepare
from pipelines.runtime.session import Demand, ray_session

ROOT = Path(__file__).resolve().parents[1]
RECIPE = [
    "data.height=64", "data.width=32", "model.backbone=resnet18", "model.dim=32", "model.heads=4",
    "batch.identities=4", "batch.visible=2", "batch.infrared=2", "schedule.warmup_epochs=0", "schedule.milestones=[]",
    "train.epochs=1", "train.steps_per_epoch=2", "train.loaders=1", "train.loader_cpus=0.25",
]  # fmt: skip
BARE = """
import sys, time
from pathlib import Path
import ray
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

def step(settings):
    import torch
    from icre import config
    from icre.model.build import build_network
    torch.set_num_threads(1)
    network = build_network(config.load_recipe(None, settings["recipe"]), classes=5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    infrared = torch.arange(16) % 4 >= 2
    network.embed(torch.rand(16, 3, 64, 32), infrared).square().sum().backward()
    optimizer.step()
    Path(settings["out"]).write_text(repr(time.time()))

out, *recipe = sys.argv[1:]
ray.init(log_to_driver=False)
TorchTrainer(step, train_loop_config={"out": out, "recipe": recipe}, scaling_config=ScalingConfig(num_workers=1)).fit()
"""


def main() -> None:
    """Prepare once, then alternate the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("startup.json"))
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="icre-startup-") as name:
        scratch = Path(name)
        (scratch / "bare.py").write_text(BARE)
        overrides = _prepared(scratch)
        rounds = [_pair(scratch, overrides, f"local-{number}", job=False) for number in range(options.rounds)]
        with LocalCluster(nodes=1, cpus=4) as cluster:
            os.environ |= cluster.environment()
            jobs = [_pair(scratch, overrides, f"job-{number}", job=True) for number in range(options.rounds)]
    found = {"icre train / bare TorchTrainer": rounds, "icre submit / ray job submit": jobs}
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    for label, pairs in found.items():
        ratios = [mine / bare for mine, bare in pairs]
        print(
            f"{label}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"{statistics.median(mine for mine, _ in pairs):.1f} s and "
            f"{statistics.median(bare for _, bare in pairs):.1f} s"
        )


def _prepared(scratch: Path) -> list[str]:
    generate(scratch / "people", SyntheticSpec(identities=20, images_per_modality=4, height=64, width=32))
    places = [f"storage={scratch / 'storage'}", f"data.root={scratch / 'people'}", "data.name=people"]
    with ray_session(scratch / "logs", demand=Demand(2)):
        prepare.run(config.load_recipe(None, [*RECIPE, *places]))
    return [*RECIPE, *places]


def _pair(scratch: Path, overrides: Sequence[str], name: str, *, job: bool) -> tuple[float, float]:
    """Seconds to the first step of ICRE's command, then of the bare one."""
    icre, ray = (str(Path(sys.executable).with_name(program)) for program in ("icre", "ray"))
    mine = [icre, *(["submit"] if job else []), "train", "--run", name, *overrides]
    begun = _run(mine)
    rows = (scratch / "storage" / "runs" / name / "metrics.jsonl").read_text().splitlines()
    first = next(row["time"] for row in map(json.loads, rows) if row["kind"] == "step")
    out = scratch / f"{name}.txt"
    bare = [sys.executable, str(scratch / "bare.py"), str(out), *RECIPE]
    if job:
        bare = [ray, "job", "submit", "--working-dir", str(ROOT), "--", *bare]
    bare_begun = _run(bare)
    return first - begun, float(out.read_text()) - bare_begun


def _run(command: Sequence[str]) -> float:
    """Run the command; returns its start time."""
    begun = time.time()
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return begun


if __name__ == "__main__":
    main()
