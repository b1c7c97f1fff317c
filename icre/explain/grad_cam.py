"""Grad-CAM: which regions of an image a score of the network depends on (the paper's Figure 5).

Shape letters: B images, C channels, h x w the map that the head pools, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icre.data.records import Record
from icre.errors import DataError
from icre.explain.eval_mode import evaluating
from icre.model.head import Output
from icre.model.network import ICRENetwork

Score = Callable[[Output], Tensor]
"""Map the head's output for B images to (B,) numbers, each depending only on its own image."""


def grad_cam(network: ICRENetwork, images_B3HW: Tensor, infrared: Tensor | bool, score: Score) -> Tensor:
    """Grad-CAM map of each image's score: ``B x H x W`` in [0, 1], on the images' device.

    With S the score and E the map that the head pools (``ICRENetwork.feature_map``), as in arXiv 1610.02391:
    a_c = mean over positions of dS/dE_c, map = ReLU(sum_c a_c E_c), resized bilinearly to the image and divided by its
    largest value. A map without a positive value stays zero. The network runs in evaluation mode, which keeps the
    images of a batch independent. Its modes and gradients do not change.
    """
    with evaluating(network):
        with torch.no_grad():
            enhanced = network.feature_map(images_B3HW, infrared)
        # The graph starts at E: layers before it need no memory and get no gradient.
        enhanced = enhanced.detach().requires_grad_()
        with torch.enable_grad():
            total = score(network.head(enhanced)).sum()
        (slope,) = torch.autograd.grad(total, enhanced)
    weights_BC11 = slope.mean(dim=(2, 3), keepdim=True)
    heat = (weights_BC11 * enhanced.detach()).sum(dim=1, keepdim=True).relu().float()
    heat = F.interpolate(heat, (images_B3HW.shape[2], images_B3HW.shape[3]), mode="bilinear", align_corners=False)[:, 0]
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return heat / peak.where(peak > 0, 1.0)


def similarity_to(reference_BC: Tensor) -> Score:
    """Cosine of each image's embedding with its row of ``reference_BC``.

    The score for identities outside the training set: they have no class, and the cosine with an image of the same
    identity in the other modality is what ranks a gallery. It highlights regions shared with the *other* modality,
    where the norm of an embedding would also highlight clues of one modality alone. See :func:`partners` for the
    references.
    """
    return lambda output: F.cosine_similarity(output.embeddings, reference_BC.to(output.embeddings), dim=1)


def logit_of(classes_B: Tensor) -> Score:
    """Logit of one class for each image, for images of the training identities."""
    return lambda output: output.logits.gather(1, classes_B.to(output.logits.device)[:, None])[:, 0]


def partners(features_ND: Tensor, records: Sequence[Record], rows: Sequence[int]) -> Tensor:
    """``len(rows) x D``: for each row the mean unit feature of its identity in the other modality.

    features_ND: features of ``records`` from the network to be explained. The mean over all images makes a map
    independent of a single pose. Raises DataError for an identity without such an image.
    """
    unit = F.normalize(features_ND.float(), dim=1)
    references = []
    for row in rows:
        own = records[row]
        others = [i for i, r in enumerate(records) if r.pid == own.pid and r.modality != own.modality]
        if not others:
            raise DataError(
                f"{own.path}: identity {own.pid!r} has no image in the other modality to compare it with",
                hint="choose people that were seen in both modalities",
            )
        references.append(unit[others].mean(dim=0))
    return torch.stack(references)
