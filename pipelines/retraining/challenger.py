"""Challengers: one run per tick, optionally initialised from the weights of the model in service."""

from __future__ import annotations

import torch
from safetensors.torch import load

from icre import config
from icre.errors import WeightsError
from icre.model.network import ICRENetwork
from icre.training import checkpoint
from icre.training.checkpoint import Progress
from icre.training.optimizer import build_optimizer
from pipelines.data.prepared import PreparedData
from pipelines.experiments import runner
from pipelines.retraining.registry import BEST, learnt
from pipelines.runs.networks import initial_network
from pipelines.runs.run import CLASSES, Run
from pipelines.training import launch

CLASSIFIER = "head.classifier.weight"


def run_of(recipe: config.Recipe, tick: str) -> Run:
    """The run of a tick. Restarting a finished run trains nothing, so each tick has its own."""
    return Run.named(recipe.storage, f"{recipe.name}-tick-{tick}")


def begin(recipe: config.Recipe, run: Run, data: PreparedData, champion: Run | None) -> None:
    """Create ``run``, or complete a partial creation. ``champion``: run with the initial weights; None: from scratch.

    Raises what ``icre train`` raises for an unsuitable recipe or data, WeightsError for a champion with another
    network, and UserError when the recipe or the images changed since the run was created.
    """
    if (run.location / "manifest.json").exists():
        runner.check_reusable(run, recipe, data)
    else:
        launch.start(recipe, run.name)
    before = learnt(champion)["seen"] if champion else []
    (run.location / CLASSES).write_json({"classes": data.classes, "seen": sorted({*before, *data.classes})})
    if champion is not None and run.checkpoints.pointed("last") is None:
        manifest = run.manifest
        manifest["parents"] = [data.location.url, champion.location.url]
        (run.location / "manifest.json").write_json(manifest)
        _write_start(recipe, run, data, champion)


def carry_over(
    network: ICRENetwork, weights: dict[str, torch.Tensor], *, before: list[str] | None, classes: list[str]
) -> int:
    """Load another network's weights, matching classifier rows by identity name; returns the number of rows kept.

    before, classes: training identities by label, of ``weights`` (None: unknown) and of ``network``. Rows of new
    identities keep their initial values. Raises WeightsError when any other tensor differs in shape or name.
    """
    own = network.state_dict()
    shapes = [{k: tuple(v.shape) for k, v in state.items() if k != CLASSIFIER} for state in (own, weights)]
    differing = sorted({key for key, _ in set(shapes[0].items()) ^ set(shapes[1].items())})
    if differing:
        raise WeightsError(
            f"the model in service is another network than the recipe's: {len(differing)} tensors differ, "
            f"such as {differing[0]}",
            hint="take its recipe's `model` and `components`, or train with retrain.start=scratch",
        )
    classifier, row_of = own[CLASSIFIER].clone(), {name: row for row, name in enumerate(before or [])}
    kept = [(row, row_of[name]) for row, name in enumerate(classes) if name in row_of]
    for row, former in kept:
        classifier[row] = weights[CLASSIFIER][former]
    network.load_state_dict(weights | {CLASSIFIER: classifier})
    return len(kept)


def _write_start(recipe: config.Recipe, run: Run, data: PreparedData, champion: Run) -> None:
    """Write a checkpoint of step 0, from which workers start or restart as from any other."""
    network = initial_network(recipe, classes=len(data.classes))
    with champion.checkpoints.load(BEST) as (folder, _):
        weights = load((folder / checkpoint.NETWORK).read_bytes())
    carry_over(network, weights, before=learnt(champion)["classes"], classes=data.classes)
    snapshot = checkpoint.take_snapshot(
        network=network,
        optimizer=build_optimizer(network, recipe.optimizer),
        progress=Progress(step=0, best_metric=None, best_step=None),
        classes=len(data.classes),
    )
    run.checkpoints.point("last", run.checkpoints.write(snapshot))


def size_mib(run: Run, name: str) -> float:
    """Size of a checkpoint's weights file in MiB."""
    folder = run.checkpoints.pointed(name)
    assert folder is not None
    return (run.location / "checkpoints" / folder / checkpoint.NETWORK).size() / 2**20


def forget(run: Run) -> None:
    """Remove the checkpoints of a challenger that needs no further training; its metrics and decision are kept."""
    (run.location / "checkpoints").delete()
