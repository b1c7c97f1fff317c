"""Measure the cost of one training of a sweep with a few steps on noise."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from icre import config
from icre.errors import NotFiniteError
from icre.training import compute
from icre.training.optimizer import build_optimizer
from icre.training.step import Batch, train_step
from pipelines.experiments.plan import Probe
from pipelines.runs.networks import initial_network

PROBE_STEPS = 3
LONG_STEP_S = 5.0
"""A single step longer than this is enough for a measurement."""


def probe(recipe: config.Recipe, classes: int) -> Probe:
    """Take a few training steps on noise as one worker would, on a GPU if the recipe assigns one to each worker."""
    torch.set_num_threads(max(1, int(recipe.train.cpus_per_worker)))
    device = torch.device("cuda" if recipe.train.gpus_per_worker else "cpu")
    workers, _ = recipe.train.worker_range
    cut = math.ceil(recipe.batch.identities / workers)
    network = initial_network(recipe, classes=classes).to(device).train()
    compute.arrange(network, recipe.compute)
    optimizer = build_optimizer(network, recipe.optimizer)
    one = config.override(recipe, ["train.workers=1", f"batch.identities={cut}"], where="the probe")
    batch = _noise(one, device, classes)
    seconds: list[float] = []
    while len(seconds) < PROBE_STEPS and (not seconds or seconds[-1] < LONG_STEP_S):
        started = time.perf_counter()
        with suppress(NotFiniteError):  # the recipe's own values may diverge where others do not
            train_step(network, optimizer, batch, recipe=one, epoch=0)  # ends with a device sync
        seconds.append(time.perf_counter() - started)
    tensors = [*network.state_dict().values(), *_tensors(optimizer.state_dict())]
    return Probe(min(seconds), sum(tensor.nbytes for tensor in tensors))


def _noise(recipe: config.Recipe, device: torch.device, classes: int) -> Batch:
    each, size = recipe.batch.visible + recipe.batch.infrared, recipe.batch.size
    shape = (size, 3, recipe.data.height, recipe.data.width)
    numbers = torch.arange(size)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device),
        labels=numbers // each % classes,
        infrared=numbers % each >= recipe.batch.visible,
        slots=numbers,
        rows=numbers,
    )


def _tensors(state: Any) -> Sequence[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for item in inner for tensor in _tensors(item)]
