"""Apply the recipe's section ``compute``: number format, memory layout, recomputation, compilation."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from icre import config
from icre.model.network import ICRENetwork
from icre.training import distributed


def autocast(settings: config.Compute, device: torch.device) -> torch.autocast:
    """Autocast context of the network's forward pass; no effect for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def memory_format(settings: config.Compute) -> torch.memory_format:
    """Memory layout of images and convolution weights."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def arrange(network: ICRENetwork, settings: config.Compute) -> None:
    """Set the network's memory layout and recomputation. Call it before building the optimiser, which copies it."""
    network.to(memory_format=memory_format(settings))  # type: ignore[call-overload]
    network.backbone.recompute_stages = settings.checkpoint_activations


def compile_network(network: ICRENetwork, device: torch.device) -> bool:
    """Compile in place, which keeps parameter names; False, with a warning, if the compiler does not work here.

    All workers must call it. If the compiler fails on one of them, all continue without compilation.
    """
    reason = _compiler_failure(device)
    if distributed.any_worker([reason is not None], device)[0]:
        warnings.warn(
            f"compute.compile is skipped, training goes on without it: {reason or 'another worker cannot compile'}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    stem = network.backbone.stem
    # Routing rows to the stems depends on the mask's values, which a graph cannot express; both stems are compiled.
    plain = torch.compiler.disable(stem.forward, recursive=False)  # type: ignore[no-untyped-call]
    stem.forward = plain  # type: ignore[method-assign]
    network.compile()
    return True


def uncompiled(settings: config.Compute) -> AbstractContextManager[object]:
    """Context in which a compiled network runs eagerly, for the few passes of a validation in other shapes."""
    return torch.compiler.set_stance("force_eager") if settings.compile else nullcontext()


def _compiler_failure(device: torch.device) -> str | None:
    """Reason why a small function cannot be compiled, forward and backward, for ``device``; None if it can."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(_probe)(x).backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ImportError, OSError) as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sin().sum()
