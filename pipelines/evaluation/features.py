"""Features of a split, cached in the run folder and extracted once per network and images.

``<run>/features/<key>.safetensors``, where the key is a hash of everything the features depend on. Deleting the folder
only costs time.
"""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from icre import config
from icre.data.records import SplitName
from icre.model.network import ICRENetwork
from pipelines.data.prepared import PreparedData
from pipelines.evaluation.embed import embed
from pipelines.runs.run import Run
from pipelines.storage import Storage

_FORMAT = 1
"""Changed whenever the features of the same network and images change."""


def features_of(
    run: Run, checkpoint: str, model: str, data: PreparedData, split: SplitName, recipe: config.Recipe
) -> tuple[torch.Tensor, bool]:
    """(n, D) float32 retrieval features of ``data.rows_of(split)``, in that order, and whether they were cached.

    model: hash of the checkpoint's network, see :func:`model_hash`.
    """
    kept = kept_features(run, model, data, split, recipe)
    if kept is not None:
        return kept, True
    features = embed(run.location.url, checkpoint, data, split, recipe)
    _place(run, model, data, split, recipe).write_bytes(save({"features": features.contiguous()}))
    return features, False


def kept_features(
    run: Run, model: str, data: PreparedData, split: SplitName, recipe: config.Recipe
) -> torch.Tensor | None:
    """The cached features; None if there are none or they are damaged."""
    path = _place(run, model, data, split, recipe)
    if not path.exists():
        return None
    try:
        features = load(path.read_bytes())["features"]
    except (SafetensorError, KeyError):
        return None
    return features if len(features) == len(data.rows_of(split)) else None


def _place(run: Run, model: str, data: PreparedData, split: SplitName, recipe: config.Recipe) -> Storage:
    depends_on = (_FORMAT, model, data.hash, split, recipe.data.height, recipe.data.width, recipe.evaluation.flip)
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:24]
    return run.location / "features" / f"{key}.safetensors"


def model_hash(network: ICRENetwork) -> str:
    """SHA-256 of all parameters and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
