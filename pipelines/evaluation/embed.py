"""Feature extraction for a split, by Ray Data or in this process: every image exactly once, with a count check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from icre import config
from icre.data import images
from icre.data.augmentation import normalise
from icre.data.records import SplitName
from icre.errors import IcreError
from pipelines.data.prepared import PreparedData
from pipelines.runs.networks import load_network
from pipelines.runtime.progress import progress


def embed(run_url: str, checkpoint: str, data: PreparedData, split: SplitName, recipe: config.Recipe) -> torch.Tensor:
    """(n, D) float32 retrieval features of ``data.rows_of(split)``, in that order, by a checkpoint of a run.

    The network takes images of the recipe's size; with ``evaluation.flip`` a feature is the normalised sum of those of
    the image and of its mirror image. Raises IcreError if the number of features is not that of the images.
    """
    wanted = data.labels_and_paths["path"].take(data.rows_of(split)).to_pylist()
    rows: list[dict[str, Any]] = []
    embedded = _by_ray_data if recipe.evaluation.workers else _here
    with progress("evaluate: features", len(wanted), "images") as advance:
        for block in embedded(run_url, checkpoint, data, split, recipe):
            rows += block
            advance(len(block))
    by_path = {row["path"]: np.frombuffer(row["feature"], np.float32) for row in rows}
    if len(rows) != len(wanted) or set(by_path) != set(wanted):
        raise IcreError(
            f"{len(rows)} features ({len(by_path)} different images) for {len(wanted)} images of split {split}",
            hint="an evaluation that loses or repeats images would print wrong numbers, so it stops; run it again",
        )
    return torch.from_numpy(np.stack([by_path[path] for path in wanted]))


Rows = list[dict[str, Any]]
"""Rows with a path and a feature each."""


def _by_ray_data(
    run_url: str, checkpoint: str, data: PreparedData, split: SplitName, recipe: config.Recipe
) -> Iterator[Rows]:
    import ray.data  # takes seconds, and evaluation in this process does not need it
    from ray.data.expressions import col

    from pipelines.data.fan_out import blocks_of

    settings = recipe.evaluation
    filesystem, _ = data.location.arrow()
    blocks = max(len(data.shard_paths), 2 * settings.workers)
    embedded = (
        ray.data.read_parquet(data.shard_paths, filesystem=filesystem, override_num_blocks=blocks)
        .select_columns(["image", "modality", "split"])
        .filter(expr=col("split") == split)
        .map_batches(
            _Embedder,
            fn_constructor_args=(run_url, checkpoint, recipe),
            batch_size=settings.batch_size,
            concurrency=(1, settings.workers),
            num_cpus=settings.cpus_per_worker,
            num_gpus=settings.gpus_per_worker,
        )
    )
    for block in blocks_of(embedded):
        yield block.to_pylist()


def _here(run_url: str, checkpoint: str, data: PreparedData, split: SplitName, recipe: config.Recipe) -> Iterator[Rows]:
    embedder, (filesystem, _) = _Embedder(run_url, checkpoint, recipe), data.location.arrow()
    for path in data.shard_paths:
        table = pq.read_table(path, columns=["image", "modality", "split"], filesystem=filesystem)
        for batch in table.filter(pc.field("split") == split).to_batches(recipe.evaluation.batch_size):
            columns = {name: np.array(batch[name].to_pylist(), object) for name in ("image", "modality")}
            found = embedder(columns)
            yield [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


class _Embedder:
    """One embedding process: loads the network and converts batches of rows to features."""

    def __init__(self, run_url: str, checkpoint: str, recipe: config.Recipe) -> None:
        if recipe.evaluation.workers:  # the command's own process keeps its threads
            torch.set_num_threads(max(1, int(recipe.evaluation.cpus_per_worker)))
        self.height, self.width, self.flip = recipe.data.height, recipe.data.width, recipe.evaluation.flip
        self.device = torch.device("cuda" if recipe.evaluation.gpus_per_worker else "cpu")
        self.network = load_network(run_url, checkpoint)[0].to(self.device).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        structs = batch["image"].tolist()
        pixels = np.empty((len(structs), self.height, self.width, 3), np.uint8)
        for out, struct in zip(pixels, structs, strict=True):
            images.decode(struct["bytes"], height=self.height, width=self.width, out=out)
        infrared = torch.from_numpy(batch["modality"] == "infrared")  # stays on the CPU: the stems read its values
        with torch.inference_mode():
            x = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))
            features = self.network.embed(x, infrared)
            if self.flip:
                features = torch.nn.functional.normalize(features + self.network.embed(x.flip(3), infrared), dim=1)
        stored = [feature.tobytes() for feature in features.float().cpu().numpy()]
        return {"path": [struct["path"] for struct in structs], "feature": stored}
