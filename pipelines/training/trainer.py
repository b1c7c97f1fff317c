"""The state of one training process: network, optimiser, progress, metrics."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from icre import config
from icre.errors import NotFiniteError
from icre.model.network import ICRENetwork
from icre.training import checkpoint, compute, distributed
from icre.training.checkpoint import Progress, Snapshot
from icre.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from icre.training.step import Batch, train_step
from pipelines.data.prepared import PreparedData
from pipelines.runs.networks import initial_network
from pipelines.runs.run import Run
from pipelines.training.validation import validate

Row = dict[str, Any]
"""A line of metrics.jsonl."""


class Trainer:
    """One training process. Between steps all processes hold the same network and optimiser state."""

    def __init__(
        self,
        recipe: config.Recipe,
        run: Run,
        data: PreparedData,
        network: ICRENetwork,
        *,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.run, self.data, self.network, self.device = recipe, run, data, network, device
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = recipe.train.epochs * steps_per_epoch
        self.optimizer = build_optimizer(network, recipe.optimizer)
        self.progress = Progress(step=0, best_metric=None, best_step=None)
        self.metrics: list[Row] = []
        self.model: nn.Module = network
        self._told = 0

    @classmethod
    def start(
        cls,
        recipe: config.Recipe,
        run: Run,
        data: PreparedData,
        *,
        steps_per_epoch: int,
        device: torch.device,
        warn: Callable[[str], None],
    ) -> Trainer:
        """Build everything, load the newest checkpoint if there is one, and join the process group."""
        network = initial_network(recipe, classes=len(data.classes))
        if recipe.train.sync_batch_norm and distributed.world_size() > 1:
            distributed.synchronise_batch_norm(network)
        network.to(device)
        compute.arrange(network, recipe.compute)
        worker = cls(recipe, run, data, network, steps_per_epoch=steps_per_epoch, device=device)
        worker._resume(warn)
        if recipe.compute.compile:
            compute.compile_network(network, device)
        if distributed.world_size() > 1:
            # Without `device_ids` the modality mask stays on the CPU, where reading it needs no GPU sync.
            worker.model = DistributedDataParallel(network, forward_sync_buffers=False)
        return worker

    @property
    def is_epoch_over(self) -> bool:
        """Whether the last step completed an epoch."""
        return self.progress.step % self.steps_per_epoch == 0

    def step(self, batch: Batch) -> Row:
        """Take one optimiser step and return its metrics row, without timings.

        Raises NotFiniteError when more than ``train.max_skipped_steps`` of the run had no finite loss or gradient.
        """
        epoch, step_in_epoch = divmod(self.progress.step, self.steps_per_epoch)
        # Batches, augmentation and weights have separate generators. Global generators, which libraries may use, are
        # seeded by the step, so checkpoints need no generator state.
        _seed_everything(self.recipe.seed, self.progress.step)
        fraction = step_in_epoch / self.steps_per_epoch
        set_learning_rate(self.optimizer, learning_rate_factor(epoch + fraction, self.recipe.schedule))
        self.model.train()
        kept = [buffer.clone() for buffer in self.network.buffers()] if self.recipe.train.max_skipped_steps else []
        self.progress = replace(self.progress, step=self.progress.step + 1)
        row: Row = {"kind": "step", "step": self.progress.step, "epoch": epoch}
        try:
            terms = train_step(self.model, self.optimizer, batch, recipe=self.recipe, epoch=epoch)
        except NotFiniteError as error:
            self._skip(error, kept)
            return row | {"kind": "skipped", "reason": error.message}
        return row | {"lr": self.optimizer.param_groups[-1]["lr"], **terms}

    def record(self, row: Row, *, seconds: float, waited: float) -> None:
        """Store a metrics row; ``seconds`` include ``waited``, the time spent waiting for the batch."""
        times = {"time": time.time(), "images_per_s": self.recipe.batch.size / seconds, "data_wait_s": waited}
        self.metrics.append(row | times)

    def end_epoch(self) -> bool:
        """Validate if due; returns whether this is the best epoch so far, which it is without validation identities."""
        epoch = self.progress.step // self.steps_per_epoch - 1
        if self.progress.step < self.total_steps and (epoch + 1) % self.recipe.train.validate_every:
            return False
        found = validate(self.network, self.data, self.recipe, self.device)
        if found is None:
            return True
        self.metrics.append(
            {"kind": "validation", "step": self.progress.step, "epoch": epoch, "time": time.time(), **found}
        )
        metric = found[self.recipe.checkpoints.best]
        if self.progress.best_metric is not None and metric <= self.progress.best_metric:
            return False
        self.progress = replace(self.progress, best_metric=metric, best_step=self.progress.step)
        return True

    def new_rows(self) -> list[Row]:
        """Metrics rows since the last call."""
        rows, self._told = self.metrics[self._told :], len(self.metrics)
        return rows

    def snapshot(self) -> Snapshot:
        """The content of a checkpoint."""
        return checkpoint.take_snapshot(
            network=self.network,
            optimizer=self.optimizer,
            progress=self.progress,
            classes=len(self.data.classes),
        )

    def state(self, eta_s: float | None) -> dict[str, Any]:
        """State for the progress line: averages over the newest steps."""
        steps = [row for row in self.metrics[-50:] if row["kind"] in ("step", "skipped")]
        seconds = sum(self.recipe.batch.size / row["images_per_s"] for row in steps)
        validations = [row for row in self.metrics if row["kind"] == "validation"]
        return {
            "epoch": steps[-1]["epoch"],
            "epochs": self.recipe.train.epochs,
            "step": self.progress.step,
            "steps": self.total_steps,
            "terms": {k: v for k, v in steps[-1].items() if k == "loss" or k.startswith(("id", "icg"))},
            "images_per_s": len(steps) * self.recipe.batch.size / seconds,
            "data_wait_share": sum(row["data_wait_s"] for row in steps) / seconds,
            "val_mAP": validations[-1]["mAP"] if validations else None,
            "eta_s": eta_s,
        }

    def _skip(self, error: NotFiniteError, buffers: list[torch.Tensor]) -> None:
        skipped = sum(row["kind"] == "skipped" for row in self.metrics)
        if skipped >= self.recipe.train.max_skipped_steps:
            raise NotFiniteError(f"step {self.progress.step}: {error.message}", hint=error.hint) from error
        # Batch-norm statistics already include the step's activations, which may not be finite.
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _resume(self, warn: Callable[[str], None]) -> None:
        with self.run.checkpoints.newest(warn) as found:
            if found is None:
                return
            folder, meta = found
            checkpoint.load_network(self.network, folder)
            checkpoint.load_optimizer(self.optimizer, folder)
        self.progress = checkpoint.progress_of(meta)
        self.metrics = [row for row in self.run.metrics() if row["step"] <= self.progress.step]
        self._told = len(self.metrics)


def _seed_everything(seed: int, step: int) -> None:
    drawn = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
