"""One training process, without Ray and without images: steps that are not finite, speed options."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from icre import config
from icre.errors import NotFiniteError
from icre.figures.training import loss_terms
from icre.model.build import build_network
from icre.training.step import Batch
from pipelines.runs.run import Run
from pipelines.storage import Storage
from pipelines.training.trainer import Trainer

CPU = torch.device("cpu")


def make(recipes: Any, tmp_path: Path, *overrides: str) -> Trainer:
    recipe: config.Recipe = recipes(*overrides)
    network = build_network(recipe, classes=4)
    data: Any = None  # a step needs none
    return Trainer(recipe, Run(Storage(tmp_path)), data, network, steps_per_epoch=3, device=CPU)


def batch(seed: int) -> Batch:
    images = torch.randint(0, 256, (16, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    place = torch.arange(16)
    return Batch(images, labels=place // 4, infrared=place % 4 >= 2, slots=place, rows=100 + place)


def poison(worker: Trainer, value: float) -> None:
    with torch.no_grad():
        next(worker.network.parameters()).view(-1)[0] = value


def take(worker: Trainer, number: int) -> dict[str, Any]:
    row = worker.step(batch(number))
    worker.record(row, seconds=1.0, waited=0.5)
    return row


def test_a_step_that_is_not_finite_is_left_out_and_counted(recipes: Any, tmp_path: Path) -> None:
    worker = make(recipes, tmp_path, "train.max_skipped_steps=1")
    take(worker, 0)
    healthy = {name: value.clone() for name, value in worker.network.state_dict().items()}
    kept = next(worker.network.parameters()).view(-1)[0].item()
    poison(worker, float("nan"))
    row = take(worker, 1)
    assert row["kind"] == "skipped" and row["step"] == 2 and "not finite" in row["reason"]
    poison(worker, kept)
    after = worker.network.state_dict()
    assert all(torch.equal(after[name], healthy[name]) for name in healthy), "weights and running statistics stay"
    assert take(worker, 2)["loss"] > 0 and worker.progress.step == 3
    assert worker.state(None)["step"] == 3
    poison(worker, float("nan"))
    with pytest.raises(NotFiniteError, match=r"step 4:.*'loss': nan.*rows.*100"):
        take(worker, 3)


def test_without_leave_the_first_one_stops_training(recipes: Any, tmp_path: Path) -> None:
    worker = make(recipes, tmp_path)
    poison(worker, float("inf"))
    with pytest.raises(NotFiniteError, match="step 1:") as caught:
        take(worker, 0)
    assert caught.value.exit_code == 1


def test_the_report_draws_the_losses_of_a_step_and_not_its_bookkeeping(recipes: Any, tmp_path: Path) -> None:
    worker = make(recipes, tmp_path)
    take(worker, 0)
    assert loss_terms(worker.metrics) == ["loss", "id", "icg_pull", "icg_push"]


def test_speed_options_reach_the_network_and_the_checkpoint(recipes: Any, tmp_path: Path) -> None:
    options = ["precision=bf16", "channels_last=true", "micro_batches=2", "checkpoint_activations=true"]
    recipe: config.Recipe = recipes(*(f"compute.{option}" for option in options))
    data: Any = SimpleNamespace(classes=["1", "2", "3", "4"])
    run = Run(Storage(tmp_path / "run"))
    worker = Trainer.start(recipe, run, data, steps_per_epoch=3, device=CPU, warn=pytest.fail)
    stored = [value.dtype for value in worker.network.state_dict().values()]
    convolution = next(layer for layer in worker.network.modules() if isinstance(layer, torch.nn.Conv2d))
    met: list[torch.dtype] = []
    convolution.register_forward_hook(lambda _layer, _inputs, output: met.append(output.dtype))
    for number in (0, 1):
        assert take(worker, number)["kind"] == "step"
    assert set(met) == {torch.bfloat16}
    kept = worker.snapshot()
    assert [value.dtype for value in kept.network.values()] == stored and torch.bfloat16 not in stored
    assert all(value.isfinite().all() for value in kept.network.values())
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    # Each of the two parts of a step counts in the running statistics.
    assert kept.network["head.neck.num_batches_tracked"] == 2 * worker.progress.step


def test_what_a_library_draws_depends_on_the_step_alone(recipes: Any, tmp_path: Path) -> None:
    """So a resumed run draws what the undisturbed one drew, and no generator's state has to be kept."""
    drawn = []
    for skip in (0, 2):
        worker = make(recipes, tmp_path)
        for number in range(3):
            if number >= skip:
                take(worker, number)
            else:
                worker.progress = worker.progress.__class__(number + 1, None, None)
        drawn.append((torch.rand(3).tolist(), random.random()))
    assert drawn[0] == drawn[1]
