"""Claim: losses and augmentation together take less than 5 % of a training step at 288x144.

    python -m benchmarks.step_share [--batch 8x8] [--threads 2] [--rounds 5] and the other options of benchmarks.step

The parts (the objective's forward and backward on the head's outputs; augmentation) and the whole step run on the
same images, in turns in one run. Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from benchmarks.step import CLASSES, median_seconds, random_batch, recipe_of, step_options, stepper
from icre import config
from icre.model.build import build_network
from icre.model.head import Output
from icre.training.step import Batch, augmented, loss_terms


def main() -> None:
    """Time the parts and the whole, print the share."""
    options = step_options(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = recipe_of(options, components=["mpfr", "sdce", "icg"])
    batch = random_batch(recipe, device)
    sides = [stepper(recipe, device), _losses(recipe, batch), lambda: augmented(batch, recipe, epoch=0)]
    step_s, losses_s, augmentation_s = median_seconds(sides, device, rounds=options.rounds)
    _report(options, batch=recipe.batch.size, step_s=step_s, losses_s=losses_s, augmentation_s=augmentation_s)


def _losses(recipe: config.Recipe, batch: Batch) -> Callable[[], object]:
    """The objective forward and backward, on the outputs of an untrained network."""
    network = build_network(recipe, classes=CLASSES).to(batch.images.device)
    with torch.no_grad():
        found = network(augmented(batch, recipe, epoch=0), batch.infrared)

    def once() -> None:
        output = Output(*(rows.clone().requires_grad_() for rows in found))
        loss_terms(output, batch, recipe)["loss"].backward()  # type: ignore[no-untyped-call]

    return once


def _report(options: argparse.Namespace, *, batch: int, step_s: float, losses_s: float, augmentation_s: float) -> None:
    share = 100 * (losses_s + augmentation_s) / step_s
    result = {
        "benchmark": "step_share",
        "batch": batch,
        "height": options.height,
        "width": options.width,
        "backbone": options.backbone,
        "device": options.device,
        "threads": options.threads,
        "precision": options.precision,
        "step_s": round(step_s, 4),
        "losses_s": round(losses_s, 5),
        "augmentation_s": round(augmentation_s, 5),
        "share_percent": round(share, 2),
    }
    print(
        f"| losses and augmentation, {batch} images of {options.height}x{options.width}, {options.device}, "
        f"{options.threads} threads | losses: {1e3 * losses_s:.1f} ms | augmentation: {1e3 * augmentation_s:.1f} ms "
        f"| {share:.1f} % of a step of {step_s:.2f} s |"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
