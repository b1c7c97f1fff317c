"""Select the run to resume, if any, and check that it can be resumed."""

from __future__ import annotations

from collections.abc import Sequence

from icre import config
from icre.errors import ConfigError, DataError, UserError
from icre.training.checkpoint import progress_of
from pipelines.data.prepared import PreparedData, open_data
from pipelines.runs.run import Run, newest_first, open_run, runs_of
from pipelines.runtime.command import override_recipe
from pipelines.storage import Storage
from pipelines.training.launch import as_started, steps_per_epoch


def to_resume(recipe: config.Recipe, name: str | None, resume: str, overrides: Sequence[str]) -> Run | None:
    """The run to resume, or None for a new one. Raises UserError for a finished run or one with other settings.

    resume: never, auto, or a run's name; name: value of ``--run``.
    """
    if resume == "never":
        return None
    storage = Storage(recipe.storage)
    if resume == "auto":
        return _unfinished(recipe, storage) if name is None else _unfinished_named(recipe, storage, name)
    if name not in (None, resume):
        raise UserError(
            f"--run {name} with --resume {resume}", hint="a run that goes on keeps its name: leave out --run"
        )
    run = open_run(storage, resume)
    # The run's stored recipe takes precedence; conflicting or unknown overrides are errors.
    asked = override_recipe(run.recipe, [*overrides, f"storage={recipe.storage}"], where=f"run {run.name}")
    check_same(run, asked, open_data(asked))
    _refuse_finished(run)
    return run


def check_same(run: Run, recipe: config.Recipe, data: PreparedData) -> None:
    """Raises UserError for a different recipe, DataError for different images than those of ``run``."""
    hint = "give the new run another name, or remove this one"
    differing = sorted(_differing(run, recipe))
    if differing:
        raise UserError(f"run {run.name} exists with other settings: {', '.join(differing)}", hint=hint)
    if run.manifest["data"]["hash"] != data.hash:
        raise DataError(f"run {run.name} exists with other images in {data.location.url}", hint=hint)


def describe_resumption(run: Run) -> str:
    """One line naming the resumed run and its step. Warns of damaged checkpoints."""
    with run.checkpoints.newest() as found:
        step = 0 if found is None else progress_of(found[1]).step
    total = run.recipe.train.epochs * steps_per_epoch(run.recipe, open_data(run.recipe))
    return f"train: run {run.name} goes on from step {step} of {total}"


def _unfinished(recipe: config.Recipe, storage: Storage) -> Run | None:
    """The newest run with exactly this recipe and these images, unless it is finished."""
    data = open_data(recipe)
    for run in newest_first(storage):
        try:
            differing = _differing(run, recipe)
        except ConfigError:
            continue  # recipe of another version, with unknown keys
        if not differing and run.manifest["data"]["hash"] == data.hash:
            return None if run.state == "finished" else run
    return None


def _differing(run: Run, recipe: config.Recipe) -> set[str]:
    # Storage, image location, telemetry, tune and retrain settings do not affect training; images are compared by hash.
    differing = config.differences(run.recipe, as_started(recipe)).keys() - {"data.root"}
    return {key for key in differing if key.partition(".")[0] not in ("storage", "telemetry", "tune", "retrain")}


def _unfinished_named(recipe: config.Recipe, storage: Storage, name: str) -> Run | None:
    run = Run(runs_of(storage) / name)
    if not (run.location / "manifest.json").exists():
        return None
    check_same(run, recipe, open_data(recipe))
    _refuse_finished(run)
    return run


def _refuse_finished(run: Run) -> None:
    # Ray Train would restore the finished job from its own snapshot, train nothing and report success.
    if run.state == "finished":
        raise UserError(
            f"run {run.name} is finished: there is nothing left to train",
            hint=f"evaluate it with `icre evaluate --run {run.name}`, or start a new run under another name",
        )
