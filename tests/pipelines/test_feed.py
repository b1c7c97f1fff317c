from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from icre.data import plan
from icre.data.images import decode
from icre.errors import DataError
from icre.training.step import Batch
from pipelines.data import caches, ingest
from pipelines.data.feed import Feed, load_images
from pipelines.data.prepared import PreparedData
from pipelines.training import launch

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(180)]

STEPS = 5  # does not divide a chunk of eight steps, so chunks cross epochs
CPU = torch.device("cpu")


@pytest.fixture(params=["encoded", "decoded"])
def prepared(request: Any, recipes: Any) -> tuple[Any, PreparedData]:
    recipe = recipes("train.epochs=3", f"train.steps_per_epoch={STEPS}", f"train.cache={request.param}")
    return recipe, ingest.prepare(recipe)[0]


def planned_rows(recipe: Any, data: PreparedData, step: int) -> np.ndarray:
    """(P, K) of the whole global batch."""
    batch = recipe.batch
    whole = plan.plan_epoch(
        data.training_index(),
        identities=batch.identities,
        visible=batch.visible,
        infrared=batch.infrared,
        steps=STEPS,
        seed=recipe.seed,
        epoch=step // STEPS,
    )
    return whole[step % STEPS]


def fed(recipe: Any, data: PreparedData, rank: int, world: int, start: int = 0) -> list[Batch]:
    return list(Feed(data, recipe, STEPS, rank, world).batches(start=start, stop=3 * STEPS, device=CPU))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_any_number_of_workers_gets_the_planned_batches_with_the_right_pixels_and_labels(
    prepared: Any, world: int
) -> None:
    recipe, data = prepared
    pids = data.labels["identity"].to_pylist()
    modality = data.labels["modality"].to_pylist()
    size = {"height": recipe.data.height, "width": recipe.data.width}
    workers = [fed(recipe, data, rank, world) for rank in range(world)]
    for step in range(3 * STEPS):
        whole = planned_rows(recipe, data, step)
        for rank, batches in enumerate(workers):
            batch = batches[step]
            rows = whole[rank::world].ravel().tolist()
            assert batch.rows.tolist() == rows
            assert [data.classes[label] for label in batch.labels.tolist()] == [pids[row] for row in rows]
            assert batch.infrared.tolist() == [modality[row] == "infrared" for row in rows]
            pixels = np.stack([decode(data.image(row), **size) for row in rows])
            assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert {len(batches) for batches in workers} == {3 * STEPS}


def test_images_stored_in_their_own_size_serve_any_training_size(recipes: Any, synthetic_images: Path) -> None:
    recipe = recipes("data.store=original", "data.name=own", "data.height=48", "train.epochs=3", "train.workers=2")
    data, _ = ingest.prepare(recipe)
    launch.start(recipe, "own")  # refuses sizes that were not prepared
    paths = data.labels_and_paths["path"].to_pylist()
    batch = fed(recipe, data, 0, 1)[0]
    for pixels, row in zip(batch.images, batch.rows.tolist(), strict=True):
        with Image.open(synthetic_images / paths[row]) as image:
            assert image.size == (32, 64)
            expected = np.asarray(image.convert("RGB").resize((32, 48), Image.Resampling.BICUBIC))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_a_set_that_was_prepared_anew_is_read_anew_and_not_under_a_training(
    recipes: Any, synthetic_images: Path, tmp_path: Path
) -> None:
    images = tmp_path / "changing"
    shutil.copytree(synthetic_images, images)
    recipe = recipes(f"data.root={images}", "train.epochs=3")
    before, _ = ingest.prepare(recipe)
    assert len(fed(recipe, before, 0, 1)) == 3 * STEPS
    for path in images.rglob("*.jpg"):
        with Image.open(path) as image:
            changed = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        changed.save(path, quality=95)
    after, _ = ingest.prepare(recipe)
    size = {"height": recipe.data.height, "width": recipe.data.width}
    batch = fed(recipe, after, 0, 1)[0]
    pixels = np.stack([decode(after.image(row), **size) for row in batch.rows.tolist()])
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels)
    # A process that starts now would find other images than the training began with.
    with pytest.raises(DataError, match="prepared anew"):
        load_images(replace(after, manifest=before.manifest), [0], **size)


def test_slots_number_the_samples_of_an_epoch_once_over_all_workers(prepared: Any) -> None:
    recipe, data = prepared
    epoch = [fed(recipe, data, rank, 2)[STEPS : 2 * STEPS] for rank in (0, 1)]
    slots = [slot for batches in epoch for batch in batches for slot in batch.slots.tolist()]
    assert sorted(slots) == list(range(STEPS * recipe.batch.size))


def test_a_restart_in_mid_epoch_goes_on_with_the_very_next_batch(prepared: Any) -> None:
    recipe, data = prepared
    whole = fed(recipe, data, 0, 1)
    for start in (3, 8, 11):
        rest = fed(recipe, data, 0, 1, start)
        assert len(rest) == 3 * STEPS - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert fed(recipe, data, 0, 1, 3 * STEPS) == []


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "cache.npy"
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        caches.made_once(path, 2**60, lambda partial: partial.write_bytes(b"x"))
    assert caught.value.hint and "ICRE_CACHE" in caught.value.hint
    assert not path.exists()


def test_a_cache_whose_writing_broke_off_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "cache.npy"

    def break_off(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        caches.made_once(path, 8, break_off)
    caches.made_once(path, 8, lambda partial: partial.write_bytes(b"whole"))
    caches.made_once(path, 8, lambda partial: partial.write_bytes(b"again"))
    assert path.read_bytes() == b"whole"
