"""Attention of a token of X4 in each stage of SDCE (docs/method.md section 1).

Shape letters: B images, n heads, d token width, N query tokens, M source tokens, h x w the map of X4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from icre.explain.eval_mode import evaluating
from icre.model.network import ICRENetwork
from icre.model.sdce import Attention, AttentionStage

Cell = tuple[int, int]
"""Row and column of a token in the grid of X4, from the upper left corner."""


@dataclass(frozen=True, eq=False)
class StageAttention:
    """Attention of the chosen token of each image to every source token, in one stage."""

    kind: Literal["cross", "self"]
    """Source tokens: shallow (cross) or deep (self)."""
    heads_BnHW: Tensor
    """Probabilities, ``B x n x h x w``; each ``h x w`` adds up to 1."""

    @property
    def mean_BHW(self) -> Tensor:
        """Mean over the heads, ``B x h x w``; also adds up to 1."""
        return self.heads_BnHW.mean(dim=1)


class Attended(NamedTuple):
    """The chosen tokens and their attention."""

    cells: list[Cell]
    """The chosen token of each image."""
    stages: list[StageAttention]
    """Stages in forward order: by default cross, then self."""


def attention_of(
    network: ICRENetwork, images_B3HW: Tensor, infrared: Tensor | bool, *, cells: Sequence[Cell] | None = None
) -> Attended:
    """The attention of one token of each image in every stage of SDCE.

    cells: one per image; None selects the position of X4 with the largest norm. The network runs in evaluation mode and
    is left unchanged. Raises ValueError for a network without SDCE, and for cells that do not fit.
    """
    if network.sdce is None:
        raise ValueError("this network has no attention: build it with the component 'sdce'")
    stages = [stage for stage in network.sdce.cascade if isinstance(stage, AttentionStage)]
    watched: list[nn.Module] = [network.sdce, *(stage.attention for stage in stages)]
    seen: dict[nn.Module, tuple[Tensor, ...]] = {}
    handles = [module.register_forward_pre_hook(seen.__setitem__) for module in watched]
    try:
        with evaluating(network), torch.no_grad():
            network.feature_map(images_B3HW, infrared)
            x4_BCHW = seen[network.sdce][0]
            chosen = strongest_cells(x4_BCHW) if cells is None else _checked(cells, x4_BCHW)
            found = [_read(stage, *seen[stage.attention], cells=chosen, x4_BCHW=x4_BCHW) for stage in stages]
    finally:
        for handle in handles:
            handle.remove()
    return Attended(chosen, found)


def probabilities(attention: Attention, query_BNd: Tensor, context_BMd: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d/n)), ``B x n x N x M`` in float32, which the module's fused attention does not return."""
    q, k = (
        layer(x).float().unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for layer, x in ((attention.query, query_BNd), (attention.key, context_BMd))
    )
    scores: Tensor = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    return scores.softmax(dim=3)


def strongest_cells(x4_BCHW: Tensor) -> list[Cell]:
    """Position of X4 with the largest norm, for each image."""
    width = x4_BCHW.shape[3]
    places = x4_BCHW.float().norm(dim=1).flatten(1).argmax(dim=1).tolist()
    return [divmod(place, width) for place in places]


def _read(
    stage: AttentionStage, query_BNd: Tensor, context_BMd: Tensor, *, cells: Sequence[Cell], x4_BCHW: Tensor
) -> StageAttention:
    height, width = x4_BCHW.shape[2:]
    rows = torch.arange(len(cells))
    tokens = torch.tensor([row * width + column for row, column in cells])
    chosen_B1d = query_BNd[rows, tokens][:, None]
    heads_BnM = probabilities(stage.attention, chosen_B1d, context_BMd)[:, :, 0]
    kind: Literal["cross", "self"] = "self" if stage.norm_context is None else "cross"
    return StageAttention(kind, heads_BnM.reshape(*heads_BnM.shape[:2], height, width))


def _checked(cells: Sequence[Cell], x4_BCHW: Tensor) -> list[Cell]:
    height, width = x4_BCHW.shape[2:]
    if len(cells) != len(x4_BCHW):
        raise ValueError(f"{len(cells)} cells for {len(x4_BCHW)} images: one for each image")
    if outside := [cell for cell in cells if not (0 <= cell[0] < height and 0 <= cell[1] < width)]:
        raise ValueError(f"cells {outside} are outside the grid of {height} x {width} tokens; (row, column) from 0")
    return list(cells)
