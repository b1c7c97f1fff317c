"""Triplet losses for comparison with ICG (docs/method.md section 2).

Shape letters: B images, D feature channels. All take the global batch, return a scalar, compute in float32, and
exclude anchors without a positive or without a negative; without anchors the loss is 0. They were published for raw
features; ``normalize`` scales each to length 1 first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from icre.losses.icg import mean_where, modality_centers, pairwise_distances, prepare, present_centers


def batch_hard_triplet(features_BD: Tensor, pids_B: Tensor, *, margin: float = 0.3, normalize: bool = False) -> Tensor:
    """mean_i [ margin + max_{p positive} d_ip - min_{n negative} d_in ]_+ over all images of both modalities.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737.
    """
    distances = pairwise_distances(prepare(features_BD, normalize=normalize))
    return _batch_hard(distances, *_pairs(pids_B), margin=margin)


def weighted_regularized_triplet(features_BD: Tensor, pids_B: Tensor, *, normalize: bool = False) -> Tensor:
    """mean_i log(1 + exp(sum_p w_ip d_ip - sum_n w_in d_in)), with no margin to tune.

    w_ip is the softmax of d over the positives of i, w_in the softmax of -d over its negatives.
    Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (AGW), arXiv 2001.04193.
    """
    distances = pairwise_distances(prepare(features_BD, normalize=normalize))
    positive, negative = _pairs(pids_B)
    usable = positive.any(1) & negative.any(1)
    # Drop rows without a pair before the softmax: over an empty set it is NaN, as would be every gradient.
    d, positive, negative = distances[usable], positive[usable], negative[usable]
    far = (d.masked_fill(~positive, -torch.inf).softmax(1) * d).sum(1)
    near = ((-d).masked_fill(~negative, -torch.inf).softmax(1) * d).sum(1)
    return F.softplus(far - near).sum() / usable.sum().clamp(min=1)


def hetero_center_triplet(
    features_BD: Tensor, pids_B: Tensor, infrared_B: Tensor, *, margin: float = 0.3, normalize: bool = False
) -> Tensor:
    """mean over centres of [ margin + d(c_p^m, c_p^m̄) - min_{q != p, n} d(c_p^m, c_q^n) ]_+.

    Batch-hard on modality centres; the only positive is the same identity's other modality. Liu, Tan, Zhou,
    "Parameter Sharing Exploration and Hetero-Center Triplet Loss for Visible-Thermal Person
    Re-Identification", arXiv 2008.06223 (there a sum; here a mean, so its weight is independent of the batch size).
    """
    centers = modality_centers(prepare(features_BD, normalize=normalize), pids_B, infrared_B)
    means, pids = present_centers(centers)
    return _batch_hard(pairwise_distances(means), *_pairs(pids), margin=margin)


def _pairs(pids: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the positives (same identity, another row) and the negatives of each row."""
    same = pids[:, None] == pids[None, :]
    itself = torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    return same & ~itself, ~same


def _batch_hard(distances: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    hardest = distances.masked_fill(~positive, 0).amax(1)
    nearest = distances.masked_fill(~negative, torch.finfo(distances.dtype).max).amin(1)
    return mean_where(F.relu(margin + hardest - nearest), positive.any(1) & negative.any(1))
