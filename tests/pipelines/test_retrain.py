"""Retraining: two nights with a real network, and what must hold when ticks are killed, meet, or go wrong.

Where the property is not about training, a training is a checkpoint that is simply there, and the features that a model
gives are centres of identities under as much noise as the test wants.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from icre import config
from icre.config import Retrain
from icre.errors import DataError, IcreError, StoppedError, StorageError, TrainingError, UserError, WeightsError
from icre.training import checkpoint
from icre.training.checkpoint import Progress
from pipelines import cli
from pipelines.data import prepare
from pipelines.data.prepared import PreparedData, open_data
from pipelines.retraining import challenger, images, judge, retrain, tick
from pipelines.retraining.challenger import CLASSIFIER, carry_over
from pipelines.retraining.journal import STEPS, Journal, Tick
from pipelines.retraining.registry import Registry
from pipelines.retraining.tick_metrics import NAMES
from pipelines.runs.lease import holder
from pipelines.runs.networks import initial_network
from pipelines.runs.run import UNTRAINED, Run
from pipelines.storage import Storage
from pipelines.training import execution
from tests.conftest import TINY
from tests.training import execute_here

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
LATE = {"train": 2, "test": 1}
"""Identities that are not there in the first night."""


@pytest.fixture
def album(synthetic_images: Path, tmp_path: Path) -> Path:
    """The synthetic people without those who come later."""
    root = tmp_path / "images"
    shutil.copytree(synthetic_images, root)
    splits = json.loads((root / "split.json").read_text())
    for split, count in LATE.items():
        for identity in splits[split][-count:]:
            for modality in ("visible", "infrared"):
                shutil.move(root / modality / identity, tmp_path / "late" / modality / identity)
        splits[split] = splits[split][:-count]
    (root / "split.json").write_text(json.dumps(splits))
    return root


def arrive(album: Path, synthetic_images: Path) -> None:
    """The people who were missing come in."""
    shutil.copytree(album.parent / "late", album, dirs_exist_ok=True)
    shutil.copyfile(synthetic_images / "split.json", album / "split.json")


@pytest.fixture
def recipe_of(album: Path, tmp_path: Path) -> Callable[..., config.Recipe]:
    path = tmp_path / "tiny.yaml"
    path.write_text(config.parse_recipe(TINY | {"name": "tiny"}, where="the tests").to_yaml())
    short = ["train.epochs=1", "train.steps_per_epoch=2", "evaluation.trials=2"]
    loose = ["retrain.min_queries=4", "retrain.resamples=200", "retrain.lease_s=60"]

    def make(*overrides: str) -> config.Recipe:
        base = [f"storage={tmp_path / 'storage'}", f"data.root={album}", *short, *loose]
        return config.load_recipe(path, [*base, *overrides])

    return make


class Small(torch.nn.Module):
    """A network that a checkpoint of is written in no time, with a classifier as the real one has it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(classes)
        self.backbone = torch.nn.Linear(4, 4)
        self.head = torch.nn.Module()
        self.head.classifier = torch.nn.Linear(4, classes, bias=False)

    def parameter_groups(self) -> list[tuple[str, bool]]:
        return [(name, name.startswith("backbone")) for name, _ in self.named_parameters()]


class Stage:
    """Trainings that take no time, and models that are as good as the test says."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.noise = {UNTRAINED: 4.0, "night-1": 2.0, "night-2": 0.5}
        self.while_training: Callable[[], None] = lambda: None

    def execute(self, run: Run) -> None:
        """A checkpoint after two steps: the network that the run starts with, a little changed."""
        self.while_training()
        assert run.state != "finished"
        self.trained.append(run.name)
        network = Small(run.manifest["data"]["classes"])
        with run.checkpoints.newest() as found:
            state = network.state_dict() if found is None else load((found[0] / checkpoint.NETWORK).read_bytes())
        state = {name: value + 1e-3 if value.is_floating_point() else value for name, value in state.items()}
        if run.checkpoints.pointed("last") != "step-00000002":
            snapshot = checkpoint.Snapshot(state, {}, Progress(2, None, None), run.manifest["data"]["classes"])
            folder = Path(os.environ["ICRE_CACHE"]) / f"stage-{run.name}"
            checkpoint.write_checkpoint(folder, snapshot)
            for file in (checkpoint.NETWORK, checkpoint.OPTIMIZER, checkpoint.META):
                (run.location / "checkpoints/step-00000002" / file).upload(folder / file)
            for name in ("best", "last"):
                run.checkpoints.point(name, "step-00000002")
        run.write_status("finished")

    def embed(self, url: str, name: str, data: PreparedData, split: Any, recipe: config.Recipe) -> torch.Tensor:
        """Of each image its identity's centre, under noise."""
        noise = self.noise[UNTRAINED] if name == UNTRAINED else next(n for k, n in self.noise.items() if k in url)
        rows = data.records(data.rows_of(split))
        return torch.stack([drawn(row.pid) + noise * drawn(row.path) for row in rows])


def drawn(name: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    return torch.randn(16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage()
    monkeypatch.setattr(execution, "execute", found.execute)
    monkeypatch.setattr(judge, "embed", found.embed)
    monkeypatch.setattr(challenger, "initial_network", lambda _, *, classes: Small(classes))
    return found


def registry_of(recipe: config.Recipe) -> Registry:
    return Registry(Storage(recipe.storage), recipe.name)


def ended(recipe: config.Recipe, name: str) -> Tick:
    found = Journal(registry_of(recipe)).tick(name)
    assert found is not None
    return found


def metrics_of(recipe: config.Recipe, name: str) -> dict[str, float]:
    text = (Journal(registry_of(recipe)).folder(name) / "metrics.prom").read_text()
    plain = text.replace('{model="tiny"}', "").replace('model="tiny",', "").replace(',model="tiny"', "")
    lines = [line.rpartition(" ") for line in plain.splitlines() if not line.startswith("#")]
    return {key: float(value) for key, _, value in lines}


def when_free(recipe: config.Recipe, name: str | None = None) -> str:
    """The outcome of a tick as soon as nobody else holds the lease."""
    deadline = time.monotonic() + 60
    while holder(registry_of(recipe).lease) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return retrain.retrain(recipe, name)


# For real


def test_two_nights_with_a_real_network(
    recipe_of: Callable[..., config.Recipe],
    album: Path,
    synthetic_images: Path,
    object_store: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the object store. As commands, with Ray Train: tests/walks."""
    monkeypatch.setattr(execution, "execute", execute_here)
    recipe = recipe_of(f"storage={object_store.url}/nights", "train.steps_per_epoch=4")
    registry, journal = registry_of(recipe), Journal(registry_of(recipe))
    with monkeypatch.context() as patched:
        patched.setattr(judge, "rules", lambda *_: [])  # whether four steps teach anything is not the question
        outcome = retrain.retrain(recipe, "first")
    champion = registry.champion()
    assert outcome == "promoted" and champion is not None
    assert champion.run == ended(recipe, "first").facts["run"] and champion.by == "tick first"
    registry.verify(champion)
    before = open_data(recipe).classes

    arrive(album, synthetic_images)
    recipe = config.override(recipe, ["retrain.margin=0.9", "retrain.floor=1"], where="the tests")
    better = Stage()
    better.noise = {"second": 1.0, "first": 3.0}
    monkeypatch.setattr(judge, "embed", better.embed)
    assert retrain.retrain(recipe, "second") == "kept"
    second = ended(recipe, "second")
    assert second.facts["new_images"] == 16 and second.facts["new_identities"] == 2 and "margin" in second.reason
    run = Run(Storage(recipe.storage) / "runs" / second.facts["run"])
    assert run.manifest["parents"][1] == registry.weights(champion).location.url
    _check_start(run, registry.weights(champion), before, open_data(recipe).classes)
    decision = (journal.folder("second") / "decision.json").read_json()
    assert decision["frozen"]["images"] == 5 * 8 and decision["newest_images"] == 8
    assert "margin" in (journal.folder("second") / "index.html").read_text()
    assert retrain.retrain(recipe, "third") == "nothing_new"
    assert registry.newest() == 1
    assert object_store.secret_key not in json.dumps([decision, registry.history.read(1), registry.lease.read(1)])


def _check_start(run: Run, champion: Run, before: list[str], after: list[str]) -> None:
    """The challenger started with the champion's weights, rows of the classifier by the identity's name."""
    start = load((run.location / "checkpoints/step-00000000" / checkpoint.NETWORK).read_bytes())
    with champion.checkpoints.load("best") as (folder, _):
        weights = load((folder / checkpoint.NETWORK).read_bytes())
    fresh = initial_network(run.recipe, classes=len(after)).state_dict()
    assert len(after) == len(before) + 2
    for row, name in enumerate(after):
        expected = weights[CLASSIFIER][before.index(name)] if name in before else fresh[CLASSIFIER][row]
        assert torch.equal(start[CLASSIFIER][row], expected)
    others = start.keys() - {CLASSIFIER}
    assert all(torch.equal(start[name], weights[name]) for name in others)
    trained = load(
        (run.location / "checkpoints" / str(run.checkpoints.pointed("last")) / checkpoint.NETWORK).read_bytes()
    )
    assert not torch.equal(trained[CLASSIFIER], start[CLASSIFIER])


# Killed anywhere


class Killed(BaseException):
    """As SIGKILL would: nothing catches it."""


class Deaths:
    """Kills the command before it writes an object in a state for the first time, and after it for the second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, int] = {}
        self.dead = False
        for name in ("write_bytes", "create", "upload", "delete"):
            monkeypatch.setattr(Storage, name, self._mortal(name, getattr(Storage, name)))

    def _mortal(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(place: Storage, *arguments: Any) -> Any:
            key = self._key(name, place, arguments)
            if key is None or self.dead or threading.current_thread() is not threading.main_thread():
                return original(place, *arguments)
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] == 1:
                self.dead = True
                raise Killed(key)
            result = original(place, *arguments)
            if self.seen[key] == 2:
                self.dead = True
                raise Killed(key)
            return result

        return wrapped

    def _key(self, name: str, place: Storage, arguments: tuple[Any, ...]) -> str | None:
        if "/lease/" in place.url or "/logs/" in place.url:
            return None
        state = ""
        if place.name == "journal.json":
            content = json.loads(arguments[0])
            state = f"{content['step']} {content['outcome']}"
        if place.name == "ticks.json":
            state = str(json.loads(arguments[0])["current"])
        return f"{name} {place.url} {state}"


def test_a_tick_that_is_killed_at_every_write_ends_as_one_that_is_not(
    recipe_of: Callable[..., config.Recipe],
    album: Path,
    synthetic_images: Path,
    tmp_path: Path,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of("retrain.max_attempts=1000", "retrain.keep_runs=1")
    assert retrain.retrain(recipe, "night-1") == "promoted"
    arrive(album, synthetic_images)
    shutil.copytree(tmp_path / "storage", tmp_path / "other")
    undisturbed = recipe_of("retrain.max_attempts=1000", "retrain.keep_runs=1", f"storage={tmp_path / 'other'}")
    assert retrain.retrain(undisturbed, "night-2") == "promoted"
    stage.trained.clear()

    with monkeypatch.context() as patched:
        deaths, outcome, times = Deaths(patched), None, 0
        while outcome is None:
            deaths.dead = False
            try:
                outcome = retrain.retrain(recipe, "night-2")
            except Killed:
                times += 1
    assert outcome == "promoted" and times > 40
    path = Journal(registry_of(recipe)).folder("night-2").url + "/journal.json"
    assert {f"write_bytes {path} {step} None" for step in STEPS} <= deaths.seen.keys()
    assert set(stage.trained) == {"tiny-tick-night-2"}
    results = []
    for each in (undisturbed, recipe):
        registry = registry_of(each)
        history = [(e.kind, e.run, e.sha256, e.by, e.decision) for e in registry.entries()]
        found = ended(each, "night-2")
        past = Journal(registry).past()
        runs = {
            name: Run(registry.storage / "runs" / name).checkpoints.pointed("best")
            for name in (registry.storage / "runs").list()
        }
        facts = (found.facts, found.outcome, found.reason, past.refused_in_a_row, past.metrics, past.challengers)
        results.append((history, facts, runs, (registry.location / "models").list(), registry.frozen.numbers()))
        for entry in registry.entries():
            registry.verify(entry)
    assert results[0] == results[1]
    assert results[0][2] == {"tiny-tick-night-1": None, "tiny-tick-night-2": "step-00000002"}  # keep_runs=1


def test_a_tick_that_ended_is_told_again_and_does_nothing(
    recipe_of: Callable[..., config.Recipe], stage: Stage
) -> None:
    recipe = recipe_of()
    for _ in range(2):
        assert retrain.retrain(recipe, "night-1") == "promoted"
    assert len(stage.trained) == 1 and registry_of(recipe).newest() == 1


# Better, or not


def test_a_worse_challenger_is_kept_out(
    recipe_of: Callable[..., config.Recipe], album: Path, synthetic_images: Path, stage: Stage
) -> None:
    recipe = recipe_of("retrain.min_new_images=0")
    assert retrain.retrain(recipe, "night-1") == "promoted"
    arrive(album, synthetic_images)
    stage.noise |= {"night-2": 4.0, "night-3": 2.0, "night-4": 0.5}
    assert [retrain.retrain(recipe, f"night-{n}") for n in (2, 3, 4)] == ["kept", "kept", "promoted"]
    found = [metrics_of(recipe, f"night-{n}")["icre_retrain_refused_in_a_row"] for n in (1, 2, 3, 4)]
    assert found == [0, 1, 2, 0]
    worse, better = metrics_of(recipe, "night-2"), metrics_of(recipe, "night-4")
    assert worse['icre_champion_metric_ratio{metric="mAP"}'] > worse['icre_challenger_metric_ratio{metric="mAP"}']
    assert better['icre_champion_metric_ratio{metric="mAP"}'] == better['icre_challenger_metric_ratio{metric="mAP"}']
    assert worse['icre_retrain_outcome{outcome="kept"}'] == better['icre_retrain_outcome{outcome="promoted"}'] == 1
    promotions = [metrics_of(recipe, f"night-{n}")["icre_retrain_last_promotion_timestamp_seconds"] for n in (1, 2, 4)]
    assert promotions[0] == promotions[1] < promotions[2]
    assert [entry.run for entry in registry_of(recipe).entries()] == ["tiny-tick-night-1", "tiny-tick-night-4"]
    assert worse["icre_retrain_new_images"] == 16


def test_the_first_model_must_beat_its_own_untrained_network(
    recipe_of: Callable[..., config.Recipe], stage: Stage
) -> None:
    stage.noise |= {"night-1": 4.0}
    assert retrain.retrain(recipe_of(), "night-1") == "kept"
    stage.noise |= {"night-2": 2.0}
    # Without a model in service, images that are not new are trained on all the same.
    assert retrain.retrain(recipe_of("retrain.min_metric=1.0"), "night-2") == "kept"
    assert "minimum" in ended(recipe_of(), "night-2").reason
    assert registry_of(recipe_of()).champion() is None


def test_few_new_images_or_identities_are_nothing_new_and_add_up(
    recipe_of: Callable[..., config.Recipe], album: Path, synthetic_images: Path, stage: Stage
) -> None:
    assert retrain.retrain(recipe_of(), "night-1") == "promoted"
    assert retrain.retrain(recipe_of(), "a") == "nothing_new"
    arrive(album, synthetic_images)
    for name, rule in (("b", "min_new_images=17"), ("c", "min_new_identities=3")):
        assert retrain.retrain(recipe_of(f"retrain.{rule}"), name) == "nothing_new"
        assert metrics_of(recipe_of(), name)["icre_retrain_new_images"] == 16
    assert (
        retrain.retrain(recipe_of("retrain.min_new_images=16", "retrain.min_new_identities=2"), "night-2") == "promoted"
    )
    assert len(stage.trained) == 2


# What goes wrong


def test_identities_of_the_frozen_list_are_not_trained_on(
    recipe_of: Callable[..., config.Recipe], album: Path, stage: Stage
) -> None:
    recipe = recipe_of()
    assert retrain.retrain(recipe, "night-1") == "promoted"
    splits = json.loads((album / "split.json").read_text())
    moved = splits["test"].pop()
    splits["train"].append(moved)
    (album / "split.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match="are not among the test images"):
        retrain.retrain(recipe, "night-2")
    data = open_data(recipe)
    with pytest.raises(DataError, match=f"leaked: 1 of 5 .*{moved}"):
        images.refuse_leaked(registry_of(recipe), 1, data.classes)
    assert len(stage.trained) == 1 and ended(recipe, "night-2").outcome == "failed"
    # With a new list the identity may be trained on.
    assert images.freeze(registry_of(recipe), data, recipe, by="a test") == 2
    assert retrain.retrain(recipe, "night-2b") == "promoted"


def test_what_the_model_in_service_learnt_leaks_through_a_warm_start(
    recipe_of: Callable[..., config.Recipe], album: Path, stage: Stage
) -> None:
    recipe = recipe_of("retrain.min_new_images=0")
    assert retrain.retrain(recipe, "night-1") == "promoted"
    splits = json.loads((album / "split.json").read_text())
    splits["test"].append(splits["train"].pop())
    (album / "split.json").write_text(json.dumps(splits))
    data = prepare.run(recipe)
    images.freeze(registry_of(recipe), data, recipe, by="a test")
    with pytest.raises(DataError, match="leaked: 1 of 6"):
        retrain.retrain(recipe, "night-2")
    assert retrain.retrain(config.override(recipe, ["retrain.start=scratch"], where="t"), "night-2b") == "promoted"


def test_a_corrupted_champion_stops_the_tick_until_somebody_rolls_back(
    recipe_of: Callable[..., config.Recipe], album: Path, synthetic_images: Path, stage: Stage
) -> None:
    recipe, registry = recipe_of("retrain.min_new_images=0"), registry_of(recipe_of())
    for name in ("night-1", "night-2"):
        assert retrain.retrain(recipe, name) == "promoted"
    champion = registry.champion()
    assert champion is not None
    (registry.weights(champion).location / "checkpoints" / champion.checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="corrupted") as caught:
        retrain.retrain(recipe, "night-3")
    assert "icre registry rollback tiny --to 1" in caught.value.hint
    assert metrics_of(recipe, "night-3")['icre_retrain_outcome{outcome="failed"}'] == 1
    registry.rollback(to=1, by="a test")
    stage.noise["night-4"] = 0.4
    assert retrain.retrain(recipe, "night-4") == "promoted"


def test_two_ticks_at_once(recipe_of: Callable[..., config.Recipe], stage: Stage) -> None:
    recipe, outcomes = recipe_of(), []
    stage.while_training = lambda: outcomes.append(retrain.retrain(recipe, "night-2"))
    outcomes.append(retrain.retrain(recipe, "night-1"))
    assert outcomes == ["busy", "promoted"] and len(stage.trained) == 1
    assert Journal(registry_of(recipe)).tick("night-2") is None


def test_a_champion_that_changed_meanwhile_was_not_compared_with(
    recipe_of: Callable[..., config.Recipe], stage: Stage
) -> None:
    recipe, registry = recipe_of("retrain.min_new_images=0"), registry_of(recipe_of())
    assert retrain.retrain(recipe, "night-1") == "promoted"
    by_hand = Run(registry.storage / "runs/tiny-tick-night-1")
    stage.while_training = lambda: registry.promote(by_hand, "best", after=1, by="somebody") and None
    assert retrain.retrain(recipe, "night-2") == "kept"
    assert "somebody" in ended(recipe, "night-2").reason
    assert [entry.by for entry in registry.entries()] == ["tick night-1", "somebody"]


def test_a_training_that_fails_ends_the_tick_and_the_next_one_has_a_run_of_its_own(
    recipe_of: Callable[..., config.Recipe], stage: Stage
) -> None:
    recipe = recipe_of()

    def diverge() -> None:
        raise TrainingError("the loss is not finite")

    stage.while_training = diverge
    with pytest.raises(TrainingError):
        retrain.retrain(recipe, "a")
    failed = metrics_of(recipe, "a")
    assert failed['icre_retrain_outcome{outcome="failed"}'] == 1
    assert "icre_retrain_last_success_timestamp_seconds" not in failed
    stage.while_training = lambda: None
    assert retrain.retrain(recipe, "night-1") == "promoted"
    assert stage.trained == ["tiny-tick-night-1"]
    stage.noise |= {"night-3": float("nan")}
    with pytest.raises(TrainingError, match="not finite"):
        retrain.retrain(config.override(recipe, ["retrain.min_new_images=0"], where="t"), "night-3")


def test_a_stop_that_was_asked_for_is_no_attempt_and_others_run_out(
    recipe_of: Callable[..., config.Recipe], stage: Stage
) -> None:
    recipe = recipe_of("retrain.max_attempts=2")

    def raise_it(error: BaseException) -> Callable[[], None]:
        def stop() -> None:
            raise error

        return stop

    for error in [StoppedError("SIGTERM")] * 3 + [StorageError("away")] * 2:
        stage.while_training = raise_it(error)
        with pytest.raises(type(error)):
            retrain.retrain(recipe, "a")
    with pytest.raises(IcreError, match="step train was begun 2 times"):
        retrain.retrain(recipe, "a")
    stage.while_training = lambda: None
    assert retrain.retrain(recipe, "night-1") == "promoted"


def test_images_that_changed_under_an_unfinished_tick_end_it(
    recipe_of: Callable[..., config.Recipe], album: Path, synthetic_images: Path, stage: Stage
) -> None:
    recipe = recipe_of()

    def lose() -> None:
        raise StorageError("away")

    stage.while_training = lose
    with pytest.raises(StorageError):
        retrain.retrain(recipe, "a")
    arrive(album, synthetic_images)
    prepare.run(recipe)
    stage.while_training = lambda: None
    with pytest.raises(DataError, match="prepared again"):
        retrain.retrain(recipe)
    assert retrain.retrain(recipe, "night-1") == "promoted"


def test_a_store_that_goes_away_at_the_promotion(
    recipe_of: Callable[..., config.Recipe], stage: Stage, object_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call fails; the next one promotes, and trains nothing."""
    recipe = recipe_of(f"storage={object_store.url}/away", "retrain.lease_s=3")
    promote = tick.ACTIONS["promote"]

    def without_store(work: tick.Work) -> tick.Facts:
        object_store.kill()
        return promote(work)

    with monkeypatch.context() as patched:
        patched.setenv("AWS_MAX_ATTEMPTS", "1")
        patched.setitem(tick.ACTIONS, "promote", without_store)
        try:
            with pytest.raises(StorageError):
                retrain.retrain(recipe, "night-1")
        finally:
            object_store.restart()
    assert registry_of(recipe).champion() is None and len(stage.trained) == 1
    assert when_free(recipe, "night-1") == "promoted" and len(stage.trained) == 1 and registry_of(recipe).newest() == 1


def test_another_protocol_or_lost_images_do_not_compare(
    recipe_of: Callable[..., config.Recipe], album: Path, stage: Stage
) -> None:
    recipe = recipe_of("retrain.min_new_images=0")
    assert retrain.retrain(recipe, "night-1") == "promoted"
    with pytest.raises(DataError, match="trials 2 is 3 now"):
        retrain.retrain(config.override(recipe, ["evaluation.trials=3"], where="t"))
    identity = json.loads((album / "split.json").read_text())["test"][0]
    lost = next((album / "visible" / identity).iterdir())
    renamed = lost.rename(lost.with_name(lost.stem.partition("_")[0] + "_renamed" + lost.suffix))
    assert retrain.retrain(recipe, "night-2") == "promoted"  # the same picture under another name
    renamed.unlink()
    with pytest.raises(DataError, match="1 of 40 images") as caught:
        retrain.retrain(recipe)
    assert "icre registry freeze" in caught.value.hint and lost.name in caught.value.message


# Parts


def test_rows_of_the_classifier_go_by_name_and_other_networks_are_refused(
    recipe_of: Callable[..., config.Recipe],
) -> None:
    recipe = recipe_of()
    weights = {name: value + 1 for name, value in initial_network(recipe, classes=3).state_dict().items()}
    network = initial_network(recipe, classes=4)
    fresh = network.state_dict()[CLASSIFIER].clone()
    assert carry_over(network, weights, before=["a", "b", "c"], classes=["c", "d", "a", "e"]) == 2
    rows = network.state_dict()[CLASSIFIER]
    assert torch.equal(rows[[0, 2]], weights[CLASSIFIER][[2, 0]]) and torch.equal(rows[[1, 3]], fresh[[1, 3]])
    assert carry_over(network, weights, before=None, classes=["c", "d", "a", "e"]) == 0
    other = initial_network(config.override(recipe, ["components=[icg]"], where="t"), classes=3).state_dict()
    with pytest.raises(WeightsError, match="another network"):
        carry_over(network, other, before=None, classes=["a", "b", "c", "d"])


def test_latencies_are_measured_in_turn_and_tell_a_slow_network() -> None:
    spans = {"slow": 0.02, "fast": 0.0}
    asked: list[str] = []

    class Timed:
        def __init__(self, name: str) -> None:
            self.name = name

        def embed(self, images: torch.Tensor, infrared: torch.Tensor) -> None:
            asked.append(self.name)
            until = time.perf_counter() + spans[self.name]
            while time.perf_counter() < until:
                pass

    found = judge.batch_latencies([Timed("slow"), Timed("fast")], [torch.zeros(2, 3, 4, 4)] * 2)  # type: ignore[list-item]
    assert found[0] >= 20 > found[1]
    assert asked == ["slow", "fast"] * judge.ROUNDS


def test_a_pushgateway_gets_every_outcome(recipe_of: Callable[..., config.Recipe], stage: Stage, gateway: Any) -> None:
    recipe = recipe_of(f"telemetry.pushgateway={gateway.url}")
    stage.while_training = lambda: retrain.retrain(recipe, "night-2") and None
    retrain.retrain(recipe, "night-1")
    (busy_path, busy), (path, promoted) = gateway.got
    assert path == busy_path == "/metrics/job/icre_retrain/model/tiny"
    assert 'icre_retrain_outcome{model="tiny",outcome="busy"} 1.0' in busy
    assert 'icre_retrain_outcome{model="tiny",outcome="promoted"} 1.0' in promoted
    assert "icre_retrain_last_success_timestamp_seconds{" in promoted
    assert "icre_retrain_last_success_timestamp_seconds{" not in busy


@pytest.fixture
def gateway() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            server.got.append((self.path, body))  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.url = [], f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


# The command line


@pytest.mark.parametrize(
    ("outcome", "plain", "with_option"),
    [("promoted", 0, 0), ("kept", 0, 20), ("nothing_new", 0, 21), ("busy", 0, 22), ("failed", 1, 1)],
)
def test_exit_codes_and_the_last_line(
    outcome: Any, plain: int, with_option: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*_: Any) -> Any:
        if outcome == "failed":
            raise DataError("no image", hint="add one")  # exit code 2 elsewhere: here it is no mistake of the command
        return outcome

    monkeypatch.setattr("pipelines.retrain.retrain", told)
    for options, code in (([], plain), (["--exit-code"], with_option)):
        monkeypatch.setattr(sys, "argv", ["icre", "retrain", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
        captured = capsys.readouterr()
        assert captured.out.splitlines()[-1] == NAMES[outcome]
        assert ("hint:" in captured.err) == (outcome == "failed")


def test_a_dry_run_writes_nothing(
    recipe_of: Callable[..., config.Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print(retrain.plan(recipe_of()))
    shown = capsys.readouterr().out
    assert "champion of tiny: none yet" in shown and "| train | 10 |" in shown
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "a b"])
def test_ticks_have_plain_names(recipe_of: Callable[..., config.Recipe], name: str) -> None:
    with pytest.raises(UserError, match="--tick"):
        retrain.retrain(recipe_of(), name)


def test_settings_are_checked() -> None:
    for wrong in ({"metric": "mAp"}, {"confidence": 1.0}, {"floor": 2}, {"lease_s": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Retrain(**wrong)  # type: ignore[arg-type]
    assert challenger.run_of(config.Recipe(name="x"), "t").name == "x-tick-t"
