"""Trainings in the test's own process, without Ray Train: the reference for those with it, and quick run folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load

from icre import config
from icre.errors import NotFiniteError
from pipelines.data.feed import Feed
from pipelines.data.prepared import PreparedData, open_data
from pipelines.experiments.trial import Sweep, lineage
from pipelines.runs.run import Run
from pipelines.storage import Storage
from pipelines.training import launch
from pipelines.training.checkpointer import AsyncCheckpointer
from pipelines.training.trainer import Trainer

TIMES = {"time", "images_per_s", "data_wait_s"}


def trained_plainly(recipe: config.Recipe, data: PreparedData, run: Run | None = None) -> Trainer:
    """The recipe trained to its end by one worker; with a ``run``, from where that is, and with checkpoints."""
    steps = launch.steps_per_epoch(recipe, data)
    place = run or Run(Storage(recipe.storage) / "runs" / "nowhere")
    with _one_thread():
        worker = Trainer.start(recipe, place, data, steps_per_epoch=steps, device=torch.device("cpu"), warn=pytest.fail)
        saver = AsyncCheckpointer(
            place, recipe.checkpoints, steps_per_epoch=steps, done=lambda _: None, warn=pytest.fail
        )
        for batch in Feed(data, recipe, steps, 0, 1).batches(
            start=worker.progress.step, stop=worker.total_steps, device=worker.device
        ):
            worker.record(worker.step(batch), seconds=1.0, waited=0.0)
            if worker.is_epoch_over:
                improved = worker.end_epoch()
                if run is not None:
                    saver.wait()
                    saver.save(worker.snapshot(), worker.metrics, improved=improved)
        saver.wait()
    return worker


def execute_here(run: Run) -> None:
    """In the place of :func:`pipelines.training.execution.execute`, with one worker."""
    trained_plainly(run.recipe, open_data(run.recipe), run)
    run.write_status("finished", restarts=[])


def finished_run(recipe: config.Recipe, name: str) -> Run:
    """A run folder as a training of one worker leaves it."""
    run = launch.start(recipe, name)
    execute_here(run)
    return run


def train_here(sweep: Sweep, numbers: Sequence[int], **_: Any) -> None:
    """In the place of :func:`pipelines.experiments.engine.run_trials`: one after the other, in this process."""
    for trial in (sweep.trials[number] for number in numbers):
        run = launch.start(trial.recipe, trial.run, lineage=lineage(trial, sweep))
        try:
            execute_here(run)
        except NotFiniteError as error:
            run.write_failure(error)


def weights(run: Run, name: str = "last") -> dict[str, torch.Tensor]:
    """The network's tensors in the checkpoint ``last`` or ``best``."""
    return load((run.location / "checkpoints" / str(run.checkpoints.pointed(name)) / "model.safetensors").read_bytes())


def equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether both have the same tensors, bit for bit."""
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def timeless(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
