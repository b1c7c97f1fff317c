"""Training that is disturbed ends as it would have: a scenario of benchmarks/chaos.py, asserted, and its yardstick.

The others, a minute each, are left to `python -m benchmarks.chaos`, as other tests cover their parts: a killed worker
and a newest checkpoint that is cut off, a command that is stopped (test_main_job) or killed (tests/walks), a killed
raylet (a part of the one here), an object store that comes back (test_storage) or does not, a disk that is full
(test_checkpointer), any number of workers (test_distributed).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import chaos
from benchmarks.chaos_runs import Stage, metrics_off, stage, weights_off
from icre import config
from pipelines.runs.run import Run
from pipelines.storage import Storage
from tests.training import finished_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def disturbed() -> Iterator[tuple[Stage, Run]]:
    """One worker, so that the undisturbed training needs no Ray; the cache of pixels spares it the decode tasks."""
    with pytest.MonkeyPatch.context() as patched, stage(workers=1) as place:
        patched.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)  # as the other tests have it
        recipe = config.load_recipe(place.recipe(str(place.folder / "storage")), ["train.cache=decoded"])
        yield place, finished_run(recipe, "calm")


def test_a_node_that_is_taken_away_after_a_notice_costs_no_step_that_was_not_announced(
    disturbed: tuple[Stage, Run],
) -> None:
    outcome = chaos.drained(*disturbed)
    assert outcome.exit_codes == [0]
    assert outcome.weights_off == outcome.metrics_off == 0
    assert outcome.said, "whoever started the training was not told"


def test_a_difference_is_seen(disturbed: tuple[Stage, Run], tmp_path: Path) -> None:
    _, calm = disturbed
    shutil.copytree(calm.location.url, tmp_path / "other")
    other = Run(Storage(tmp_path / "other"))
    assert weights_off(other, calm) == metrics_off(other, calm) == 0
    path = tmp_path / "other" / "checkpoints" / str(other.checkpoints.pointed("last")) / "model.safetensors"
    content = load_file(path)
    content["head.classifier.weight"][0, 0] += 1e-3
    save_file(content, path)
    assert 0 < weights_off(other, calm) < 1
    rows = other.metrics()
    rows[3]["loss"] *= 1.001
    other.write_metrics(rows)
    assert metrics_off(other, calm) == pytest.approx(1e-3, rel=1e-6)
    for broken in (rows[:-1], [*rows, rows[-1]], [*rows[:-1], rows[-1] | {"step": 1}]):
        other.write_metrics(broken)
        assert metrics_off(other, calm) == float("inf")
