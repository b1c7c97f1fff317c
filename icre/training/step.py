"""One training step: forward, global losses, backward, update."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from icre import config
from icre.data import plan
from icre.data.augmentation import AugmentationSpec, augment
from icre.errors import NotFiniteError
from icre.losses.objective import Objective
from icre.model.head import Output
from icre.training import accumulation, compute, distributed


class Batch(NamedTuple):
    """One worker's cut of a global batch of b images; everything but the images stays on the CPU until used."""

    images: Tensor
    """(b, 3, H, W) uint8, on the training device."""
    labels: Tensor
    """(b,) int64 in [0, classes)."""
    infrared: Tensor
    """(b,) bool."""
    slots: Tensor
    """(b,) int64: number of each sample within its epoch."""
    rows: Tensor
    """(b,) int64: row of each sample in the data set, for messages."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    recipe: config.Recipe,
    epoch: int,
) -> dict[str, float]:
    """Update ``model`` on one global batch and return the named loss terms, averaged over the workers.

    The identity loss is a mean over local rows, weighted by their number, which DistributedDataParallel averages to the
    mean over global rows. The metric loss is computed on the gathered features and is already global.
    Raises NotFiniteError when the loss or its gradient is not finite. The weights are then unchanged, but the running
    statistics of batch norm are not.
    """
    parts = recipe.compute.micro_batches
    images = augmented(batch, recipe, epoch=epoch)

    def forward(rows: Tensor, infrared: Tensor) -> Output:
        with compute.autocast(recipe.compute, rows.device):
            output: Output = model(rows, infrared)
        return output

    if parts == 1:
        output = forward(images, batch.infrared)
    else:
        output = accumulation.outputs_of_parts(model, forward, images, batch.infrared, parts)
    terms = loss_terms(output, batch, recipe)
    values = _mean_over_workers(terms)
    _refuse_not_finite("loss", values, batch)
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    if parts > 1:
        accumulation.backward_of_parts(model, forward, images, batch.infrared, parts, output)
    if recipe.optimizer.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.max_grad_norm)
    _refuse_not_finite("gradient", {"norm": _gradient_norm(model)}, batch)
    optimizer.step()
    return values


def augmented(batch: Batch, recipe: config.Recipe, *, epoch: int) -> Tensor:
    """Augmented input of the network: (b, 3, H, W) float32, on the images' device."""
    return augment(
        batch.images,
        batch.infrared,
        augmentation_spec(recipe.augmentation),
        seed=recipe.seed,
        epoch=epoch,
        slots=batch.slots,
        memory_format=compute.memory_format(recipe.compute),
    )


def loss_terms(output: Output, batch: Batch, recipe: config.Recipe) -> dict[str, Tensor]:
    """The recipe's objective on this worker's logits and on the features of all workers, in float32."""
    device = output.features.device
    world_size, images = distributed.world_size(), recipe.batch.visible + recipe.batch.infrared
    counts = [identities * images for identities in plan.cut_sizes(recipe.batch.identities, world_size)]
    labels = batch.labels.to(device, non_blocking=True)
    infrared = batch.infrared.to(device, non_blocking=True)
    return Objective.of(recipe)(
        output.logits,
        labels,
        distributed.gather_with_gradient(output.features, counts),
        distributed.gather(labels, counts),
        distributed.gather(infrared, counts),
        id_weight=len(labels) * world_size / recipe.batch.size,
    )


def augmentation_spec(settings: config.Augmentation) -> AugmentationSpec:
    """The augmentation of a recipe."""
    return AugmentationSpec(**settings.model_dump())


def _mean_over_workers(terms: dict[str, Tensor]) -> dict[str, float]:
    stacked = torch.stack([value.detach().float() for value in terms.values()])
    if distributed.world_size() > 1:
        torch.distributed.all_reduce(stacked)
        stacked /= distributed.world_size()
    return dict(zip(terms, stacked.tolist(), strict=True))


def _gradient_norm(model: nn.Module) -> float:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _refuse_not_finite(what: str, values: dict[str, float], batch: Batch) -> None:
    # Loss and gradient are means over the workers, so all of them stop here together.
    if all(map(math.isfinite, values.values())):
        return
    raise NotFiniteError(
        f"the {what} is not finite: {values}; rows of this worker's batch: {batch.rows.tolist()}",
        hint="lower optimizer.lr or lengthen schedule.warmup_epochs; check the images of these rows",
    )
