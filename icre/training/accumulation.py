"""Compute a batch in parts to save memory, with the metric loss of the whole global batch.

The loss is not a sum over parts, since ICG's centres are means over the global batch. Each part therefore goes through
the network twice. The first pass keeps no graph, only the head's outputs, which give the loss and its gradient with
respect to those outputs. The second pass keeps the graph of one part at a time and propagates that gradient to the
weights. Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from icre.model.head import Output
from icre.model.recompute import running_statistics_kept

Forward = Callable[[Tensor, Tensor], Output]


def outputs_of_parts(model: nn.Module, forward: Forward, images: Tensor, infrared: Tensor, parts: int) -> Output:
    """First pass: outputs of all rows as leaves, whose ``grad`` is filled by the backward pass of the loss.

    images (b, 3, H, W), infrared (b,), b a multiple of ``parts``; each part is a range of rows, which the batch
    plan orders by identity. ``forward`` calls ``model``.
    """
    pieces = zip(images.chunk(parts), infrared.chunk(parts), strict=True)
    # Only the second pass updates the running statistics.
    with torch.no_grad(), running_statistics_kept(model):
        outputs = [forward(*piece) for piece in pieces]
    return Output(*(torch.cat(rows).requires_grad_() for rows in zip(*outputs, strict=True)))


def backward_of_parts(
    model: nn.Module, forward: Forward, images: Tensor, infrared: Tensor, parts: int, outputs: Output
) -> None:
    """Second pass: propagate the gradients of the leaves ``outputs`` to the weights, adding to their gradients.

    With several workers, gradients are averaged only once, with the last part.
    """
    gradients = [_gradient(rows).chunk(parts) for rows in (outputs.features, outputs.logits)]
    pieces = list(zip(images.chunk(parts), infrared.chunk(parts), *gradients, strict=True))
    for number, (x, mask, *slopes) in enumerate(pieces, start=1):
        with _unshared(model) if number < parts else nullcontext():
            again = forward(x, mask)
            torch.autograd.backward([again.features, again.logits], slopes)


def _gradient(leaf: Tensor) -> Tensor:
    # Without a metric loss the features have no gradient.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _unshared(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
