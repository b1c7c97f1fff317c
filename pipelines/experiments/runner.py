"""Train and evaluate each run exactly once across restarts; shared by commands that train several runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from icre import config
from pipelines.data.prepared import PreparedData
from pipelines.evaluation import evaluate
from pipelines.evaluation.measure import choices
from pipelines.runs.checkpoints import folder_name
from pipelines.runs.run import Run
from pipelines.runtime.session import Demand, ray_session_for
from pipelines.storage import Storage
from pipelines.training import execution, launch, resumption

CHECKPOINT = "best"


@contextmanager
def session_for(recipe: config.Recipe, folder: Storage, *, at_once: int = 1) -> Iterator[None]:
    """A Ray session for ``at_once`` trainings of ``recipe`` and their evaluation; logs go to ``folder``/logs."""
    training = Demand(at_once * Demand.of_training(recipe.train).cpus)
    demand = max(training, Demand.of_embedding(recipe.evaluation))
    with ray_session_for(folder, demand):
        yield


def check_reusable(run: Run, recipe: config.Recipe, data: PreparedData) -> None:
    """Raises as :func:`resumption.check_same` does if ``run`` exists with another recipe or other images."""
    if (run.location / "manifest.json").exists():
        resumption.check_same(run, recipe, data)


def result_of(run: Run, recipe: config.Recipe) -> dict[str, Any]:
    """The evaluation of the run's best checkpoint, inside an open Ray session.

    A missing run is trained and an interrupted one resumed; completed work is not repeated. Raises TrainingError when
    the training fails.
    """
    if not (run.location / "manifest.json").exists():
        launch.start(recipe, run.name)
    if run.state != "finished":
        execution.execute(run)
    return evaluation_of(run, recipe)


def evaluation_of(run: Run, recipe: config.Recipe) -> dict[str, Any]:
    """The evaluation of the run's best checkpoint; a stored one is reused while it is current."""
    written: dict[str, Any] | None = evaluate.result_path(run, CHECKPOINT, recipe).read_json(default=None)
    if written is not None and _is_current(written, run, recipe):
        return written
    return evaluate.evaluate(run, recipe, CHECKPOINT)


def _is_current(written: dict[str, Any], run: Run, recipe: config.Recipe) -> bool:
    """True if the result is for the current best checkpoint and this protocol."""
    evaluated = folder_name(written["checkpoint"]["step"])
    return evaluated == run.checkpoints.pointed(CHECKPOINT) and written["protocol"] == choices(recipe)
