"""Before a sweep starts: which trainings, and what they will take."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from icre import config
from icre.errors import ConfigError
from icre.search import check_space, points
from icre.training import compute
from icre.training.optimizer import build_optimizer
from icre.training.step import Batch, train_step
from pipelines.networks import initial_network
from pipelines.tuning.trial import Trial

START_S = 30.0
"""Of Ray Train, for each training, on the machines this was measured on."""
PROBE_STEPS = 3
LONG_STEP_S = 5.0
"""A step that takes longer says enough by itself."""


def listed_trials(recipe: config.Recipe, name: str) -> list[Trial]:
    """All trainings of a sweep whose points are known before it starts; none for tpe and pbt, which choose on the way.

    Seed by seed, so that an early stop leaves whole tables of fewer seeds. Raises ConfigError with every key and value
    of the space that is not one of the recipe's, and with every combination that breaks a rule between keys.
    """
    check_space(recipe)
    if recipe.tune.method == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "tune.method=tpe needs Optuna, which is not installed", hint="pip install 'icre[tune]', or another method"
        )
    if recipe.tune.method in ("tpe", "pbt"):
        return []
    found = points(recipe)
    several = recipe.tune.seeds > 1
    trials: list[Trial] = []
    problems: dict[int, str] = {}
    for seed in range(recipe.seed, recipe.seed + recipe.tune.seeds):
        for point in found:
            run = f"{name}-{point.number:04d}" + (f"-seed{seed}" if several else "")
            try:
                overrides = [*point.overrides, f"seed={seed}"]
                trials.append(Trial.of(recipe, run, overrides=overrides, labels=point.values))
            except ConfigError as error:
                problems.setdefault(point.number, f"{point.describe()}: {error.message}")
    if problems:
        raise ConfigError(
            "\n".join(problems.values()),
            hint="these combinations break a rule between keys; take one of the values out of tune.space",
        )
    return trials


@dataclass(frozen=True)
class Probe:
    """What a few steps of the recipe told."""

    step_s: float
    """Of one worker, without waiting for data or other workers."""
    checkpoint_bytes: int
    """Network and optimiser."""


def probe(recipe: config.Recipe, classes: int) -> Probe:
    """Take a few training steps on noise, as one worker would; on the GPU if the recipe's workers have one each."""
    torch.set_num_threads(max(1, int(recipe.train.cpus_per_worker)))
    device = torch.device("cuda" if recipe.train.gpus_per_worker else "cpu")
    workers, _ = recipe.train.worker_range
    cut = math.ceil(recipe.batch.identities / workers)
    network = initial_network(recipe, classes=classes).to(device).train()
    compute.arrange(network, recipe.compute)
    optimizer = build_optimizer(network, recipe.optimizer, precision=recipe.compute.precision)
    scaler = compute.gradient_scaler(recipe.compute, device)
    one = config.override(recipe, ["train.workers=1", f"batch.identities={cut}"], where="the probe")
    batch = _noise(one, device, classes)
    seconds: list[float] = []
    while len(seconds) < PROBE_STEPS and (not seconds or seconds[-1] < LONG_STEP_S):
        started = time.perf_counter()
        train_step(network, optimizer, batch, recipe=one, epoch=0, scaler=scaler)  # waits for the device at its end
        seconds.append(time.perf_counter() - started)
    tensors = [*network.state_dict().values(), *_tensors(optimizer.state_dict())]
    return Probe(min(seconds), sum(tensor.nbytes for tensor in tensors))


def describe(
    recipe: config.Recipe, *, trainings: int, unfinished: int, steps_per_epoch: int, concurrent: int, measured: Probe
) -> str:
    """The plan in a few lines: trainings, steps, hours, storage and, with prices, cost."""
    steps = recipe.train.epochs * steps_per_epoch
    workers, _ = recipe.train.worker_range
    each_h = (steps * measured.step_s + START_S) / 3600
    concurrent = min(concurrent, max(unfinished, 1))
    hours = math.ceil(unfinished / concurrent) * each_h
    kept = recipe.checkpoints.keep + 1 + (recipe.train.epochs // (recipe.checkpoints.keep_every or math.inf))
    most = "at most " if recipe.tune.method == "asha" else ""
    lines = [
        f"tune: {trainings} trainings, {unfinished} unfinished, {concurrent} at a time, {workers} worker(s) each",
        f"  {recipe.train.epochs} epochs x {steps_per_epoch} steps each; a step takes {measured.step_s:.2g} s by "
        "itself, without waiting for data or other workers",
        f"  {most}about {hours:.2g} hours, of which {START_S:.0f} s a training are Ray's start",
        f"  {most}{kept * unfinished * measured.checkpoint_bytes / 2**30:.2g} GiB of checkpoints",
    ]
    price = _price(recipe, trainings_h=unfinished * each_h * workers)
    lines += [f"  {most}about {price:.2f} in the currency of your prices"] if price is not None else []
    return "\n".join(lines)


def _price(recipe: config.Recipe, *, trainings_h: float) -> float | None:
    train, prices = recipe.train, recipe.tune
    if prices.cpu_hour_price is None and prices.gpu_hour_price is None:
        return None
    cpus = train.cpus_per_worker + train.loaders * train.loader_cpus
    return trainings_h * (cpus * (prices.cpu_hour_price or 0) + train.gpus_per_worker * (prices.gpu_hour_price or 0))


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
