"""A recipe, a data set of random pixels and a loop small enough to train in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from icre.config import Recipe, parse_recipe
from icre.data import plan
from icre.model.backbone import ARCHITECTURES, Architecture
from icre.model.build import build_network
from icre.model.network import ICRENetwork
from icre.training.step import Batch, train_step

CLASSES, IMAGES_EACH = 6, 3
RECIPE: dict[str, Any] = {
    # A seed at which no value lies within rounding of a kink of ReLU. At 3 one does: float64 still agrees to 1e-13, but
    # float32 takes the other branch on one worker, and that is no rounding any more.
    "seed": 5,
    "data": {"height": 64, "width": 32},
    "model": {"backbone": "resnet18", "dim": 32, "heads": 4},
    "batch": {"identities": 4, "visible": 2, "infrared": 2},
    "augmentation": {"pad": 4},
    "optimizer": {"lr": 0.02, "backbone_lr": 0.01},
}
# All the layers of ResNet-18, a quarter of their width: a sixteenth of the parameters.
THIN = Architecture("basic", (2, 2, 2, 2), width=16, stride_on_first_conv=True)


@contextmanager
def everything_in(dtype: str) -> Iterator[None]:
    """With float64, what the code computes in float32 on purpose is computed in float64 as well."""
    if dtype == "float32":
        yield
        return
    float32 = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = float32  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def tiny_recipe(**sections: Any) -> Recipe:
    """``RECIPE`` with some of its values replaced, section by section."""
    values = dict(RECIPE)
    for name, value in sections.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(values, where="the test")


def tiny_network(recipe: Recipe) -> ICRENetwork:
    """A network whose new layers already count: BN0's zero would hide their gradients in the first step."""
    with patch.dict(ARCHITECTURES, resnet18=THIN):
        network = build_network(recipe, classes=CLASSES)
    if network.output is not None:
        nn.init.constant_(network.output.bn0.weight, 0.5)
    return network.train()


@dataclass(frozen=True)
class Pixels:
    """Row ``r`` is an image of identity ``labels[r]``; odd rows are infrared."""

    images: Tensor
    labels: Tensor
    infrared: Tensor

    @classmethod
    def random(cls) -> Pixels:
        rows = 2 * CLASSES * IMAGES_EACH
        images = torch.randint(0, 256, (rows, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        return cls(images, torch.arange(rows) // (2 * IMAGES_EACH), torch.arange(rows) % 2 == 1)

    def batch(self, recipe: Recipe, *, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """One worker's cut of global batch ``step`` of epoch 0."""
        k = recipe.batch
        index = plan.TrainingIndex.build(range(len(self.labels)), self.labels.tolist(), self.infrared.tolist())
        sizes = {"identities": k.identities, "visible": k.visible, "infrared": k.infrared}
        whole = plan.plan_epoch(index, **sizes, steps=step + 1, seed=recipe.seed, epoch=0)[step : step + 1]
        cut = plan.cut(whole, rank=rank, world_size=world_size).reshape(-1)
        images = k.visible + k.infrared
        slots = plan.slots([step], identities=k.identities, images=images, rank=rank, world_size=world_size)
        rows = torch.from_numpy(np.ascontiguousarray(cut))
        return Batch(
            images=self.images[rows],
            labels=self.labels[rows],
            infrared=self.infrared[rows],
            slots=torch.from_numpy(slots.reshape(-1)),
            rows=rows,
        )


def take_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: range, **cut: int
) -> list[dict[str, float]]:
    """Train on the global batches ``steps``; the loss terms of each."""
    pixels = Pixels.random()
    return [
        train_step(model, optimizer, pixels.batch(recipe, step=step, **cut), recipe=recipe, epoch=0) for step in steps
    ]
