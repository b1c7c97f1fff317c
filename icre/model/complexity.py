"""Cost of a network: parameters, multiply-accumulates, memory of a training step (docs/method.md section 1).

Everything is counted on torch's meta device, from shapes alone, and is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from icre import config
from icre.errors import ConfigError
from icre.model.build import build_network
from icre.model.network import ICRENetwork

GRID: tuple[tuple[config.Component, ...], ...] = ((), ("mpfr",), ("sdce",), ("mpfr", "sdce"))
"""The networks to compare: the baseline first, the paper's last. ICG is a loss and adds nothing to the network."""
OPTIMIZER_FLOATS = {"sgd": 1, "adam": 2, "adamw": 2}
"""Optimiser state per trainable parameter, in numbers: a momentum, or two moments."""


@dataclass(frozen=True)
class Cost:
    """Cost of a network or of one of its parts."""

    parameters: int
    """Elements of all parameters, including frozen ones."""
    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention, forward, for one image."""
    activation_bytes: int
    """Bytes that autograd keeps between forward and backward for one batch, float32."""


@dataclass(frozen=True)
class Complexity:
    """Cost of a network by component, and its memory that does not depend on the batch."""

    components: dict[str, Cost]
    """Components in forward order: stem, layer1 .. layer4, then mpfr, align, sdce, output if present, head."""
    total: Cost
    """Sum of all components."""
    weight_bytes: int
    """Parameters and buffers (running statistics of batch norm)."""
    gradient_bytes: int
    """One number for each trainable parameter."""
    optimizer_bytes: int
    """The optimiser's state after its first step."""

    @property
    def training_bytes(self) -> int:
        """Weights, gradients, optimiser state and activations."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.total.activation_bytes


def complexity(recipe: config.Recipe, *, classes: int) -> Complexity:
    """Cost of the recipe's network for ``recipe.batch.size`` images on one worker; classes: training identities.

    Always for float32, the whole batch at once and without recomputation, regardless of the recipe.
    """
    with torch.device("meta"):
        network = build_network(recipe, classes=classes)
    size = (recipe.data.height, recipe.data.width)
    components = component_costs(network, size=size, batch=recipe.batch.size)
    gradient_bytes = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    return Complexity(
        components=components,
        total=_sum(components.values()),
        weight_bytes=sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers())),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=OPTIMIZER_FLOATS[recipe.optimizer.name] * gradient_bytes,
    )


def component_grid(recipe: config.Recipe, *, classes: int) -> dict[tuple[config.Component, ...], Complexity]:
    """Cost of each network of ``GRID`` with the recipe's other settings; networks that its rules exclude are omitted.

    The recipe's own network and the baseline are always included.
    """
    loss: tuple[config.Component, ...] = ("icg",) if recipe.has("icg") else ()
    grid = {}
    for components in GRID:
        try:
            variant = config.override(recipe, [f"components=[{','.join(components + loss)}]"], where="the grid")
        except ConfigError:
            continue  # MPFR with an SDCE that never reads its map.
        grid[components] = complexity(variant, classes=classes)
    return grid


def component_costs(network: ICRENetwork, *, size: tuple[int, int], batch: int) -> dict[str, Cost]:
    """Cost of each component of a network on the meta device, for ``batch`` (2 or more) images of ``size`` (h, w).

    Counted in one forward pass of a batch of one modality, since each image passes one of the two stems. A mixed batch
    differs only by the 128 batch statistics of the other stem and the order of its rows.

    MACs are half the count of torch's FlopCounterMode: matrix products and convolutions, not norms, poolings or
    activation functions. Kept bytes are the storages passed to saved_tensors_hooks, including images but not
    parameters and buffers. Each storage counts once, in full, at the first component that keeps it. Attention is
    counted as CUDA's fused float32 kernel, which keeps its inputs, its output and one number per query and head; the
    plain formula that torch uses on meta would keep two N x N matrices. Losses, kernel workspaces and allocator
    rounding are not counted.
    """
    images = torch.empty(batch, 3, *size, device="meta")
    parts = dict(_parts(network))
    network.train()
    counter, kept = FlopCounterMode(display=False), _KeptForBackward(network, parts)
    with counter, _FusedAttention(), kept.tracker, torch.autograd.graph.saved_tensors_hooks(kept.record, _never):
        network(images, False)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(network).__name__
    costs = {
        path.rpartition(".")[2]: Cost(
            parameters=sum(p.numel() for p in part.parameters()),
            macs=flops.get(f"{root}.{path}", 0) // 2 // batch,
            activation_bytes=kept.bytes_of(path),
        )
        for path, part in parts.items()
    }
    assert sum(cost.macs for cost in costs.values()) == counter.get_total_flops() // 2 // batch
    return costs


def _parts(network: ICRENetwork) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each component: the children of the network, and those of its backbone."""
    for name, child in network.named_children():
        if child is network.backbone:
            yield from ((f"{name}.{stage}", module) for stage, module in child.named_children())
        else:
            yield name, child


def _sum(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return Cost(
        parameters=sum(cost.parameters for cost in costs),
        macs=sum(cost.macs for cost in costs),
        activation_bytes=sum(cost.activation_bytes for cost in costs),
    )


class _KeptForBackward:
    """Storages kept by autograd, each with the first component that kept it."""

    def __init__(self, network: nn.Module, paths: Iterable[str]) -> None:
        self.tracker = ModuleTracker()
        self._paths = {f"{type(network).__name__}.{path}": path for path in paths}
        self._own = {tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())}
        # On meta every data pointer is 0; identity is that of the storage object, valid while it is held.
        self._owner: dict[torch.UntypedStorage, str] = {}

    def record(self, tensor: Tensor) -> None:
        """Hook called when autograd keeps ``tensor``."""
        storage = tensor.untyped_storage()
        if storage in self._own or storage in self._owner:
            return
        (component,) = self._paths.keys() & self.tracker.parents
        self._owner[storage] = self._paths[component]

    def bytes_of(self, path: str) -> int:
        """Bytes of the storages first kept by a component."""
        return sum(storage.nbytes() for storage, owner in self._owner.items() if owner == path)


class _FusedAttention(TorchFunctionMode):
    """Use the float32 attention kernel of CUDA, where meta would use the plain formula."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            fused = torch.ops.aten._scaled_dot_product_efficient_attention
            return fused(query, key, value, None, compute_log_sumexp=True)[0]
        return func(*args, **(kwargs or {}))


def _never(_: object) -> Tensor:
    raise AssertionError("nothing runs backward here")
