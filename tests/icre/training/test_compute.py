"""Precision, memory layout and compilation change how a step is computed, not what it computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icre.config import Recipe
from icre.losses.objective import Objective
from icre.model.network import ICRENetwork
from icre.training import compute
from icre.training.checkpoint import (
    Progress,
    load_network,
    load_optimizer,
    take_snapshot,
    write_checkpoint,
)
from icre.training.optimizer import build_optimizer
from icre.training.step import train_step
from tests.icre.training.tiny_training import CLASSES, Pixels, everything_in, take_steps, tiny_network, tiny_recipe

CPU = torch.device("cpu")


def begin(recipe: Recipe) -> tuple[ICRENetwork, torch.optim.Optimizer]:
    network = tiny_network(recipe)
    compute.arrange(network, recipe.compute)
    return network, build_optimizer(network, recipe.optimizer)


def first_step(recipe: Recipe) -> tuple[dict[str, float], Tensor]:
    """Loss terms and the whole gradient of a first step."""
    network, optimizer = begin(recipe)
    terms = train_step(network, optimizer, Pixels.random().batch(recipe, step=0), recipe=recipe, epoch=0)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return terms, gradient


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().double().norm() / expected.detach().double().norm().clamp(min=1e-6))


def dtypes_seen(recipe: Recipe) -> tuple[dict[str, torch.dtype], dict[str, Any]]:
    """Number format of every layer's output in a step, and of what the objective was given."""
    network, optimizer = begin(recipe)
    seen: dict[str, torch.dtype] = {}

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen[name] = output.dtype

    for name, module in network.named_modules():
        module.register_forward_hook(partial(look, name))
    given: dict[str, Any] = {}
    plain = Objective.__call__

    def spy(
        objective: Objective, logits: Tensor, labels: Tensor, features: Tensor, *rest: Any, **options: Any
    ) -> dict[str, Tensor]:
        terms = plain(objective, logits, labels, features, *rest, **options)
        given.update(features=features.dtype, autocast=torch.is_autocast_enabled("cpu"))
        given.update({name: term.dtype for name, term in terms.items()})
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "__call__", spy)
        train_step(network, optimizer, Pixels.random().batch(recipe, step=0), recipe=recipe, epoch=0)
    return seen, given


# Precision


def test_convolutions_are_short_and_pooling_neck_and_losses_are_float32() -> None:
    seen, given = dtypes_seen(tiny_recipe(compute={"precision": "bf16"}))
    for name in ("backbone.stem.visible.conv1", "backbone.layer4.1.conv2", "mpfr.fuse", "sdce.deep"):
        assert seen[name] == torch.bfloat16, name
    assert seen["head.pool"] == seen["head.neck"] == torch.float32
    assert given.pop("autocast") is False
    assert set(given) >= {"features", "loss", "id", "icg_pull", "icg_push"}
    assert set(given.values()) == {torch.float32}


def test_bf16_gives_the_gradient_to_its_own_rounding() -> None:
    """Eight binary digits. Kinks (ReLU, max-pooling) that a rounded value crosses are most of the error."""
    expected, gradient = first_step(tiny_recipe())
    found, short = first_step(tiny_recipe(compute={"precision": "bf16"}))
    assert found == pytest.approx(expected, rel=0.02)
    assert 0 < relative(short, gradient) < 0.5


# Memory layout


def test_channels_last_reaches_the_convolutions() -> None:
    recipe = tiny_recipe(compute={"channels_last": True})
    network, _ = begin(recipe)
    wrong: list[str] = []

    def look(name: str, conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for tensor in (*inputs, conv.weight):
            if not tensor.is_contiguous(memory_format=torch.channels_last):
                wrong.append(name)

    for name, module in network.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(partial(look, name))
    optimizer = build_optimizer(network, recipe.optimizer)
    take_steps(network, optimizer, recipe, range(1))
    assert wrong == []


def test_channels_last_changes_no_number() -> None:
    # In float32 the order of sums moves a few values over a kink; in float64 none.
    weights = []
    for flag in (True, False):
        with everything_in("float64"):
            recipe = tiny_recipe(compute={"channels_last": flag})
            network, optimizer = begin(recipe)
            take_steps(network, optimizer, recipe, range(2))
        weights.append(network.state_dict())
    for name, value in weights[1].items():
        assert relative(weights[0][name], value) < 1e-11, name


@pytest.mark.parametrize("optimizer", [{}, {"name": "adam", "lr": 1e-3, "backbone_lr": 1e-3}])
@pytest.mark.parametrize("then", [True, False])
def test_a_checkpoint_goes_on_in_another_layout(tmp_path: Path, then: bool, optimizer: dict[str, Any]) -> None:
    """The momentum of each weight stays that weight's, though its place in memory changes."""
    first, second = (tiny_recipe(compute={"channels_last": flag}, optimizer=optimizer) for flag in (not then, then))
    network, optim = begin(first)
    take_steps(network, optim, first, range(1))
    progress = Progress(step=1, best_metric=None, best_step=None)
    write_checkpoint(tmp_path, take_snapshot(network=network, optimizer=optim, progress=progress, classes=CLASSES))
    resumed, resumed_optim = begin(second)
    load_network(resumed, tmp_path)
    load_optimizer(resumed_optim, tmp_path)
    states = (optim.state_dict()["state"], resumed_optim.state_dict()["state"])
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
    for model, o in ((network, optim), (resumed, resumed_optim)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        o.step()
    # Equal gradients, so the update is the momentum's alone.
    assert all(torch.allclose(p, network.get_parameter(name)) for name, p in resumed.named_parameters())


# Compilation


# The compiler looks at .grad of tensors that have none, inside a filter that the suite's own setting overrides.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_steps_equal_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's graphs of forward and backward, run without its code generator, which takes minutes on a CPU."""
    monkeypatch.setattr(ICRENetwork, "compile", partial_method(ICRENetwork.compile, backend="aot_eager"))
    monkeypatch.setattr(compute, "_compiler_failure", lambda device: None)
    recipe = tiny_recipe()
    plain, plain_optimizer = begin(recipe)
    compiled, optimizer = begin(recipe)
    names = list(compiled.state_dict())
    assert compute.compile_network(compiled, CPU)
    assert list(compiled.state_dict()) == names
    found, expected = (
        take_steps(network, optim, recipe, range(2))
        for network, optim in ((compiled, optimizer), (plain, plain_optimizer))
    )
    for terms, reference in zip(found, expected, strict=True):
        assert terms == pytest.approx(reference, rel=1e-4)
    for name, value in compiled.state_dict().items():
        assert relative(value, plain.state_dict()[name]) < 1e-3, name


def partial_method(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    def method(self: nn.Module) -> Any:
        return function(self, **settings)

    return method


BROKEN = """
import warnings
import torch
from icre.training import compute
from tests.icre.training.tiny_training import take_steps, tiny_network, tiny_recipe
from icre.training.optimizer import build_optimizer
torch.set_num_threads(1)
recipe = tiny_recipe(compute={"compile": True})
network = tiny_network(recipe)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert not compute.compile_network(network, torch.device("cpu"))
[reason] = [str(w.message) for w in caught if "compute.compile" in str(w.message)]
print(reason)
print(take_steps(network, build_optimizer(network, recipe.optimizer), recipe, range(1))[0]["loss"])
"""


def test_a_broken_compiler_is_named_and_training_goes_on(tmp_path: Path) -> None:
    compiler = str(tmp_path / "no-such-compiler")
    environment = {
        **os.environ,
        "CXX": compiler,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    done = subprocess.run([sys.executable, "-c", BROKEN], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *reason, loss = done.stdout.strip().splitlines()
    assert compiler in "".join(reason)
    assert float(loss) == pytest.approx(first_step(tiny_recipe())[0]["loss"], rel=1e-5)
