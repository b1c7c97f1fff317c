"""Training speed on one GPU: images per second of the full step, utilisation and memory.

    python -m benchmarks.gpu [--batches 8x8,32x8] [--rounds 20] [--height 288] [--width 144] [--backbone resnet50]

Covers {fp32, bf16} x {eager, compiled} x {contiguous, channels_last} for every batch; the ratio is to the same batch in
fp32, eager, contiguous. Utilisation: multiply-adds of the network, counted by PyTorch (three times the forward pass),
over the measured rate of large square matrix products of the same format on this GPU. Prints one Markdown row per case,
then JSON; a one-line note without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import CLASSES, median_seconds, recipe_of, step_options, stepper
from icre import config
from icre.model.build import build_network

COMPONENTS = ("mpfr", "sdce", "icg")
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = 8192


def main() -> None:
    """Time every case on the GPU."""
    options = _options()
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False, so nothing was measured")
        return
    device = torch.device("cuda")
    ceilings = {name: _ceiling(dtype, device) for name, dtype in FORMATS.items()}
    rows = []
    for batch in options.batches.split(","):
        options.batch = batch
        base: dict[str, Any] | None = None
        for precision, compiled, last in itertools.product(FORMATS, (False, True), (False, True)):
            options.precision, options.compile, options.channels_last = precision, compiled, last
            row = _measure(recipe_of(options, components=COMPONENTS), options, device, ceilings[precision])
            base = base or row
            row["ratio"] = round(row["images_per_s"] / base["images_per_s"], 2)
            rows.append(row)
            _print(row)
    ceiling = {f"{name}_matmul_tflops": round(flops / 1e12, 1) for name, flops in ceilings.items()}
    print(json.dumps({"benchmark": "gpu", "gpu": torch.cuda.get_device_name(device), **ceiling, "cases": rows}))


def _measure(
    recipe: config.Recipe, options: argparse.Namespace, device: torch.device, ceiling: float
) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch._dynamo.reset()
    [seconds] = median_seconds([stepper(recipe, device)], device, rounds=options.rounds, warm_up=5)
    return {
        "batch": recipe.batch.size,
        "height": recipe.data.height,
        "width": recipe.data.width,
        **recipe.compute.model_dump(include={"precision", "channels_last", "compile"}),
        "images_per_s": round(recipe.batch.size / seconds, 1),
        "utilisation_percent": round(100 * 3 * forward_flops(recipe) / seconds / ceiling, 1),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2),
    }


def forward_flops(recipe: config.Recipe) -> float:
    """Floating-point operations of the network's forward pass on one global batch, two per multiply-add."""
    network = build_network(recipe, classes=CLASSES).to("meta")
    images = torch.empty(recipe.batch.size, 3, recipe.data.height, recipe.data.width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images, False)
    return float(counter.get_total_flops())


def _ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a large matrix product, an upper bound for networks."""
    # PyTorch allows TF32 in float32 convolutions but not in matrix products; the ceiling is that of convolutions.
    torch.set_float32_matmul_precision("high")
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    [seconds] = median_seconds([lambda: a @ b], device, rounds=10, warm_up=3)
    torch.set_float32_matmul_precision("highest")
    return 2 * MATRIX**3 / seconds


def _print(row: dict[str, Any]) -> None:
    how = ", ".join(
        [
            row["precision"],
            "compiled" if row["compile"] else "eager",
            *(["channels last"] if row["channels_last"] else []),
        ]
    )
    print(
        f"| training step, {row['batch']} images of {row['height']}x{row['width']}, {how} "
        f"| {row['images_per_s']} images/s | {row['utilisation_percent']} % of matmul "
        f"| {row['peak_memory_gib']} GiB | x{row['ratio']} |",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = step_options(__doc__ or "")
    parser.add_argument("--batches", default="8x8,32x8", help="identities x images per identity, comma-separated")
    parser.set_defaults(rounds=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
