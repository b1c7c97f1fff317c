"""What each training worker does, from the first batch to the last checkpoint."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from icre import config
from icre.data.augmentation import normalise
from icre.errors import TrainingError
from icre.evaluation import FolderProtocol, run_protocol
from icre.model.network import ICRENetwork
from icre.training import checkpoint, compute, distributed
from icre.training.checkpoint import Progress
from icre.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from icre.training.step import train_step
from pipelines.feed import Feed, load_images
from pipelines.networks import initial_network
from pipelines.prepared import PreparedData
from pipelines.progress import Rate
from pipelines.runs import Run
from pipelines.storage import Storage

POST_INTERVAL_S = 0.5


class Job(TypedDict):
    """What the driver hands to every worker: plain and small."""

    recipe: dict[str, Any]
    run: str
    data: str
    steps_per_epoch: int
    board: Any


def train_worker(settings: dict[Any, Any]) -> None:
    """Train from the run's last checkpoint, or from the start, to the last epoch. settings: a :class:`Job`.

    A TrainingError happens on every worker at the same step and would happen again: it is handed to the driver
    instead of being raised, because Ray Train answers an exception by starting over.
    """
    job = cast(Job, settings)
    try:
        _train(job)
    except TrainingError as error:
        ray.get(job["board"].fail.remote(error))


def _train(job: Job) -> None:
    recipe = config.parse_recipe(job["recipe"], where="the driver")
    data = PreparedData.open(Storage(job["data"]))
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    _seed_everything(recipe.seed)
    torch.set_num_threads(max(1, int(recipe.train.cpus_per_worker)))

    worker = _Worker.start(recipe, Run(Storage(job["run"])), data, rank=rank, device=device)
    feed = Feed(job["data"], recipe, job["steps_per_epoch"], rank, world_size)
    total = recipe.train.epochs * job["steps_per_epoch"]
    rate = Rate(step=worker.progress.step, total=total)
    asked = posted = time.monotonic()
    for batch in feed.batches(start=worker.progress.step, stop=total, device=device):
        received = time.monotonic()
        epoch, step_in_epoch = divmod(worker.progress.step, job["steps_per_epoch"])
        terms = worker.step(batch, epoch, step_in_epoch / job["steps_per_epoch"])
        finished = time.monotonic()
        worker.record_step(terms, epoch, seconds=finished - asked, waited=received - asked)
        if rank == 0 and finished - posted > POST_INTERVAL_S:
            posted = finished
            job["board"].post.remote(worker.state(epoch, total, rate.eta_s(worker.progress.step)))
        if worker.progress.step % job["steps_per_epoch"] == 0:
            worker.end_epoch(epoch, last=worker.progress.step == total)
        asked = time.monotonic()


class _Worker:
    """The mutable state of one training process."""

    def __init__(
        self,
        recipe: config.Recipe,
        run: Run,
        data: PreparedData,
        network: ICRENetwork,
        optimizer: torch.optim.Optimizer,
        *,
        rank: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.run, self.data = recipe, run, data
        self.network, self.optimizer = network, optimizer
        self.rank, self.device = rank, device
        self.scaler = compute.gradient_scaler(recipe.compute, device)
        self.progress = Progress(step=0, best_metric=None, best_step=None)
        self.metrics: list[dict[str, Any]] = []
        self.model: nn.Module = network

    @classmethod
    def start(cls, recipe: config.Recipe, run: Run, data: PreparedData, *, rank: int, device: torch.device) -> _Worker:
        """Build everything, load the newest checkpoint if the run has one, and join the process group."""
        network = initial_network(recipe, classes=len(data.classes))
        if recipe.train.sync_batch_norm and distributed.world_size() > 1:
            distributed.synchronise_batch_norm(network)
        network.to(device)
        compute.arrange(network, recipe.compute)
        optimizer = build_optimizer(network, recipe.optimizer, precision=recipe.compute.precision)
        worker = cls(recipe, run, data, network, optimizer, rank=rank, device=device)
        worker._resume()
        if recipe.compute.compile:
            compute.compile_network(network, device)
        if distributed.world_size() > 1:
            # Without `device_ids` the mask of the modalities stays on the CPU, where a look at it waits for no GPU.
            worker.model = DistributedDataParallel(network, forward_sync_buffers=False)
        return worker

    def step(self, batch: Any, epoch: int, fraction: float) -> dict[str, float]:
        """One optimiser step; the loss terms."""
        self.model.train()
        set_learning_rate(self.optimizer, learning_rate_factor(epoch + fraction, self.recipe.schedule))
        terms = train_step(self.model, self.optimizer, batch, recipe=self.recipe, epoch=epoch, scaler=self.scaler)
        self.progress = replace(self.progress, step=self.progress.step + 1)
        return terms

    def record_step(self, terms: dict[str, float], epoch: int, *, seconds: float, waited: float) -> None:
        """Keep one line of metrics.jsonl; seconds include ``waited``, the time until the batch was there."""
        self.metrics.append(
            {
                "kind": "step",
                "step": self.progress.step,
                "epoch": epoch,
                "lr": self.optimizer.param_groups[-1]["lr"],
                **terms,
                "images_per_s": self.recipe.batch.size / seconds,
                "data_wait_s": waited,
            }
        )

    def end_epoch(self, epoch: int, *, last: bool) -> None:
        """Validate when it is due, then write a checkpoint and let ``last`` and, if so, ``best`` point to it."""
        improved = False
        if last or (epoch + 1) % self.recipe.train.validate_every == 0:
            improved = self._validate(epoch)
        folder = f"step-{self.progress.step:08d}"
        metrics = {"step": self.progress.step, "epoch": epoch}
        if self.rank != 0:
            ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=folder)
            return
        with tempfile.TemporaryDirectory(prefix="icre-checkpoint-") as scratch:
            checkpoint.write_checkpoint(
                Path(scratch),
                network=self.network,
                optimizer=self.optimizer,
                progress=self.progress,
                classes=len(self.data.classes),
                scaler=self.scaler,
            )
            saved = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report(metrics, checkpoint=saved, checkpoint_dir_name=folder)
        # Lines of steps that a checkpoint does not hold would come twice after a restart: write both together.
        self.run.write_metrics(self.metrics)
        before = self.run.reference("last")
        self.run.point("last", folder)
        if improved:
            self.run.point("best", folder)
        self.run.remove_checkpoints(but={before, folder, self.run.reference("best")})

    def state(self, epoch: int, total: int, eta_s: float | None) -> dict[str, Any]:
        """For the progress line: averages over the newest steps."""
        steps = [row for row in self.metrics[-50:] if row["kind"] == "step"]
        seconds = sum(self.recipe.batch.size / row["images_per_s"] for row in steps)
        validations = [row for row in self.metrics if row["kind"] == "validation"]
        terms = {k: v for k, v in steps[-1].items() if k == "loss" or k.startswith(("id", "icg"))}
        return {
            "epoch": epoch,
            "epochs": self.recipe.train.epochs,
            "step": self.progress.step,
            "steps": total,
            "terms": terms,
            "images_per_s": len(steps) * self.recipe.batch.size / seconds,
            "data_wait_share": sum(row["data_wait_s"] for row in steps) / seconds,
            "val_mAP": validations[-1]["mAP"] if validations else None,
            "eta_s": eta_s,
        }

    def _resume(self) -> None:
        with self.run.newest_checkpoint() as found:
            if found is None:
                return
            folder, meta = found
            checkpoint.load_network(self.network, folder)
            checkpoint.load_optimizer(self.optimizer, folder)
            checkpoint.load_scaler(self.scaler, meta)
        self.progress = checkpoint.progress_of(meta)
        self.metrics = [row for row in self.run.metrics() if row["step"] <= self.progress.step]

    def _validate(self, epoch: int) -> bool:
        """Rank the held-out training identities; whether mAP, mean of both directions, is the best so far."""
        rows = self.data.rows_of("val")
        if not rows:
            return True
        with compute.uncompiled(self.recipe.compute):
            features = _embed(self.network, self.data, rows, self.recipe.evaluation.batch_size, self.device)
        labels = self.data.labels.take(rows)
        settings = self.recipe.evaluation
        results = run_protocol(
            features,
            labels["identity"].to_pylist(),
            labels["camera"].to_pylist(),
            labels["modality"].to_pylist(),
            labels["path"].to_pylist(),
            FolderProtocol(
                trials=settings.trials,
                shots=settings.shots,
                camera_rule=settings.camera_rule,
                cmc=settings.cmc,
                seed=self.recipe.seed,
            ),
        )
        means = [result.mean() for result in results.values()]
        row = {key: float(np.mean([mean[key] for mean in means])) for key in ("rank1", "mAP", "mINP")}
        self.metrics.append({"kind": "validation", "step": self.progress.step, "epoch": epoch, **row})
        if self.progress.best_metric is not None and row["mAP"] <= self.progress.best_metric:
            return False
        self.progress = replace(self.progress, best_metric=row["mAP"], best_step=self.progress.step)
        return True


def _embed(
    network: ICRENetwork, data: PreparedData, rows: list[int], batch_size: int, device: torch.device
) -> torch.Tensor:
    """(len(rows), D) retrieval features; each worker embeds every W-th row, all workers get all of them."""
    rank = torch.distributed.get_rank() if distributed.world_size() > 1 else 0
    world = distributed.world_size()
    # Padded with repeats so that every worker gathers the same number; the repeats are cut off again below.
    padded = rows + rows[: -len(rows) % world]
    mine = padded[rank::world]
    infrared = [m == "infrared" for m in data.labels["modality"].take(mine).to_pylist()]
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            chunk = slice(start, start + batch_size)
            pixels = normalise(load_images(data, mine[chunk]).to(device))
            parts.append(network.embed(pixels, torch.tensor(infrared[chunk], device=device)))
    gathered = distributed.gather(torch.cat(parts)).cpu()
    features = gathered.view(world, -1, gathered.shape[1]).transpose(0, 1).flatten(0, 1)[: len(rows)]
    if len(features) != len(rows):
        raise TrainingError(f"{len(features)} features for {len(rows)} validation images")
    return features


def _seed_everything(seed: int) -> None:
    # Batches, augmentation and weights have generators of their own; this is for whatever a library draws.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
