"""Forward passes that run twice in one step: the second time must not count again in the running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` that keeps ``x`` alone for the backward pass, which runs the module a second time.

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
    """Inside, batch norms in training compute the same as ever, but their running statistics end unchanged."""
    kept = [
        (layer, name, buffer)
        for layer in module.modules()
        if isinstance(layer, _BatchNorm)
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    # They update copies that are thrown away. Turning `track_running_stats` off would also change which tensors
    # autograd saves, and then a recomputation no longer matches the pass that it repeats.
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
