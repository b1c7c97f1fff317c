"""MPFR's spatial masks at the size of the images (docs/method.md section 1).

Shape letters: B images, S stages, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from icre.explain.eval_mode import evaluating
from icre.model.network import ICRENetwork


def mask_maps(network: ICRENetwork, images_B3HW: Tensor, infrared: Tensor | bool) -> Tensor:
    """Mask of each of ``mpfr.stages`` at the size of the images: ``B x S x H x W`` in [0, 1].

    The masks are resized bilinearly and not rescaled. The network runs in evaluation mode and is left unchanged.
    Raises ValueError for a network without MPFR.
    """
    with evaluating(network), torch.no_grad():
        masks = network.masks(images_B3HW, infrared).float()
    return F.interpolate(masks, (images_B3HW.shape[2], images_B3HW.shape[3]), mode="bilinear", align_corners=False)
