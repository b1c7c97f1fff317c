"""What a network costs: parameters, multiply-accumulates, memory of a training step (docs/method.md section 1).

Everything is counted on torch's meta device: shapes alone, no weights, no arithmetic, the same on every machine.
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
"""The networks that the components make: the baseline first, the paper's last. ICG is a loss and costs no network."""
OPTIMIZER_FLOATS = {"sgd": 1, "adam": 2, "adamw": 2}
"""Numbers that an optimiser keeps for each trainable parameter: a momentum, or two moments."""


@dataclass(frozen=True)
class Cost:
    """What a network, or a part of it, costs."""

    parameters: int
    """Elements of all parameters, frozen ones too."""
    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention, forward, for one image."""
    activation_bytes: int
    """What autograd keeps of one batch between forward and backward, float32."""


@dataclass(frozen=True)
class Complexity:
    """A network part by part, and what stays in memory whatever the batch."""

    components: dict[str, Cost]
    """In the order of the forward pass: stem, layer1 .. layer4, then mpfr, align, sdce, output if present, head."""
    total: Cost
    """Of the network as a whole: the sum of its components."""
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

    In float32, the whole batch at once, nothing recomputed, whatever the recipe says of these.
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
    """Cost of each network of ``GRID``, all else as in the recipe; one that the recipe's rules exclude is left out.

    The recipe's own network is among them, and so is the baseline.
    """
    loss: tuple[config.Component, ...] = ("icg",) if recipe.has("icg") else ()
    grid = {}
    for components in GRID:
        try:
            variant = config.override(recipe, [f"components=[{','.join(components + loss)}]"], where="the grid")
        except ConfigError:
            continue  # MPFR beside an SDCE that would never read it.
        grid[components] = complexity(variant, classes=classes)
    return grid


def component_costs(network: ICRENetwork, *, size: tuple[int, int], batch: int) -> dict[str, Cost]:
    """Cost of each component of a network on the meta device, for ``batch`` (2 or more) images of ``size`` (h, w).

    One forward pass of a batch of one modality: an image passes one of the two stems, and a mixed batch keeps as
    much as that, but for the 128 batch statistics of the other stem and the order of its rows.

    MACs are half of what torch's FlopCounterMode counts: products of matrices and convolutions, not norms,
    poolings or activation functions. Kept bytes are the storages that saved_tensors_hooks see, images included:
    each once, at the component that is the first to keep it, whole where only a view is kept, and without
    parameters and buffers. Attention is that of CUDA's fused float32 kernel, which keeps its inputs, its output
    and one number a query and head; the plain formula, which torch takes on meta, would keep two N x N matrices.
    Losses, kernels' workspace and what an allocator rounds up are not counted.
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
    """Which storages autograd keeps, and for which component first."""

    def __init__(self, network: nn.Module, paths: Iterable[str]) -> None:
        self.tracker = ModuleTracker()
        self._paths = {f"{type(network).__name__}.{path}": path for path in paths}
        self._own = {tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())}
        # On meta every data pointer is 0. The storage object itself is its identity, for as long as it is held.
        self._owner: dict[torch.UntypedStorage, str] = {}

    def record(self, tensor: Tensor) -> None:
        """Hook: autograd is about to keep ``tensor``."""
        storage = tensor.untyped_storage()
        if storage in self._own or storage in self._owner:
            return
        (component,) = self._paths.keys() & self.tracker.parents
        self._owner[storage] = self._paths[component]

    def bytes_of(self, path: str) -> int:
        """Bytes that a component was the first to keep."""
        return sum(storage.nbytes() for storage, owner in self._owner.items() if owner == path)


class _FusedAttention(TorchFunctionMode):
    """Attention by the kernel that CUDA takes for float32, where meta would take the plain formula."""

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
