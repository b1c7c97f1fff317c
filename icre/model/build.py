"""Build the network of a recipe."""

from __future__ import annotations

from pathlib import Path

import torch

from icre import config
from icre.model.backbone import ARCHITECTURES
from icre.model.network import ICRENetwork
from icre.model.weights import load_pretrained


def build_network(recipe: config.Recipe, *, classes: int, weights: Path | None = None) -> ICRENetwork:
    """Build the untrained network, determined by ``recipe.seed`` and, if given, ``weights``.

    classes: training identities. weights: a local copy of ``recipe.model.weights``. torch's CPU random state is
    restored.
    """
    settings = recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = ICRENetwork(
            ARCHITECTURES[settings.backbone],
            classes=classes,
            components=frozenset(recipe.components) - {"icg"},
            input_size=(recipe.data.height, recipe.data.width),
            dim=settings.dim,
            heads=settings.heads,
            mpfr_stages=settings.mpfr_stages,
            mpfr_mask=settings.mpfr_mask,
            mpfr_fusion=settings.mpfr_fusion,
            sdce_order=settings.sdce_order,
            output_gain=settings.output_gain,
        )
    if weights is not None:
        load_pretrained(network.backbone, weights, sha256=settings.weights_sha256)
    return network
