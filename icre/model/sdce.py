"""Semantic Distillation Cascade Enhancement: a two-stage transformer on X4 (docs/method.md section 1).

Shape letters: B images, C channels of X4, d token width, N = h * w tokens, n heads.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Order = Literal["cross_self", "cross", "self", "self_cross"]
_CASCADES = {
    "cross_self": ("cross", "self"),
    "cross": ("cross",),
    "self": ("self",),
    "self_cross": ("self", "cross"),
}


class Attention(nn.Module):
    """Multi-head attention, softmax(q kᵀ / sqrt(d/n)) v. Raises ValueError unless ``heads`` divides ``dim``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}: every head gets dim / heads channels")
        self.heads = heads
        # No bias on the keys: it would shift all scores of a query equally, which softmax cancels.
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, query_BNd: Tensor, context_BMd: Tensor) -> Tensor:
        """Attend from N query tokens to M context tokens: ``B x N x d``."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query_BNd), (self.key, context_BMd), (self.value, context_BMd))
        )
        read = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out


class AttentionStage(nn.Module):
    """One stage of the cascade, pre-norm: Z + MHA(LN(Z), LN(S)) if ``cross``, else Z + MHA(LN(Z), LN(Z))."""

    def __init__(self, dim: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if cross else None
        self.attention = Attention(dim, heads)

    def forward(self, z_BNd: Tensor, shallow_BMd: Tensor) -> Tensor:
        """The next Z, ``B x N x d``; without ``cross``, ``shallow_BMd`` is ignored."""
        query = self.norm(z_BNd)
        context = query if self.norm_context is None else self.norm_context(shallow_BMd)
        out: Tensor = z_BNd + self.attention(query, context)
        return out


class SDCE(nn.Module):
    """Cross-attention of deep tokens to shallow ones, self-attention, then a feed-forward refinement.

    D = Conv1x1(X4) + position, S = F + position, both as tokens. Default ``order``, "cross_self":
    Z1 = D + MHA(LN(D), LN(S)); Z2 = Z1 + MHA(LN(Z1), LN(Z1)); Z3 = Z2 + FFN(LN(Z2)). Order "self" ignores S.
    ``grid`` is the (h, w) of X4 for which position embeddings are created; other sizes interpolate them.
    """

    def __init__(
        self,
        channels: int,
        *,
        grid: tuple[int, int],
        dim: int = 512,
        heads: int = 8,
        order: Order = "cross_self",
    ) -> None:
        super().__init__()
        if order not in _CASCADES:
            raise ValueError(f"order={order!r}: one of {', '.join(map(repr, _CASCADES))}")
        self.order = order
        cascade = _CASCADES[order]
        self.deep = nn.Conv2d(channels, dim, 1, bias=False)
        self.deep_position = _position(dim, grid)
        self.shallow_position = _position(dim, grid) if "cross" in cascade else None
        self.cascade = nn.ModuleList(AttentionStage(dim, heads, cross=kind == "cross") for kind in cascade)
        # No final bias: it would shift all tokens equally, which the batch norm of the output cancels.
        self.refine = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
        )

    def forward(self, x4_BCHW: Tensor, shallow_BdHW: Tensor | None) -> Tensor:
        """Z3 as a map ``B x d x h x w``. ``shallow_BdHW`` has X4's size; only order "self" takes None."""
        z: Tensor = _tokens(self.deep(x4_BCHW), self.deep_position)
        shallow = z
        if self.shallow_position is not None:
            assert shallow_BdHW is not None, f"order {self.order!r} reads the shallow map"
            shallow = _tokens(shallow_BdHW, self.shallow_position)
        for stage in self.cascade:
            z = stage(z, shallow)
        z = z + self.refine(z)
        return z.transpose(1, 2).reshape(len(z), -1, *x4_BCHW.shape[2:])


class ResidualOutput(nn.Module):
    """E = ReLU(X4 + BN0(Conv1x1(Z))), with BN0's weight ``gain`` at the start.

    With gain 0 training starts exactly at the baseline. Only BN0's weight is then zero: its gradient is not, and after
    one step the layers that produce Z receive gradients too.
    """

    def __init__(self, dim: int, channels: int, *, gain: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, channels, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(channels)
        nn.init.constant_(self.bn0.weight, gain)

    def forward(self, x4_BCHW: Tensor, z_BdHW: Tensor) -> Tensor:
        """E, in the shape of X4."""
        # In place: the map is large, and no gradient needs the output of the batch norm.
        return F.relu(self.bn0(self.conv(z_BdHW)).add_(x4_BCHW), inplace=True)


def _position(dim: int, grid: tuple[int, int]) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))


def _tokens(map_BdHW: Tensor, position_1dHW: Tensor) -> Tensor:
    """Map ``B x d x h x w`` to ``B x N x d``, row by row, with the position embedding added."""
    size = map_BdHW.shape[-2:]
    if position_1dHW.shape[-2:] != size:
        position_1dHW = F.interpolate(position_1dHW, size, mode="bicubic", align_corners=False)
    return (map_BdHW + position_1dHW).flatten(2).transpose(1, 2)
