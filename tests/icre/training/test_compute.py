"""Precision, memory layout and compilation change how a step is computed, not what it computes."""

from __future__ import annotations

import json
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
from icre.model.network import ICRENetwork
from icre.training import compute, step
from icre.training.checkpoint import (
    Progress,
    load_network,
    load_optimizer,
    load_scaler,
    read_meta,
    take_snapshot,
    write_checkpoint,
)
from icre.training.optimizer import build_optimizer
from icre.training.step import train_step
from tests.icre.training.tiny_training import CLASSES, Pixels, everything_in, take_steps, tiny_network, tiny_recipe

CPU = torch.device("cpu")


def begin(recipe: Recipe) -> tuple[ICRENetwork, torch.optim.Optimizer, torch.amp.GradScaler]:
    network = tiny_network(recipe)
    compute.arrange(network, recipe.compute)
    optimizer = build_optimizer(network, recipe.optimizer, precision=recipe.compute.precision)
    return network, optimizer, compute.gradient_scaler(recipe.compute, CPU)


def first_step(recipe: Recipe) -> tuple[dict[str, float], Tensor]:
    """Loss terms and the whole gradient of a first step."""
    network, optimizer, scaler = begin(recipe)
    terms = train_step(network, optimizer, Pixels.random().batch(recipe, step=0), recipe=recipe, epoch=0, scaler=scaler)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return terms, gradient


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().double().norm() / expected.detach().double().norm().clamp(min=1e-6))


def dtypes_seen(recipe: Recipe) -> tuple[dict[str, torch.dtype], dict[str, Any]]:
    """Number format of every layer's output in a step, and of what the objective was given."""
    network, optimizer, scaler = begin(recipe)
    seen: dict[str, torch.dtype] = {}

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen[name] = output.dtype

    for name, module in network.named_modules():
        module.register_forward_hook(partial(look, name))
    given: dict[str, Any] = {}
    objective = step.objective

    def spy(logits: Tensor, labels: Tensor, features: Tensor, *rest: Any, **settings: Any) -> dict[str, Tensor]:
        terms = objective(logits, labels, features, *rest, **settings)
        given.update(features=features.dtype, autocast=torch.is_autocast_enabled("cpu"))
        given.update({name: term.dtype for name, term in terms.items()})
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "objective", spy)
        train_step(network, optimizer, Pixels.random().batch(recipe, step=0), recipe=recipe, epoch=0, scaler=scaler)
    return seen, given


# Precision


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_convolutions_are_short_and_pooling_neck_and_losses_are_float32(precision: str, dtype: torch.dtype) -> None:
    seen, given = dtypes_seen(tiny_recipe(compute={"precision": precision}))
    for name in ("backbone.stem.visible.conv1", "backbone.layer4.1.conv2", "mpfr.fuse", "sdce.deep"):
        assert seen[name] == dtype, name
    assert seen["head.pool"] == seen["head.neck"] == torch.float32
    assert given.pop("autocast") is False
    assert set(given) >= {"features", "loss", "id", "icg_pull", "icg_push"}
    assert set(given.values()) == {torch.float32}


def test_short_formats_give_the_gradient_to_their_own_rounding() -> None:
    """Numbers of 8 and of 11 binary digits. Kinks (ReLU, max-pooling) that a rounded value crosses are most of the
    error, which therefore falls with the root of the rounding: here by 2.2 where sqrt(2 ** 3) is 2.8.
    """
    expected, gradient = first_step(tiny_recipe())
    errors = {}
    for precision in ("bf16", "fp16"):
        found, short = first_step(tiny_recipe(compute={"precision": precision}))
        assert found == pytest.approx(expected, rel=0.02)
        errors[precision] = relative(short, gradient)
    assert 0 < errors["fp16"] < 0.6 * errors["bf16"] < 0.6 * 0.5, errors


def test_clipping_sees_gradients_without_the_scale_of_fp16() -> None:
    _, gradient = first_step(tiny_recipe(compute={"precision": "fp16"}, optimizer={"max_grad_norm": 0.25}))
    assert float(gradient.norm()) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("optimizer", [{}, {"name": "adam", "lr": 1e-3, "backbone_lr": 1e-3}])
def test_an_overflow_skips_the_update_and_lowers_the_scale(optimizer: dict[str, Any]) -> None:
    recipe = tiny_recipe(compute={"precision": "fp16"}, optimizer=optimizer)
    network, optim, scaler = begin(recipe)
    # Gradients of this scale are above 65504, the largest number of the format.
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    batch = Pixels.random().batch(recipe, step=0)
    train_step(network, optim, batch, recipe=recipe, epoch=0, scaler=scaler)
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    # The step after it starts from a momentum that knows nothing of the skipped one.
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})
    train_step(network, optim, batch, recipe=recipe, epoch=0, scaler=scaler)
    fresh, fresh_optim, fresh_scaler = begin(recipe)
    fresh.load_state_dict(before, strict=False)
    fresh_scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})
    train_step(fresh, fresh_optim, batch, recipe=recipe, epoch=0, scaler=fresh_scaler)
    assert all(torch.equal(p, fresh.get_parameter(name)) for name, p in network.named_parameters())


def test_fp16_without_a_scaler_is_refused() -> None:
    recipe = tiny_recipe(compute={"precision": "fp16"})
    network, optimizer, _ = begin(recipe)
    with pytest.raises(ValueError, match="scaler"):
        train_step(network, optimizer, Pixels.random().batch(recipe, step=0), recipe=recipe, epoch=0)


def test_the_scale_survives_a_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(compute={"precision": "fp16"})
    network, optimizer, scaler = begin(recipe)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    progress = Progress(step=0, best_metric=None, best_step=None)
    write_checkpoint(
        tmp_path, take_snapshot(network=network, optimizer=optimizer, progress=progress, classes=CLASSES, scaler=scaler)
    )
    meta = read_meta(tmp_path)
    json.dumps(meta)
    resumed = compute.gradient_scaler(recipe.compute, CPU)
    assert resumed.state_dict() != scaler.state_dict()
    load_scaler(resumed, meta)
    assert resumed.state_dict() == scaler.state_dict()
    # A checkpoint of fp32 has no scale, and fp32 takes none.
    load_scaler(compute.gradient_scaler(tiny_recipe().compute, CPU), meta)
    load_scaler(resumed, {name: value for name, value in meta.items() if name != "scaler"})
    assert resumed.state_dict() == scaler.state_dict()


# Memory layout


def test_channels_last_reaches_the_convolutions() -> None:
    recipe = tiny_recipe(compute={"channels_last": True})
    network, _, _ = begin(recipe)
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
            network, optimizer, _ = begin(recipe)
            take_steps(network, optimizer, recipe, range(2))
        weights.append(network.state_dict())
    for name, value in weights[1].items():
        assert relative(weights[0][name], value) < 1e-11, name


@pytest.mark.parametrize("optimizer", [{}, {"name": "adam", "lr": 1e-3, "backbone_lr": 1e-3}])
@pytest.mark.parametrize("then", [True, False])
def test_a_checkpoint_goes_on_in_another_layout(tmp_path: Path, then: bool, optimizer: dict[str, Any]) -> None:
    """The momentum of each weight stays that weight's, though its place in memory changes."""
    first, second = (tiny_recipe(compute={"channels_last": flag}, optimizer=optimizer) for flag in (not then, then))
    network, optim, _ = begin(first)
    take_steps(network, optim, first, range(1))
    progress = Progress(step=1, best_metric=None, best_step=None)
    write_checkpoint(tmp_path, take_snapshot(network=network, optimizer=optim, progress=progress, classes=CLASSES))
    resumed, resumed_optim, _ = begin(second)
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
    plain, plain_optimizer, _ = begin(recipe)
    compiled, optimizer, _ = begin(recipe)
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
