"""Multi-Perception Feature Refinement: one map from several shallow stages (docs/method.md section 1).

Shape letters: B images, S stages (3 in the paper), d aligned channels, h x w the map of X4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskKind = Literal["sigmoid", "softmax", "none"]
Fusion = Literal["sum", "concat"]


class Refined(NamedTuple):
    """The fused map and the spatial mask of each stage."""

    fused_BdHW: Tensor
    masks_BSHW: Tensor


class Align(nn.Module):
    """A = ReLU(BN(Conv1x1(AdaptiveAvgPool(X)))): a stage's map at d channels and a given size."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, 1, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Map ``x_BCHW`` of any size to ``B x d x h x w``, with (h, w) = ``size``."""
        # Pooling first leaves up to 16 times fewer positions for the convolution.
        pooled = F.adaptive_avg_pool2d(x_BCHW, size)
        return F.relu(self.bn(self.conv(pooled)), inplace=True)


class SpatialMask(nn.Module):
    """Importance of each position in each stage: one 1x1 convolution per stage, then sigmoid or softmax.

    ``sigmoid``: independent masks in [0, 1]. ``softmax``: the masks of all stages add up to 1 at every position.
    """

    def __init__(self, stages: int, dim: int, kind: MaskKind) -> None:
        super().__init__()
        if kind not in ("sigmoid", "softmax", "none"):
            raise ValueError(f"mask={kind!r}: one of 'sigmoid', 'softmax', 'none'")
        self.kind = kind
        count = 0 if kind == "none" else stages
        self.convs = nn.ModuleList(nn.Conv2d(dim, 1, 1) for _ in range(count))

    def forward(self, aligned: Sequence[Tensor]) -> Tensor:
        """Map S maps ``B x d x h x w`` to masks ``B x S x h x w``."""
        if self.kind == "none":
            return torch.ones_like(torch.cat([a[:, :1] for a in aligned], dim=1))
        logits = torch.cat([conv(a) for conv, a in zip(self.convs, aligned, strict=True)], dim=1)
        return logits.sigmoid() if self.kind == "sigmoid" else logits.softmax(dim=1)


class MPFR(nn.Module):
    """F = ReLU(BN(Conv3x3(sum_s A_s * M_s))) over the stages s; ``fusion="concat"`` concatenates instead of summing.

    ``channels`` are those of X1..X4. ``stages`` counts from 1, ascending: (1, 2, 3), or (2, 3, 4), the other
    reading of the paper. Raises ValueError for other numbers and for an unknown ``mask`` or ``fusion``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        dim: int = 512,
        stages: tuple[int, ...] = (1, 2, 3),
        mask: MaskKind = "sigmoid",
        fusion: Fusion = "sum",
    ) -> None:
        super().__init__()
        if fusion not in ("sum", "concat"):
            raise ValueError(f"fusion={fusion!r}: one of 'sum', 'concat'")
        if not stages or list(stages) != sorted(set(stages) & {1, 2, 3, 4}):
            raise ValueError(f"stages={stages}: some of 1, 2, 3, 4, ascending, each once")
        self.stages = stages
        self.fusion = fusion
        self.align = nn.ModuleList(Align(channels[s - 1], dim) for s in stages)
        self.mask = SpatialMask(len(stages), dim, mask)
        self.fuse = nn.Conv2d(dim if fusion == "sum" else len(stages) * dim, dim, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, maps: Sequence[Tensor]) -> Refined:
        """Refine X1..X4; the result has X4's height and width."""
        size = (maps[3].shape[2], maps[3].shape[3])
        aligned = [align(maps[s - 1], size) for align, s in zip(self.align, self.stages, strict=True)]
        masks = self.mask(aligned)
        weighted = [a * masks[:, i : i + 1] for i, a in enumerate(aligned)]
        joined = sum(weighted[1:], weighted[0]) if self.fusion == "sum" else torch.cat(weighted, dim=1)
        return Refined(F.relu(self.bn(self.fuse(joined)), inplace=True), masks)
