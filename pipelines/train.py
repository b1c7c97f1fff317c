"""``icre train``: a prepared data set becomes a trained network in a run folder, on Ray Train."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import ray
import typer
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from icre import config
from icre.data.plan import plan_epoch
from icre.data.records import MODALITIES
from icre.errors import ConfigError, DataError, IcreError, StoppedError, StorageError, TrainingError, UserError
from icre.training.checkpoint import progress_of
from pipelines import runs
from pipelines.command import ConfigFile, DryRun, Overrides, run_command, say
from pipelines.networks import initial_network
from pipelines.prepare import describe_counts
from pipelines.prepared import PreparedData
from pipelines.progress import board_here, follow
from pipelines.runs import Run, warned_of
from pipelines.session import Demand, ray_session, upload_logs
from pipelines.storage import Storage
from pipelines.telemetry_prometheus import write_summary
from pipelines.trainer import Job, train_worker

Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        help="never: a new run. auto: the newest unfinished run of this recipe (or --run) goes on, else a new one. "
        "Or the name of the run that goes on, by its own recipe.",
    ),
]
NewRun = Annotated[str | None, typer.Option("--run", help="Name of the new run. None: <name>-<date>-<time>.")]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: NewRun = None,
    resume: Resume = "never",
) -> None:
    """Train on a prepared data set; checkpoints and metrics land in the run folder."""
    recipe = config.load_recipe(config_file, overrides or [])
    unfinished = to_resume(recipe, run, resume, overrides or [])
    if dry_run:
        print(plan(recipe, run) if unfinished is None else describe_resumption(unfinished))
        return
    if unfinished is None:
        started = start(recipe, run)
    else:
        started = unfinished
        say(describe_resumption(started))
    recipe = started.recipe
    with ray_session_for(started, Demand.of_training(recipe.train)):
        execute(started)
    say(f"train: finished; next: icre evaluate --run {started.name} storage={recipe.storage}")
    print(started.location.url)


def open_data(recipe: config.Recipe) -> PreparedData:
    """The prepared data set that the recipe names."""
    return PreparedData.open(runs.datasets(Storage(recipe.storage)) / recipe.data.name)


def plan(recipe: config.Recipe, name: str | None) -> str:
    """What ``train`` would do: the recipe, the counts, the steps, the paths."""
    data = open_data(recipe)
    steps = steps_per_epoch(recipe, data)
    run = runs.runs(Storage(recipe.storage)) / (name or f"{recipe.name}-<date>-<time>")
    return "\n".join(
        [
            recipe.to_yaml(),
            describe_counts(data.manifest["counts"]),
            f"\nclasses: {len(data.classes)}",
            f"steps: {recipe.train.epochs} epochs x {steps} = {recipe.train.epochs * steps}, "
            f"of {recipe.batch.size} images over {_workers(recipe.train)} workers",
            f"would write: {run.url}",
        ]
    )


def _workers(train: config.Train) -> str:
    fewest, most = train.worker_range
    return str(most) if fewest == most else f"{fewest} to {most}"


def steps_per_epoch(recipe: config.Recipe, data: PreparedData) -> int:
    """The recipe's, or as the field counts an epoch."""
    batch = recipe.batch
    return recipe.train.steps_per_epoch or data.training_index().steps(
        visible=batch.visible, infrared=batch.infrared, identities=batch.identities
    )


def start(recipe: config.Recipe, name: str | None) -> Run:
    """Check everything that can be checked without a worker, then create the run folder."""
    recipe = as_started(recipe)
    data = open_data(recipe)
    _check_size(recipe, data)
    _check_validation(data)
    # Building the network here finds a weights file that does not fit before anything is written.
    initial_network(recipe, classes=len(data.classes))
    runs.runs(Storage(recipe.storage)).check_writable()
    run = runs.create_run(recipe, name, data)
    say(f"train: run {run.name}, its recipe:\n{textwrap.indent(recipe.to_yaml(), '  ')}")
    return run


def to_resume(recipe: config.Recipe, name: str | None, resume: str, overrides: Sequence[str]) -> Run | None:
    """The run that goes on, None for a new one. Raises UserError for a run that is finished or is another's.

    resume: never, auto, or a run's name; name: of ``--run``.
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
    run = runs.open_run(storage, resume)
    # Its own recipe counts; an override that says something else is a mistake, and so is one that it does not know.
    asked = config.override(run.recipe, [*overrides, f"storage={recipe.storage}"], where=f"run {run.name}")
    check_same(run, asked, open_data(asked))
    _refuse_finished(run)
    return run


def check_same(run: Run, recipe: config.Recipe, data: PreparedData) -> None:
    """Raises UserError when ``run`` exists with another recipe or other images."""
    hint = "give the new run another name, or remove this one"
    differing = sorted(_differing(run, recipe))
    if differing:
        raise UserError(f"run {run.name} exists with other settings: {', '.join(differing)}", hint=hint)
    if run.manifest["data"]["hash"] != data.hash:
        raise DataError(f"run {run.name} exists with other images in {data.location.url}", hint=hint)


def describe_resumption(run: Run) -> str:
    """One line: which run goes on, and from where. Warns of checkpoints that are damaged."""
    with run.newest_checkpoint() as found:
        step = 0 if found is None else progress_of(found[1]).step
    total = run.recipe.train.epochs * steps_per_epoch(run.recipe, open_data(run.recipe))
    return f"train: run {run.name} goes on from step {step} of {total}"


def _unfinished(recipe: config.Recipe, storage: Storage) -> Run | None:
    """The newest run of exactly this recipe and these images, if it is not finished."""
    data = open_data(recipe)
    for run in runs.newest_first(storage):
        try:
            differing = _differing(run, recipe)
        except ConfigError:
            continue  # the recipe of another version, in words that this one does not know
        if not differing and run.manifest["data"]["hash"] == data.hash:
            return None if run.state == "finished" else run
    return None


def _differing(run: Run, recipe: config.Recipe) -> set[str]:
    # Where the storage is, and who is told of the training, is not a setting of it.
    differing = config.differences(run.recipe, as_started(recipe))
    return {key for key in differing if key != "storage" and not key.startswith("telemetry.")}


def _unfinished_named(recipe: config.Recipe, storage: Storage, name: str) -> Run | None:
    run = Run(runs.runs(storage) / name)
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


@contextlib.contextmanager
def ray_session_for(run: Run, demand: Demand) -> Iterator[None]:
    """A Ray session whose logs end up in the run folder, also when the body raises."""
    with tempfile.TemporaryDirectory(prefix="icre-logs-") as scratch:
        try:
            with ray_session(Path(scratch), demand=demand):
                yield
        finally:
            with warned_of(StorageError):
                upload_logs(Path(scratch), run.location / "logs")


def execute(run: Run) -> None:
    """Train ``run`` inside an open Ray session. Raises TrainingError when the workers fail for good."""
    recipe = run.recipe
    data = open_data(recipe)
    run.write_status("running")
    board = board_here()
    job = Job(
        recipe=recipe.to_dict(),
        run=run.location.url,
        data=data.location.url,
        steps_per_epoch=steps_per_epoch(recipe, data),
        board=board,
    )
    started = time.monotonic()
    try:
        with follow(board, "train"), _stopping_on_sigterm(board):
            _trainer(recipe, run, job).fit()
            failure = cast(IcreError | None, ray.get(board.ended.remote()))
    except TrainingFailedError as error:
        failure = explain(error)
    except KeyboardInterrupt:
        run.write_status("failed", error="stopped by Ctrl-C")
        raise
    restarts = cast(Any, ray.get(board.history.remote()))
    seconds = time.monotonic() - started
    if failure is not None:
        state = "stopped" if isinstance(failure, StoppedError) else "failed"
        # The storage may be what failed: then the reason matters more than that it cannot be written down.
        with warned_of(StorageError):
            run.write_status(state, error=str(failure), restarts=restarts)
            write_summary(run, succeeded=False, seconds=seconds)
        raise failure
    write_summary(run, succeeded=True, seconds=seconds)
    run.write_status("finished", restarts=restarts)


@contextlib.contextmanager
def _stopping_on_sigterm(board: ActorHandle[Any]) -> Iterator[None]:
    """SIGTERM, as a cluster sends it before it takes a machine away: a checkpoint, then an end in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    asked, over = threading.Event(), threading.Event()

    def pass_on() -> None:
        asked.wait()
        if not over.is_set():
            ray.get(board.stop.remote())

    # Ray is not called inside the handler, which interrupts Ray's own wait for the training.
    threading.Thread(target=pass_on, daemon=True).start()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        over.set()
        asked.set()


def explain(error: TrainingFailedError) -> IcreError:
    """The error that a worker raised, if it is one that a user can act on."""
    for failure in getattr(error, "worker_failures", {}).values():
        original = getattr(failure, "cause", failure)
        if isinstance(original, IcreError):
            return original
    return TrainingError(f"training failed: {error}", hint="the workers' tracebacks are in the run folder under logs/")


def _trainer(recipe: config.Recipe, run: Run, job: Job) -> TorchTrainer:
    train = recipe.train
    filesystem, path = run.location.arrow()
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.gpus_per_worker else {})
    return TorchTrainer(
        train_worker,
        train_loop_config=dict(job),
        scaling_config=ScalingConfig(
            num_workers=train.workers,  # type: ignore[arg-type]  # Ray's annotation lacks the pair of elastic counts
            use_gpu=bool(train.gpus_per_worker),
            resources_per_worker=resources,
        ),
        # Ray Train's storage is the run's checkpoints/, so what it persists is what a person finds there.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )


def as_started(recipe: config.Recipe) -> config.Recipe:
    """The recipe that a run keeps: a relative path is relative to here, and workers have folders of their own."""
    weights = recipe.model.weights
    if weights is None or "://" in weights:
        return recipe
    model = recipe.model.model_copy(update={"weights": str(Path(weights).expanduser().absolute())})
    return recipe.model_copy(update={"model": model})


def _check_validation(data: PreparedData) -> None:
    labels = data.labels.take(data.rows_of("val")).select(["identity", "modality"]).to_pylist()
    seen = [{row["identity"] for row in labels if row["modality"] == modality} for modality in MODALITIES]
    if labels and not seen[0] & seen[1]:
        raise DataError(
            f"{data.location.url}: none of the {len(seen[0] | seen[1])} validation identities has both modalities, "
            "so no epoch could be called the best",
            hint="move identities with visible and infrared images to the val split, or leave it empty; prepare again",
        )


def _check_size(recipe: config.Recipe, data: PreparedData) -> None:
    resized = data.manifest.get("store", "resized") == "resized"
    for key in ("height", "width") if resized else ():
        asked, stored = getattr(recipe.data, key), data.manifest[key]
        if asked != stored:
            raise ConfigError(
                f"data.{key}={asked}, but {data.location.url} was prepared at {stored}",
                hint=f"set data.{key}={stored}, or prepare again (under another data.name to keep both)",
            )
    # Drawing the first epoch refuses a batch with more identities than there are.
    batch = recipe.batch
    plan_epoch(
        data.training_index(),
        identities=batch.identities,
        visible=batch.visible,
        infrared=batch.infrared,
        steps=1,
        seed=recipe.seed,
        epoch=0,
    )


if __name__ == "__main__":
    run_command(command)
