"""The network of a run: untrained, or from one of its checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from icre import config
from icre.model.build import build_network
from icre.model.network import ICRENetwork
from icre.training import checkpoint
from pipelines.runs.fetch import fetch
from pipelines.runs.run import UNTRAINED, Run
from pipelines.storage import Storage


def initial_network(recipe: config.Recipe, *, classes: int) -> ICRENetwork:
    """The network before its first step, with the pretrained backbone of the recipe if it names one."""
    if recipe.model.weights is None:
        return build_network(recipe, classes=classes)
    with tempfile.TemporaryDirectory(prefix="icre-weights-") as scratch:
        return build_network(recipe, classes=classes, weights=fetch(recipe.model.weights, Path(scratch)))


def load_network(run_url: str, name: str) -> tuple[ICRENetwork, dict[str, Any]]:
    """The network of a checkpoint, completely loaded, and the checkpoint's name, step and checksum.

    name: ``best``, ``last``, ``step-…`` or ``untrained``. The arguments are plain strings, so any worker can call it.
    """
    run = Run(Storage(run_url))
    recipe = run.recipe
    if name == UNTRAINED:
        network = initial_network(recipe, classes=run.manifest["data"]["classes"])
        return network, {"name": name, "step": 0, "sha256": None}
    with run.checkpoints.load(name) as (folder, meta):
        # The recipe's pretrained weights are not fetched: they would be overwritten.
        network = build_network(recipe, classes=meta["classes"])
        checkpoint.load_network(network, folder)
    step = checkpoint.progress_of(meta).step
    return network, {"name": name, "step": step, "sha256": meta["files"][checkpoint.NETWORK]["sha256"]}
