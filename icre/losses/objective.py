"""The total objective, L = L_id + λ · L_icg, and the objectives for comparison (docs/method.md section 2).

Shape letters: B images of this worker, G images of the global batch, C identities, D feature channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from icre import config
from icre.losses.icg import icg_loss
from icre.losses.triplet import batch_hard_triplet, hetero_center_triplet, weighted_regularized_triplet


@dataclass(frozen=True)
class Objective:
    """The loss of a recipe: L = ``id`` + λ (``icg_pull`` + ``icg_push``) + ``triplet``."""

    settings: config.Loss
    icg: bool
    """Whether ICG is one of the recipe's components."""

    @classmethod
    def of(cls, recipe: config.Recipe) -> Objective:
        """The objective of a recipe."""
        return cls(recipe.loss, icg=recipe.has("icg"))

    def __call__(
        self,
        logits_BC: Tensor,
        labels_B: Tensor,
        features_GD: Tensor,
        pids_G: Tensor,
        infrared_G: Tensor,
        *,
        id_weight: float = 1.0,
    ) -> dict[str, Tensor]:
        """Named scalar terms; ``loss`` is the one to differentiate.

        ``id`` is the cross-entropy of this worker's rows times ``id_weight``: the worker's share of the global batch
        times the number of workers, which makes the workers' mean the mean of all rows. The metric losses take the
        global batch: gather features with an all-gather whose backward sums the workers' gradients. Averaging
        parameter gradients over the workers, as DDP does, then equals one worker with the whole batch. With one worker
        B = G.
        """
        terms = {"id": id_weight * F.cross_entropy(logits_BC.float(), labels_B)}
        loss, icg = terms["id"], self.settings.icg
        if self.icg and icg.weight:
            pull, push = icg_loss(features_GD, pids_G, infrared_G, icg)
            terms |= {"icg_pull": pull, "icg_push": push}
            loss = loss + icg.weight * (pull + push)
        if self.settings.triplet is not None:
            terms["triplet"] = self._triplet(features_GD, pids_G, infrared_G)
            loss = loss + terms["triplet"]
        return {"loss": loss, **terms}

    def _triplet(self, features: Tensor, pids: Tensor, infrared: Tensor) -> Tensor:
        normalize = self.settings.triplet_normalize
        match self.settings.triplet:
            case "batch_hard":
                return batch_hard_triplet(features, pids, normalize=normalize)
            case "weighted_regularized":
                return weighted_regularized_triplet(features, pids, normalize=normalize)
            case _:
                return hetero_center_triplet(features, pids, infrared, normalize=normalize)
