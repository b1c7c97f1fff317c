"""Identity Clues Guided loss, with its modality centres and distances (docs/method.md section 2).

Shape letters: B images, D feature channels, K centres (one per identity and modality present in the batch).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icre import config

# Centres that pull an image, as the bits to XOR with the image's own slot.
_PULLING = {"cross": (1,), "both": (0, 1), "joint": (0,)}


class ICGTerms(NamedTuple):
    """The two scalars whose sum is the ICG loss."""

    pull: Tensor
    push: Tensor


class Centers(NamedTuple):
    """Mean feature of identity p in modality m, in slot 2 p + m; p counts identities in order, m = 1 is infrared."""

    means: Tensor
    """2P x D; zeros where ``present`` is false."""
    present: Tensor
    """2P, bool: whether the batch holds an image of that identity and modality."""
    slot_of_row: Tensor
    """B: slot of each image's centre. ``slot_of_row ^ 1`` is the same identity's other centre."""


def icg_loss(features_BD: Tensor, pids_B: Tensor, infrared_B: Tensor, settings: config.Icg) -> ICGTerms:
    """Pull images to their identity's other centre, push centres of different identities apart.

    With c_p^m the mean feature of identity p in modality m, m̄ the other modality and [x]_+ = max(x, 0)::

        pull = mean over i          of [ ||f_i - c_{y_i}^{m̄_i}|| - rho1 ]_+
        push = mean over p != q,m,n of [ rho2 - ||c_p^m - c_q^n|| ]_+

    Other readings of "modality-aware centres", for the ablation: ``centers="both"`` pulls an image to both centres
    of its identity (mean over i and m of [ ||f_i - c_{y_i}^m|| - rho1 ]_+). "joint" ignores the modality: each
    identity has one centre, the mean of all its images, in pull and push.

    ``pids_B`` are integers, ``infrared_B`` is bool, and the batch is the global one. ``settings.normalize`` scales
    each feature to length 1 first. Always computed in float32, also under autocast. Images without a counterpart are
    excluded from the pull, absent centres from the push. Without terms both are 0.
    """
    features = prepare(features_BD, normalize=settings.normalize)
    stream_B = torch.zeros_like(infrared_B) if settings.centers == "joint" else infrared_B
    found = modality_centers(features, pids_B, stream_B)
    pulling_BT = found.slot_of_row[:, None] ^ found.slot_of_row.new_tensor(_PULLING[settings.centers])
    squares_BT = (features[:, None] - found.means[pulling_BT]).square().sum(2)
    pull = mean_where(F.relu(_root(squares_BT) - settings.rho1), found.present[pulling_BT])

    means_KD, pids_K = present_centers(found)
    gaps = F.relu(settings.rho2 - pairwise_distances(means_KD))
    push = mean_where(gaps, pids_K[:, None] != pids_K[None, :])
    return ICGTerms(pull, push)


def prepare(features_BD: Tensor, *, normalize: bool) -> Tensor:
    """Features in float32, scaled to length 1 if ``normalize``."""
    features = features_BD.float()
    return F.normalize(features, dim=1) if normalize else features


def modality_centers(features_BD: Tensor, pids_B: Tensor, infrared_B: Tensor) -> Centers:
    """c_p^m, the mean of the features of each identity p in each modality m."""
    identities, index_B = torch.unique(pids_B, return_inverse=True)
    slots = 2 * len(identities)
    slot_of_row = 2 * index_B + infrared_B.long()
    counts = features_BD.new_zeros(slots).index_add(0, slot_of_row, features_BD.new_ones(len(features_BD)))
    sums = features_BD.new_zeros(slots, features_BD.shape[1]).index_add(0, slot_of_row, features_BD)
    return Centers(sums / counts.clamp(min=1)[:, None], counts > 0, slot_of_row)


def present_centers(centers: Centers) -> tuple[Tensor, Tensor]:
    """The K centres present in the batch, and the identity number of each."""
    return centers.means[centers.present], torch.nonzero(centers.present)[:, 0] // 2


def pairwise_distances(x_KD: Tensor) -> Tensor:
    """Euclidean distances ``K x K`` between the rows, float32."""
    # ||a||² + ||b||² - 2ab cancels for near rows. float64 keeps the precision and never uses TF32.
    x = x_KD.double()
    squares = x.square().sum(1)
    return _root(squares[:, None] + squares[None, :] - 2 * x @ x.T).to(x_KD.dtype)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where ``mask`` holds; 0, still part of the graph, if it holds nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def _root(squares: Tensor) -> Tensor:
    # The square root has no finite slope at 0; below the clamp the gradient is 0 instead.
    return squares.clamp(min=1e-12).sqrt()
