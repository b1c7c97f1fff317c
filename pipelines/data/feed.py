"""Training batches from a prepared data set: planned by ``icre.data.plan``, decoded by Ray tasks or kept decoded.

Each training process plans its own reads, one epoch ahead. A "chunk" is its share of a few successive global batches.
One stateless task decodes a chunk on any node with a free CPU, and the result is read in place, without a copy. A fixed
number of tasks is in flight, which bounds memory. There is no coordinator between workers, no shuffle and no barrier;
to start at step s is to plan from s. With ``train.cache=decoded`` there are no tasks: batches are gathered from the
node's pixel file.

These are tasks rather than a ``ray.data.Dataset`` because the data set's executor is a Python thread of the consuming
process, which spins while the consumer is the slower side: see docs/architecture.md.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from icre import config
from icre.data import images, plan
from icre.data.plan import Rows
from icre.errors import IcreError
from icre.training.step import Batch
from pipelines.data.caches import DecodedCache
from pipelines.data.decoding import decode_rows, encoded
from pipelines.data.prepared import PreparedData

CHUNK_BYTES = 64 * 2**20
"""Target size of a decoded chunk: large enough to hide the cost of a task, small enough to have several in memory."""
GATHERED_AHEAD = 2
"""Batches gathered from decoded pixels ahead of use."""


class Planned(NamedTuple):
    """One worker's part of one global batch."""

    step_in_epoch: int
    rows: Rows


@dataclass(frozen=True)
class Feed:
    """One worker's stream of batches."""

    data: PreparedData
    recipe: config.Recipe
    steps_per_epoch: int
    rank: int
    world_size: int

    @property
    def rows_per_step(self) -> int:
        """Images of this worker in each global batch."""
        batch = self.recipe.batch
        return plan.cut_sizes(batch.identities, self.world_size)[self.rank] * (batch.visible + batch.infrared)

    @property
    def steps_per_chunk(self) -> int:
        """Successive steps decoded by one task."""
        step_bytes = self.rows_per_step * self.recipe.data.height * self.recipe.data.width * 3
        return max(1, min(8, CHUNK_BYTES // step_bytes))

    def batches(self, *, start: int, stop: int, device: torch.device) -> Iterator[Batch]:
        """Batches of the global steps ``start`` (included) to ``stop`` (not included), in order.

        On a CPU the images of a batch are Ray's own memory and must not be written to.
        """
        planned = self._planned(start, stop)
        decoded = self.recipe.train.cache == "decoded"
        for step, pixels in self._gathered(planned) if decoded else self._decoded(planned):
            yield self._batch(step, pixels, device)

    def _planned(self, start: int, stop: int) -> Iterator[Planned]:
        per_epoch, index = self.steps_per_epoch, self.data.training_index()
        with ThreadPoolExecutor(1) as pool:  # plans the next epoch during the current one
            upcoming = pool.submit(self._plan, index, start // per_epoch)
            for epoch in range(start // per_epoch, -(-stop // per_epoch)):
                rows, upcoming = upcoming.result(), pool.submit(self._plan, index, epoch + 1)
                first = epoch * per_epoch
                for step in range(max(start, first), min(stop, first + per_epoch)):
                    yield Planned(step - first, rows[step - first].ravel())

    def _plan(self, index: plan.TrainingIndex, epoch: int) -> Rows:
        batch = self.recipe.batch
        whole = plan.plan_epoch(
            index,
            identities=batch.identities,
            visible=batch.visible,
            infrared=batch.infrared,
            steps=self.steps_per_epoch,
            seed=self.recipe.seed,
            epoch=epoch,
        )
        return plan.cut(whole, rank=self.rank, world_size=self.world_size).copy()  # frees the other workers' rows

    def _decoded(self, planned: Iterator[Planned]) -> Iterator[tuple[Planned, np.ndarray]]:
        train, size = self.recipe.train, self.recipe.data
        decode = decode_rows.options(num_cpus=train.loader_cpus, scheduling_strategy="SPREAD")

        def begun() -> Iterator[tuple[list[Planned], Any]]:
            while chunk := list(islice(planned, self.steps_per_chunk)):
                rows = np.concatenate([step.rows for step in chunk])
                yield chunk, decode.remote(self.data.location.url, self.data.hash, rows, size.height, size.width)

        upcoming = begun()
        in_flight = deque(islice(upcoming, train.loaders))
        while in_flight:
            chunk, task = in_flight.popleft()
            pixels = _result(task).reshape(len(chunk), self.rows_per_step, size.height, size.width, 3)
            in_flight.extend(islice(upcoming, 1))  # keeps the processes decoding while these batches are trained on
            yield from zip(chunk, pixels, strict=True)

    def _gathered(self, planned: Iterator[Planned]) -> Iterator[tuple[Planned, np.ndarray]]:
        size = self.recipe.data
        rows = np.flatnonzero(self.data.targets >= 0)
        cache = DecodedCache(self.data, rows, height=size.height, width=size.width, threads=self.recipe.train.loaders)
        with ThreadPoolExecutor(1) as pool:
            ahead = deque((step, pool.submit(cache.take, step.rows)) for step in islice(planned, GATHERED_AHEAD))
            while ahead:
                step, pixels = ahead.popleft()
                ahead.extend((step, pool.submit(cache.take, step.rows)) for step in islice(planned, 1))
                yield step, pixels.result()

    def _batch(self, step: Planned, pixels: np.ndarray, device: torch.device) -> Batch:
        batch, rows = self.recipe.batch, step.rows
        images_each = batch.visible + batch.infrared
        slots = plan.slots(
            [step.step_in_epoch],
            identities=batch.identities,
            images=images_each,
            rank=self.rank,
            world_size=self.world_size,
        )
        with warnings.catch_warnings():
            # torch warns about Ray's read-only memory; see `batches`.
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
            on_cpu = torch.from_numpy(pixels)
        return Batch(
            images=on_cpu.permute(0, 3, 1, 2).to(device, non_blocking=True),
            labels=torch.from_numpy(self.data.targets[rows]),
            infrared=torch.arange(len(rows)) % images_each >= batch.visible,
            slots=torch.from_numpy(slots.ravel()),
            rows=torch.from_numpy(rows),
        )


def load_images(data: PreparedData, rows: list[int], *, height: int, width: int, threads: int = 1) -> torch.Tensor:
    """(len(rows), 3, H, W) uint8, decoded in this process; for sets that fit in memory, such as validation."""
    cache = encoded(data.location.url, data.hash)
    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(lambda row: images.decode(cache[row], height=height, width=width), rows))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def _result(task: Any) -> np.ndarray:
    try:
        pixels: np.ndarray = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IcreError):
            raise error.cause from error
        raise
    return pixels
