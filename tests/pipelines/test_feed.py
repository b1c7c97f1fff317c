from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from icre.data import plan
from icre.data.images import decode
from pipelines import ingest
from pipelines.feed import Feed
from pipelines.prepared import PreparedData

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(180)]

STEPS = 5  # does not divide a chunk of eight steps, so chunks cross epochs


@pytest.fixture
def prepared(recipes: Any) -> tuple[Any, PreparedData]:
    recipe = recipes("train.epochs=3", f"train.steps_per_epoch={STEPS}")
    return recipe, ingest.prepare(recipe)[0]


def expected_rows(recipe: Any, data: PreparedData, step: int, rank: int, world: int) -> np.ndarray:
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
    return whole[step % STEPS, rank::world].ravel()


def test_two_workers_together_get_the_planned_batches_with_the_right_pixels_and_labels(prepared: Any) -> None:
    recipe, data = prepared
    pids = data.labels["identity"].to_pylist()
    modality = data.labels["modality"].to_pylist()
    for rank in (0, 1):
        feed = Feed(data.location.url, recipe, STEPS, rank, 2)
        batches = list(feed.batches(start=0, stop=3 * STEPS, device=torch.device("cpu")))
        assert len(batches) == 3 * STEPS
        for step, batch in enumerate(batches):
            rows = expected_rows(recipe, data, step, rank, 2)
            assert batch.rows.tolist() == rows.tolist()
            assert [data.classes[label] for label in batch.labels.tolist()] == [pids[row] for row in rows]
            assert batch.infrared.tolist() == [modality[row] == "infrared" for row in rows]
            pixels = np.stack([decode(data.image(row)) for row in rows.tolist()])
            assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels)


def test_slots_number_the_samples_of_an_epoch_once_over_all_workers(prepared: Any) -> None:
    recipe, data = prepared
    seen: list[int] = []
    for rank in (0, 1):
        feed = Feed(data.location.url, recipe, STEPS, rank, 2)
        for batch in feed.batches(start=STEPS, stop=2 * STEPS, device=torch.device("cpu")):
            seen += batch.slots.tolist()
    assert sorted(seen) == list(range(STEPS * recipe.batch.size))


def test_a_restart_in_mid_epoch_goes_on_with_the_very_next_batch(prepared: Any) -> None:
    recipe, data = prepared
    feed = Feed(data.location.url, recipe, STEPS, 0, 1)
    whole = list(feed.batches(start=0, stop=3 * STEPS, device=torch.device("cpu")))
    for start in (3, 8, 11):
        rest = list(feed.batches(start=start, stop=3 * STEPS, device=torch.device("cpu")))
        assert len(rest) == 3 * STEPS - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert list(feed.batches(start=15, stop=15, device=torch.device("cpu"))) == []
