"""Recompute forward passes in the backward pass without updating the running statistics twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` that keeps only ``x`` for the backward pass, which runs the module again.

    The module must draw no random numbers: their state is not restored.
    """
    out: Tensor = checkpoint(
        module,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), running_statistics_kept(module)),
    )
    return out


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Context in which training-mode batch norms compute as usual but leave their running statistics unchanged."""
    kept = [
        (layer, name, buffer)
        for layer in module.modules()
        if isinstance(layer, _BatchNorm)
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    # The updates go to copies that are discarded. Turning `track_running_stats` off would also change which tensors
    # autograd saves, so the recomputation would no longer match the original pass.
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
