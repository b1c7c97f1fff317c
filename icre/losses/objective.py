"""The total objective, L = L_id + λ · L_icg, and those that it is compared with (docs/method.md section 2).

Shape letters: B images of this worker, G images of the global batch, C identities, D feature channels.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from icre.losses.icg import CenterReading, icg_loss
from icre.losses.triplet import batch_hard_triplet, hetero_center_triplet, weighted_regularized_triplet

Triplet = Literal["batch_hard", "weighted_regularized", "hetero_center"]


def objective(
    logits_BC: Tensor,
    labels_B: Tensor,
    features_GD: Tensor,
    pids_G: Tensor,
    infrared_G: Tensor,
    *,
    id_weight: float = 1.0,
    icg_weight: float = 1.0,
    rho1: float = 0.1,
    rho2: float = 0.7,
    normalize: bool = True,
    centers: CenterReading = "cross",
    triplet: Triplet | None = None,
    margin: float = 0.3,
) -> dict[str, Tensor]:
    """Named scalar terms; ``loss`` is the one to differentiate.

    ``loss`` = ``id`` + λ (``icg_pull`` + ``icg_push``) + ``triplet``, λ being ``icg_weight``. λ = 0 drops
    ICG, ``triplet=None`` the triplet; both together leave the identity loss alone.

    ``id`` is the cross-entropy of this worker's rows, times ``id_weight``: the worker's share of the global batch,
    times the number of workers, so that the workers' mean is the mean of all rows. The metric losses see the global
    batch: gather features with an all-gather whose backward adds up the workers' gradients; averaging parameter
    gradients over the workers, as DDP does, then gives those of one worker with the whole batch. With one worker B = G.

    ``centers`` is ICG's reading of them; ``normalize`` scales the features of ICG and of the triplet to length 1;
    ``margin`` is of "batch_hard" and "hetero_center". An unknown ``triplet`` or ``centers`` raises ValueError.
    """
    terms = {"id": id_weight * F.cross_entropy(logits_BC.float(), labels_B)}
    loss = terms["id"]
    if icg_weight:
        icg = icg_loss(features_GD, pids_G, infrared_G, rho1=rho1, rho2=rho2, normalize=normalize, centers=centers)
        terms |= {"icg_pull": icg.pull, "icg_push": icg.push}
        loss = loss + icg_weight * (icg.pull + icg.push)
    if triplet is not None:
        terms["triplet"] = _triplet(triplet, features_GD, pids_G, infrared_G, margin, normalize)
        loss = loss + terms["triplet"]
    return {"loss": loss, **terms}


def _triplet(kind: Triplet, features: Tensor, pids: Tensor, infrared: Tensor, margin: float, normalize: bool) -> Tensor:
    match kind:
        case "batch_hard":
            return batch_hard_triplet(features, pids, margin=margin, normalize=normalize)
        case "weighted_regularized":
            return weighted_regularized_triplet(features, pids, normalize=normalize)
        case "hetero_center":
            return hetero_center_triplet(features, pids, infrared, margin=margin, normalize=normalize)
        case _:
            raise ValueError(f"triplet={kind!r}: batch_hard, weighted_regularized or hetero_center")
