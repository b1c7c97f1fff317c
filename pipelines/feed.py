"""Training batches out of a prepared data set: planned by ``icre.data.plan``, decoded by Ray tasks.

A worker's cut of a few successive global batches is a "chunk". A chunk is decoded by one stateless task on any node
with a free CPU; the worker slices it into batches. A fixed number of tasks is in flight, which bounds the memory; there
is no coordinator between workers, no shuffle and no barrier, and starting at step s is starting at s's chunk.

These are tasks and not a ``ray.data.Dataset`` because the data set's executor is a Python thread of the process that
consumes it, and one that turns without a pause while the consumer is the slower side: see docs/design.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch

from icre import config
from icre.data import images, plan
from icre.errors import IcreError
from icre.training.step import Batch
from pipelines.prepared import ImageCache, PreparedData
from pipelines.storage import Storage

CHUNK_BYTES = 32 * 2**20
"""Decoded size aimed at: large enough to hide the cost of a task, small enough to have several in memory."""


@dataclass(frozen=True)
class Feed:
    """One worker's stream of batches. Hashable and small, so that it travels with every task."""

    location: str
    recipe: config.Recipe
    steps_per_epoch: int
    rank: int
    world_size: int

    @property
    def rows_per_step(self) -> int:
        """Images of this worker in each global batch."""
        return self.recipe.batch.size // self.world_size

    @property
    def steps_per_chunk(self) -> int:
        """Successive steps decoded by one task."""
        step_bytes = self.rows_per_step * self.recipe.data.height * self.recipe.data.width * 3
        return max(1, min(8, self.steps_per_epoch, CHUNK_BYTES // step_bytes))

    def batches(self, *, start: int, stop: int, device: torch.device) -> Iterator[Batch]:
        """Batches of the global steps ``start`` (included) to ``stop`` (not included), in order."""
        if start >= stop:
            return
        size = self.steps_per_chunk
        expected = start
        for chunk in self._chunks(first=start // size, stop=-(-stop // size)):
            for position, step in enumerate(chunk["step"].tolist()):
                if not start <= step < stop:
                    continue
                if step != expected:
                    raise RuntimeError(f"feed out of order: step {step} arrived where {expected} was due")
                expected += 1
                yield self._batch({name: column[position] for name, column in chunk.items()}, device)
        if expected != stop:
            raise RuntimeError(f"feed ended at step {expected} of {stop}")

    def load(self, chunk: int) -> dict[str, np.ndarray]:
        """Decode one chunk: columns of shape (steps, rows, ...), for steps of all epochs counted through."""
        steps = np.arange(chunk * self.steps_per_chunk, (chunk + 1) * self.steps_per_chunk)
        per_epoch = self.steps_per_epoch
        rows = np.stack([self._rows(int(s // per_epoch), int(s % per_epoch)) for s in steps])
        shape = (len(steps), self.rows_per_step, self.recipe.data.height, self.recipe.data.width, 3)
        pixels = np.empty(shape, np.uint8)
        cache = _cache(self.location)
        for out, row in zip(pixels.reshape(-1, *shape[2:]), rows.ravel().tolist(), strict=True):
            out[:] = images.decode(cache[row])
        slots = plan.slots(
            steps % per_epoch,
            identities=self.recipe.batch.identities,
            images=self.recipe.batch.visible + self.recipe.batch.infrared,
            rank=self.rank,
            world_size=self.world_size,
        )
        return {"step": steps, "images": pixels, "rows": rows, "slots": slots.reshape(rows.shape)}

    def _chunks(self, *, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        train = self.recipe.train
        load = _load.options(num_cpus=train.loader_cpus, scheduling_strategy="SPREAD")
        feed = ray.put(self)
        upcoming = iter(range(first, stop))
        in_flight = deque(load.remote(feed, chunk) for chunk in islice(upcoming, train.loaders))
        while in_flight:
            oldest = in_flight.popleft()
            in_flight.extend(load.remote(feed, chunk) for chunk in islice(upcoming, 1))
            try:
                yield ray.get(oldest)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, IcreError):
                    raise error.cause from error
                raise

    def _rows(self, epoch: int, step: int) -> np.ndarray:
        whole = _epoch_plan(self.location, self.recipe, self.steps_per_epoch, epoch)
        cut = plan.cut(whole[step : step + 1], rank=self.rank, world_size=self.world_size)
        return cut.reshape(-1)

    def _batch(self, chunk: dict[str, np.ndarray], device: torch.device) -> Batch:
        rows = torch.tensor(chunk["rows"])
        k = self.recipe.batch
        infrared = torch.arange(len(rows)) % (k.visible + k.infrared) >= k.visible
        labels = torch.from_numpy(_label_of_row(self.location)[chunk["rows"]])
        # Ray's blocks are read-only; the copy also gives the channel order that convolutions want.
        pixels = torch.tensor(chunk["images"]).permute(0, 3, 1, 2)
        return Batch(
            images=pixels.to(device, non_blocking=True),
            labels=labels,
            infrared=infrared,
            slots=torch.tensor(chunk["slots"]),
            rows=rows,
        )


@ray.remote
def _load(feed: Feed, chunk: int) -> dict[str, np.ndarray]:
    return feed.load(chunk)


def load_images(data: PreparedData, rows: list[int], *, threads: int = 1) -> torch.Tensor:
    """(len(rows), 3, H, W) uint8, decoded here; for sets that fit in memory, such as validation."""
    cache = _cache(data.location.url)
    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(lambda row: images.decode(cache[row]), rows))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


# One process serves many chunks: what they share is read once a process.
@lru_cache(maxsize=2)
def _data(location: str) -> PreparedData:
    return PreparedData.open(Storage(location))


@lru_cache(maxsize=2)
def _cache(location: str) -> ImageCache:
    return ImageCache(_data(location))


@lru_cache(maxsize=2)
def _index(location: str) -> plan.TrainingIndex:
    return _data(location).training_index()


@lru_cache(maxsize=2)
def _label_of_row(location: str) -> np.ndarray:
    data = _data(location)
    label_of = {pid: label for label, pid in enumerate(data.classes)}
    return np.array([label_of.get(pid, -1) for pid in data.labels["identity"].to_pylist()], np.int64)


@lru_cache(maxsize=4)
def _epoch_plan(location: str, recipe: config.Recipe, steps: int, epoch: int) -> Any:
    batch = recipe.batch
    return plan.plan_epoch(
        _index(location),
        identities=batch.identities,
        visible=batch.visible,
        infrared=batch.infrared,
        steps=steps,
        seed=recipe.seed,
        epoch=epoch,
    )
