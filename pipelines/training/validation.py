"""Validation during training on the held-out training identities, with the recipe's protocol."""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import torch

from icre import config
from icre.data.augmentation import normalise
from icre.errors import TrainingError
from icre.evaluation import protocol_of, run_protocol
from icre.evaluation.protocols import for_validation
from icre.model.network import ICRENetwork
from icre.training import compute, distributed
from pipelines.data.feed import load_images
from pipelines.data.prepared import PreparedData


def validate(
    network: ICRENetwork, data: PreparedData, recipe: config.Recipe, device: torch.device
) -> dict[str, float] | None:
    """rank1, mAP and mINP, averaged over the protocol's directions; None without validation identities.

    All workers must call it. With ``train.sync_batch_norm=false`` each has its own running statistics; those of worker
    0, which a checkpoint holds, replace the others' first.
    """
    rows = data.rows_of("val")
    if not rows:
        return None
    if not recipe.train.sync_batch_norm:
        distributed.broadcast_buffers(network)
    with compute.uncompiled(recipe.compute):
        features = embed_rows(network, data, rows, recipe, device)
    results = run_protocol(features, data.records(rows), for_validation(protocol_of(recipe)))
    means = [result.mean() for result in results.values()]
    return {key: float(np.mean([mean[key] for mean in means])) for key in ("rank1", "mAP", "mINP")}


def embed_rows(
    network: ICRENetwork, data: PreparedData, rows: list[int], recipe: config.Recipe, device: torch.device
) -> torch.Tensor:
    """(len(rows), D) retrieval features; each worker embeds every W-th row and receives all of them."""
    rank = torch.distributed.get_rank() if distributed.world_size() > 1 else 0
    world = distributed.world_size()
    # Padded with repeats so that every worker gathers the same number; the repeats are removed below.
    padded = [*rows, *islice(cycle(rows), -len(rows) % world)]
    mine = padded[rank::world]
    infrared = [m == "infrared" for m in data.labels["modality"].take(mine).to_pylist()]
    network.eval()
    size, batch_size = recipe.data, recipe.evaluation.batch_size
    parts = []
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            chunk = slice(start, start + batch_size)
            images = load_images(data, mine[chunk], height=size.height, width=size.width)
            parts.append(network.embed(normalise(images.to(device)), torch.tensor(infrared[chunk])))
    gathered = distributed.gather(torch.cat(parts)).cpu()
    features = gathered.view(world, -1, gathered.shape[1]).transpose(0, 1).flatten(0, 1)[: len(rows)]
    if len(features) != len(rows):
        raise TrainingError(f"{len(features)} features for {len(rows)} validation images")
    return features
