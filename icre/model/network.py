"""The whole network: backbone, MPFR, SDCE, head (docs/method.md section 1).

Shape letters: B images, C channels of X4, K identities, S stages that MPFR reads, h x w the map of X4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from icre.model.backbone import STRIDE, Architecture, DualStreamResNet, Stages
from icre.model.head import Head, Output
from icre.model.mpfr import MPFR, Align, Fusion, MaskKind
from icre.model.sdce import SDCE, Order, ResidualOutput

COMPONENTS = frozenset({"mpfr", "sdce"})


class ICRENetwork(nn.Module):
    """ICRE's network, or one of its ablations: ``components`` holds any of "mpfr" and "sdce".

    ============  =====================================================================
    none          E = X4, the baseline
    mpfr          E = ReLU(X4 + BN0(Conv1x1(F)))
    sdce          E = ReLU(X4 + BN0(Conv1x1(Z3))), S read from the aligned X3 alone
    mpfr, sdce    E = ReLU(X4 + BN0(Conv1x1(Z3))), S read from F
    ============  =====================================================================

    ``input_size`` is (height, width) in pixels and only sets the grid of the position embeddings. Raises
    ValueError for an unknown component or option, for ``heads`` that do not divide ``dim``, and for "mpfr" with
    ``sdce_order="self"``, where nothing reads F and MPFR would get no gradient.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        classes: int,
        components: Collection[str] = COMPONENTS,
        input_size: tuple[int, int] = (288, 144),
        dim: int = 512,
        heads: int = 8,
        mpfr_stages: tuple[int, ...] = (1, 2, 3),
        mpfr_mask: MaskKind = "sigmoid",
        mpfr_fusion: Fusion = "sum",
        sdce_order: Order = "cross_self",
        output_gain: float = 0.0,
    ) -> None:
        super().__init__()
        _check(components, sdce_order)
        channels = architecture.channels
        grid = (-(-input_size[0] // STRIDE), -(-input_size[1] // STRIDE))
        has_mpfr, has_sdce = "mpfr" in components, "sdce" in components
        aligns = has_sdce and not has_mpfr and sdce_order != "self"
        self.backbone = DualStreamResNet(architecture)
        self.mpfr = None
        if has_mpfr:
            self.mpfr = MPFR(channels, dim=dim, stages=mpfr_stages, mask=mpfr_mask, fusion=mpfr_fusion)
        self.align = Align(channels[2], dim) if aligns else None
        self.sdce = SDCE(channels[3], grid=grid, dim=dim, heads=heads, order=sdce_order) if has_sdce else None
        self.output = ResidualOutput(dim, channels[3], gain=output_gain) if has_mpfr or has_sdce else None
        self.head = Head(channels[3], classes)

    def forward(self, images_B3HW: Tensor, infrared: Tensor | bool) -> Output:
        """Features, embeddings and logits; ``infrared`` is a mask (B,), or one bool for the whole batch."""
        output: Output = self.head(self.feature_map(images_B3HW, infrared))
        return output

    def embed(self, images_B3HW: Tensor, infrared: Tensor | bool) -> Tensor:
        """Retrieval features ``B x C``, float32: g scaled to length 1, so dot products are cosines."""
        return F.normalize(self(images_B3HW, infrared).embeddings, dim=1)

    def feature_map(self, images_B3HW: Tensor, infrared: Tensor | bool) -> Tensor:
        """E, ``B x C x h x w``: the map that the head pools, used by Grad-CAM and :meth:`forward`."""
        maps: Stages = self.backbone(images_B3HW, infrared)
        if self.output is None:
            return maps.x4
        shallow = self._shallow(maps)
        refined = shallow if self.sdce is None else self.sdce(maps.x4, shallow)
        enhanced: Tensor = self.output(maps.x4, refined)
        return enhanced

    def masks(self, images_B3HW: Tensor, infrared: Tensor | bool) -> Tensor:
        """MPFR's spatial masks, ``B x S x h x w`` in [0, 1]. Raises ValueError for a network without MPFR."""
        if self.mpfr is None:
            raise ValueError("this network has no masks: build it with the component 'mpfr'")
        masks: Tensor = self.mpfr(self.backbone(images_B3HW, infrared)).masks_BSHW
        return masks

    def parameter_groups(self) -> Iterator[tuple[str, bool]]:
        """Name of each trainable parameter, and whether it belongs to the backbone rather than to a new layer."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, name.startswith("backbone.")

    def _shallow(self, maps: Stages) -> Tensor | None:
        if self.mpfr is not None:
            fused: Tensor = self.mpfr(maps).fused_BdHW
            return fused
        if self.align is None:
            return None
        aligned: Tensor = self.align(maps.x3, (maps.x4.shape[2], maps.x4.shape[3]))
        return aligned


def _check(components: Collection[str], sdce_order: str) -> None:
    if unknown := sorted(set(components) - COMPONENTS):
        raise ValueError(f"components={unknown}: the network knows {sorted(COMPONENTS)}")
    if set(components) >= COMPONENTS and sdce_order == "self":
        raise ValueError("sdce_order='self' reads no shallow features: leave 'mpfr' out, or change the order")
