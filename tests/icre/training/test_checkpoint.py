from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from icre.config import Recipe
from icre.errors import WeightsError
from icre.model.network import ICRENetwork
from icre.training.checkpoint import (
    META,
    NETWORK,
    OPTIMIZER,
    Progress,
    load_network,
    load_optimizer,
    progress_of,
    read_meta,
    take_snapshot,
    write_checkpoint,
)
from icre.training.optimizer import build_optimizer, set_learning_rate
from tests.icre.training.tiny_training import CLASSES, take_steps, tiny_network, tiny_recipe

ADAM = {"name": "adam", "lr": 1e-3, "backbone_lr": 1e-3}
PROGRESS = Progress(step=2, best_metric=0.1 + 0.2, best_step=1)


def begin(recipe: Recipe) -> tuple[ICRENetwork, torch.optim.Optimizer]:
    network = tiny_network(recipe)
    return network, build_optimizer(network, recipe.optimizer)


def write(folder: Path, recipe: Recipe) -> tuple[ICRENetwork, torch.optim.Optimizer]:
    """A checkpoint after two steps."""
    network, optimizer = begin(recipe)
    take_steps(network, optimizer, recipe, range(2))
    write_checkpoint(folder, take_snapshot(network=network, optimizer=optimizer, progress=PROGRESS, classes=CLASSES))
    return network, optimizer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint") / "new" / "folder"
    write(folder, tiny_recipe())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(written: dict[str, bytes], tmp_path: Path) -> Path:
    """A copy of it."""
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


@pytest.mark.parametrize("optimizer_settings", [{}, ADAM])
def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path, optimizer_settings: dict[str, Any]) -> None:
    recipe = tiny_recipe(optimizer=optimizer_settings)
    network, optimizer = write(tmp_path, recipe)

    other = tiny_recipe(optimizer=optimizer_settings, seed=99)
    resumed, resumed_optimizer = begin(other)
    assert not same(resumed.state_dict(), network.state_dict())
    assert progress_of(read_meta(tmp_path)) == PROGRESS
    load_network(resumed, tmp_path)
    load_optimizer(resumed_optimizer, tmp_path)
    assert same(resumed.state_dict(), network.state_dict())

    for model, optim in ((network, optimizer), (resumed, resumed_optimizer)):
        set_learning_rate(optim, 0.5)
        take_steps(model, optim, recipe, range(2, 4))
    assert same(resumed.state_dict(), network.state_dict())
    states = [optim.state_dict()["state"] for optim in (optimizer, resumed_optimizer)]
    assert states[0].keys() == states[1].keys()
    assert all(same(states[0][key], states[1][key]) for key in states[0])


def test_the_optimizer_state_matters(folder: Path) -> None:
    # Otherwise the test above would pass with a state that is never loaded.
    recipe = tiny_recipe()
    (kept, kept_optimizer), (forgot, forgot_optimizer) = begin(recipe), begin(recipe)
    load_network(kept, folder)
    load_network(forgot, folder)
    load_optimizer(kept_optimizer, folder)
    take_steps(kept, kept_optimizer, recipe, range(2, 3))
    take_steps(forgot, forgot_optimizer, recipe, range(2, 3))
    assert not same(kept.state_dict(), forgot.state_dict())


def test_progress_before_any_validation(tmp_path: Path) -> None:
    network, optimizer = begin(tiny_recipe())
    nothing = Progress(step=0, best_metric=None, best_step=None)
    write_checkpoint(tmp_path, take_snapshot(network=network, optimizer=optimizer, progress=nothing, classes=CLASSES))
    meta = read_meta(tmp_path)
    assert progress_of(meta) == nothing
    assert meta["classes"] == CLASSES


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", [NETWORK, OPTIMIZER])
@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-1], lambda data: b"", lambda data: data + b"\0"])
def test_damaged_files_are_found(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(WeightsError, match=name):
        read_meta(folder)


@pytest.mark.parametrize("name", [NETWORK, OPTIMIZER, META])
def test_missing_files_are_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        read_meta(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        read_meta(tmp_path / "step-00000007")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"7", b"null", b"{}", b'{"files": 3}', b'{"files": ["model.safetensors"]}', b"\xff\xfe{}"],
)
def test_metadata_that_is_not_a_checkpoint(folder: Path, text: bytes) -> None:
    (folder / META).write_bytes(text)
    with pytest.raises(WeightsError, match=META):
        read_meta(folder)


def test_metadata_is_the_last_file(tmp_path: Path, folder: Path) -> None:
    # A writer that dies half-way over an older checkpoint leaves one that is refused, not a mixture.
    other = tmp_path / "other"
    write(other, tiny_recipe(seed=8))
    (folder / NETWORK).write_bytes((other / NETWORK).read_bytes())
    with pytest.raises(WeightsError):
        read_meta(folder)


@pytest.mark.parametrize("settings", [{"components": []}, {"components": ["mpfr"]}, {"model": {"dim": 16}}])
def test_another_network_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    network, _ = begin(tiny_recipe(**settings))
    with pytest.raises(WeightsError, match=NETWORK):
        load_network(network, folder)


def test_a_file_that_is_no_network_is_refused(folder: Path) -> None:
    (folder / NETWORK).write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match=NETWORK):
        load_network(tiny_network(tiny_recipe()), folder)


def test_nothing_in_the_files_is_code(folder: Path) -> None:
    assert set(load_file(folder / NETWORK)) == set(tiny_network(tiny_recipe()).state_dict())
    assert torch.load(folder / OPTIMIZER, weights_only=True)["state"]
    json.loads((folder / META).read_text())


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_the_optimizer_file_is_not_run(folder: Path) -> None:
    trace = folder / "trace"
    torch.save({"state": Bomb(trace), "param_groups": []}, folder / OPTIMIZER)
    with pytest.raises(pickle.UnpicklingError):
        load_optimizer(begin(tiny_recipe())[1], folder)
    assert not trace.exists()
