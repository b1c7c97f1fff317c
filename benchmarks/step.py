"""Claim: a training step of ICRE takes at most 1.4 times as long as one of its own baseline (components=[]).

    python -m benchmarks.step [--batch 8x8] [--threads 2] [--rounds 5] [--device cpu] [--precision fp32]
                              [--channels-last] [--compile] [--height 288] [--width 144] [--backbone resnet50]

Both sides run full steps (augmentation, forward, losses, backward, update) on the same random images, alternating in
one run. By multiplications alone, the ratio would be 1.31 at 288x144. Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from icre import config
from icre.model.build import build_network
from icre.training import compute
from icre.training.optimizer import build_optimizer
from icre.training.step import Batch, train_step

CLASSES = 395
SEED = 0


def main() -> None:
    """Time both sides and print the ratio."""
    options = step_options(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    sides = [stepper(recipe_of(options, components=parts), device) for parts in (["mpfr", "sdce", "icg"], [])]
    icre_s, baseline_s = median_seconds(sides, device, rounds=options.rounds)
    _report(options, icre_s=icre_s, baseline_s=baseline_s)


def step_options(doc: str) -> argparse.ArgumentParser:
    """Options of benchmarks that time full steps."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--batch", default="8x8", help="identities x images per identity, half of them infrared")
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per side; the median is reported")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--height", type=int, default=288)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--backbone", default="resnet50")
    return parser


def recipe_of(options: argparse.Namespace, *, components: Sequence[str]) -> config.Recipe:
    """The default recipe with the options' sizes and speed settings."""
    identities, images = map(int, options.batch.split("x"))
    values = {
        "components": list(components),
        "data": {"height": options.height, "width": options.width},
        "model": {"backbone": options.backbone},
        "batch": {"identities": identities, "visible": images // 2, "infrared": images // 2},
        # Small, so that the loss stays finite on repeated noise.
        "optimizer": {"lr": 1e-4, "backbone_lr": 1e-4},
        "compute": {
            "precision": options.precision,
            "channels_last": options.channels_last,
            "compile": options.compile,
        },
    }
    return config.parse_recipe(values, where="the options")


def random_batch(recipe: config.Recipe, device: torch.device) -> Batch:
    """Noise in the shape of a planned batch: identity by identity, visible rows first."""
    k, size = recipe.batch, recipe.batch.size
    each = k.visible + k.infrared
    shape = (size, 3, recipe.data.height, recipe.data.width)
    generator = torch.Generator().manual_seed(SEED)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device),
        labels=torch.arange(size) // each,
        infrared=torch.arange(size) % each >= k.visible,
        slots=torch.arange(size),
        rows=torch.arange(size),
    )


def stepper(recipe: config.Recipe, device: torch.device) -> Callable[[], object]:
    """A function that takes one full training step, on the same batch each time."""
    network = build_network(recipe, classes=CLASSES).to(device).train()
    compute.arrange(network, recipe.compute)
    optimizer = build_optimizer(network, recipe.optimizer)
    if recipe.compute.compile:
        compute.compile_network(network, device)
    batch = random_batch(recipe, device)
    return lambda: train_step(network, optimizer, batch, recipe=recipe, epoch=0)


def median_seconds(
    sides: Sequence[Callable[[], object]], device: torch.device, *, rounds: int, warm_up: int = 1
) -> list[float]:
    """Median seconds per side. Sides alternate, so other load slows them alike."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(warm_up + rounds):
        for side, spent in zip(sides, times, strict=True):
            seconds = timed(side, device)
            if turn >= warm_up:
                spent.append(seconds)
    return [statistics.median(spent) for spent in times]


def timed(side: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, including a device sync."""
    start = time.perf_counter()
    side()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _report(options: argparse.Namespace, *, icre_s: float, baseline_s: float) -> None:
    recipe = recipe_of(options, components=[])
    result = {
        "benchmark": "step",
        "batch": recipe.batch.size,
        "height": options.height,
        "width": options.width,
        "backbone": options.backbone,
        "device": options.device,
        "threads": options.threads,
        **recipe.compute.model_dump(include={"precision", "channels_last", "compile"}),
        "icre_s": round(icre_s, 4),
        "baseline_s": round(baseline_s, 4),
        "ratio": round(icre_s / baseline_s, 3),
    }
    print(
        f"| training step, {recipe.batch.size} images of {options.height}x{options.width}, {options.device}, "
        f"{options.threads} threads, {options.precision} | ICRE: {result['icre_s']} s "
        f"| baseline: {result['baseline_s']} s | x{result['ratio']} |"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
