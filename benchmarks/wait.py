"""Claim: training does not wait for its images.

    python -m benchmarks.wait [--steps 12]

Trains a few steps by two recipes, as `icre train` does, on synthetic people of the recipe's image size: the demo's, and
the one of the field (configs/sysu-sgd.yaml: ResNet-50, 288x144, 64 images a step) on the CPU and from a random start.
Prints the share of the time in which training waited for a batch, without the first steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from pipelines.data import ingest
from pipelines.runtime.session import Demand, ray_session
from pipelines.training import execution, launch

WARM_UP_STEPS = 3
RECIPES: dict[str, list[str]] = {
    "configs/demo.yaml": ["data.synthetic=null", "data.split.file=null"],
    "configs/sysu-sgd.yaml": [
        "data.source=folder",
        "model.weights=null",
        "train.gpus_per_worker=0",
        "evaluation.gpus_per_worker=0",
        "train.cache=encoded",
        "train.loaders=1",
        "train.loader_cpus=0.25",
        "train.cpus_per_worker=2",
        "schedule={warmup_epochs: 0, milestones: []}",
    ],
}


def main() -> None:
    """Train by each recipe, print."""
    options = _options()
    for path, overrides in RECIPES.items():
        result = {"benchmark": "wait", "recipe": path} | _waited(path, overrides, options)
        print(
            f"| wait, {path}, {result['steps']} steps | {100 * result['wait_share']:.1f} % of the time "
            f"| {result['images_per_s']} images/s trained | first batch after {result['first_wait_s']} s |",
            flush=True,
        )
        print(json.dumps(result), flush=True)


def _waited(path: str, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as scratch:
        folder = Path(scratch)
        base = [f"storage={folder / 'storage'}", f"data.root={folder / 'images'}", "data.split.val=0"]
        steps = ["train.epochs=1", f"train.steps_per_epoch={options.steps}"]
        recipe = config.load_recipe(Path(path), [*overrides, *base, *steps, "data.split.test=0.1"])
        size = {"height": recipe.data.height, "width": recipe.data.width}
        generate(folder / "images", SyntheticSpec(identities=24, images_per_modality=8, **size), workers=2)
        with ray_session(folder / "logs", demand=Demand.of_training(recipe.train)):
            ingest.prepare(recipe)
            run = launch.start(recipe, "wait")
            execution.execute(run)
        rows = [row for row in run.metrics() if row["kind"] == "step"]
    seconds = [recipe.batch.size / row["images_per_s"] for row in rows]
    waits = [row["data_wait_s"] for row in rows]
    counted = slice(WARM_UP_STEPS, None)
    return {
        "steps": len(rows) - WARM_UP_STEPS,
        "wait_share": round(sum(waits[counted]) / sum(seconds[counted]), 4),
        "images_per_s": round(len(rows[counted]) * recipe.batch.size / sum(seconds[counted]), 1),
        "first_wait_s": round(waits[0], 1),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="of each recipe")
    return parser.parse_args()


if __name__ == "__main__":
    main()
