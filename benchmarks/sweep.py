"""Claims: on two cores a sweep keeps them busy; ASHA reaches the same best training with less work.

    python -m benchmarks.sweep [--trials 8] [--seeds 3] [--epochs 9] [--steps 12]

Trains ``--trials`` random draws of two hyper-parameters to the end, by `icre tune`'s own code on a Ray of its own, for
each seed: the wall time from the first trial to the last over the sum of the trainings' own steps. Two trainings run
side by side, so 0.5 would be perfect if starting one took no time. Then Ray Tune's ASHA scheduler decides over the same
trainings, played back from their validations with the pauses shortened: the share of epochs that it saves, and what the
best of it reached. The people are synthetic; prints one Markdown row a seed, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune

from icre import config
from pipelines.data import prepare, synthesize
from pipelines.experiments import engine, runner, searchers
from pipelines.experiments.outcomes import outcomes_of
from pipelines.experiments.plan import listed_trials
from pipelines.experiments.sweep import begin, sweep_of
from pipelines.runs.run import Run
from pipelines.storage import Storage

RECIPE = """
data: {{name: people, root: {folder}/images, height: 64, width: 32, shard_mib: 1, split: {{file: split.json}},
  synthetic: {{identities: 80, images_per_modality: 8, difficulty: 0.3}}}}
storage: {folder}/storage
model: {{backbone: resnet18, dim: 64, heads: 4}}
batch: {{identities: 8, visible: 4, infrared: 4}}
augmentation: {{pad: 4}}
optimizer: {{name: adamw}}
schedule: {{warmup_epochs: 0, milestones: []}}
train: {{cpus_per_worker: 0.75, loaders: 1, loader_cpus: 0.25}}
tune:
  method: random
  space:
    optimizer.lr: {{low: 1.0e-5, high: 1.0e-2, log: true}}
    loss.icg.weight: {{low: 0.1, high: 3.0}}
"""
PAUSE_S = 0.3
"""For an epoch of a training that is played back: longer than a decision takes."""


def main() -> None:
    """Train, play back, print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as scratch:
        folder = Path(scratch)
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
        sizes = [f"train.epochs={options.epochs}", f"train.steps_per_epoch={options.steps}"]
        recipe = config.load_recipe(folder / "recipe.yaml", [*sizes, f"tune.trials={options.trials}"])
        synthesize.run(recipe)
        with runner.session_for(recipe, Storage(folder / "session"), at_once=engine.local_room(recipe)):
            data = prepare.run(recipe)
            rows = [_measure(recipe, data, seed) for seed in range(options.seeds)]
    for row in rows:
        print(
            f"| seed {row['seed']}, {options.trials} trainings of {options.epochs} epochs, {row['at_once']} at once "
            f"| wall {row['wall_s']} s | their steps {row['steps_s']} s | x{row['ratio']} "
            f"| ASHA: {row['asha_saved']} of the epochs saved, best {row['asha_best']} of {row['best']} |"
        )
    print(json.dumps({"benchmark": "sweep", "cores": os.cpu_count(), "rows": rows}))


def _measure(recipe: config.Recipe, data: Any, seed: int) -> dict[str, Any]:
    recipe = config.override(recipe, [f"seed={seed}"], where="this benchmark")
    sweep = sweep_of(recipe, f"seed{seed}", listed_trials(recipe, f"seed{seed}"))
    begin(sweep, data)
    at_once = engine.room(recipe)
    start = time.monotonic()
    engine.run_trials(sweep, range(len(sweep.trials)), concurrent=at_once)
    wall_s = time.monotonic() - start
    outcomes = outcomes_of(sweep)
    steps_s = sum(outcome.seconds for outcome in outcomes)
    curves = [_curve(Run.named(recipe.storage, outcome.run)) for outcome in outcomes]
    epochs, best = _played_back(recipe, curves, at_once)
    return {
        "seed": seed,
        "at_once": at_once,
        "wall_s": round(wall_s),
        "steps_s": round(steps_s),
        "ratio": round(wall_s / steps_s, 2),
        "best": round(max(map(max, curves)), 3),
        "asha_best": round(best, 3),
        "asha_saved": round(1 - epochs / sum(map(len, curves)), 2),
    }


def _curve(run: Run) -> list[float]:
    """mAP of every epoch's validation."""
    return [row["mAP"] for row in run.metrics() if row["kind"] == "validation"]


def _played_back(recipe: config.Recipe, curves: list[list[float]], at_once: int) -> tuple[int, float]:
    """Epochs that ASHA lets pass, and the highest mAP in them."""
    asked = sweep_of(config.override(recipe, ["tune.method=asha"], where="this benchmark"), "played-back", ())

    def play(settings: dict[str, Any]) -> None:
        best = 0.0
        for epoch, reached in enumerate(curves[settings["number"]], start=1):
            time.sleep(PAUSE_S)
            best = max(best, reached)
            tune.report({"epoch": epoch, "best_mAP": best})

    with tempfile.TemporaryDirectory(prefix="icre-asha-") as folder:
        results = tune.Tuner(
            tune.with_resources(play, engine.TRIAL),
            param_space={"number": tune.grid_search(list(range(len(curves))))},
            tune_config=tune.TuneConfig(scheduler=searchers.scheduler_of(asked), max_concurrent_trials=at_once),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        ended = [result.metrics for result in results if result.metrics]
    return sum(metrics["epoch"] for metrics in ended), max(metrics["best_mAP"] for metrics in ended)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=8, help="trainings of a sweep")
    parser.add_argument("--seeds", type=int, default=3, help="sweeps")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12, help="steps of an epoch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
