"""N workers with a batch of B / N each equal one worker with a batch of B (docs/method.md section 5, check 5).

The same training runs in 1, 2, 3 and 4 real processes over gloo, in float32 as users run it, and in float64, where
rounding is a billion times smaller: a difference that is more than rounding would stay.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from icre.training import distributed
from icre.training.optimizer import build_optimizer
from tests.icre.training.tiny_training import everything_in, take_steps, tiny_network, tiny_recipe

STEPS = 3
WORLDS = (2, 3, 4)  # three take 2, 1 and 1 of the four identities of a batch
# Rows of each worker: unequal, and none at all on one of the four.
ROWS = {2: (1, 3), 3: (4, 1, 2), 4: (2, 0, 5, 1)}
SHAPES = ((3,), (3, 4, 2))

# Relative to a tensor's norm. Sums in another order, through 30 layers and back, cost about 100 units of rounding in
# the worst of the gradients, and three steps keep it so: measured 1e-5 in float32 (unit 6e-8), 1e-13 in float64
# (unit 1e-16). Ten times and more is left for other machines; anything but rounding would exceed both.
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}

pytestmark = pytest.mark.timeout(180)


def train(rank: int, world_size: int) -> dict[str, Any]:
    """What a worker sees: loss terms of every step, gradients after the first, everything after the last."""
    recipe = tiny_recipe()
    network = tiny_network(recipe)
    model: nn.Module = network
    if world_size > 1:
        distributed.synchronise_batch_norm(network)
        model = DistributedDataParallel(network, forward_sync_buffers=False)
    optimizer = build_optimizer(network, recipe.optimizer)
    cut = {"rank": rank, "world_size": world_size}
    terms = take_steps(model, optimizer, recipe, range(1), **cut)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    terms += take_steps(model, optimizer, recipe, range(1, STEPS), **cut)
    return {"terms": terms, "gradients": gradients, "state": network.state_dict()}


def rows_of(world_size: int, shape: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Input and upstream gradient of every worker, far from mean 0."""
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(2, n, *shape, generator=generator, dtype=torch.float64) * 3 + 20 for n in ROWS[world_size]]
    return [x for x, _ in draws], [dy for _, dy in draws]


def batch_norm_layer(shape: tuple[int, ...]) -> nn.Module:
    layer = nn.BatchNorm1d(3) if len(shape) == 1 else nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
        layer.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    return layer


def normalise(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Any]:
    """Two passes, so that the running statistics are used; the gradients are of the second."""
    for _ in range(2):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
    state = layer.state_dict()
    return {
        "y": y.detach(),
        "dx": leaf.grad,
        "dw": layer.weight.grad,
        "db": layer.bias.grad,
        "state": state,
        "eval": layer.eval()(x).detach(),
    }


def batch_norm(rank: int, world_size: int) -> list[dict[str, Any]]:
    results = []
    for shape in SHAPES:
        xs, dys = rows_of(world_size, shape)
        layer = distributed.synchronise_batch_norm(nn.Sequential(batch_norm_layer(shape)))[0]
        results.append(normalise(layer, xs[rank], dys[rank]))
    return results


def loss_of_all(x: Tensor) -> Tensor:
    """A loss in which every row meets every other."""
    return (x @ x.T).sin().sum() + (x.prod(dim=1) * torch.arange(len(x))).sum()


def gathering(rank: int, world_size: int) -> dict[str, Any]:
    x = (torch.arange(6.0).view(2, 3) / 7 + rank).requires_grad_()
    gathered = distributed.gather_with_gradient(x.T.contiguous().T)
    ((rank + 1) * loss_of_all(gathered)).backward()
    return {
        "x": x.detach(),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "labels": distributed.gather(torch.tensor([2 * rank, 2 * rank + 1])),
        "flags": distributed.gather(torch.tensor([rank % 2 == 0, True])),
    }


def broadcasting(rank: int) -> dict[str, Tensor]:
    """Running statistics that differ on each worker, after those of worker 0 were taken over."""
    layer = nn.BatchNorm1d(3)
    layer(torch.randn(5, 3, generator=torch.Generator().manual_seed(rank)))
    distributed.broadcast_buffers(nn.Sequential(layer))
    return layer.state_dict()


def worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    result: dict[str, Any] = {}
    for dtype in TOLERANCE:
        with everything_in(dtype):
            result[dtype] = train(rank, world_size)
    if world_size > 1:
        with everything_in("float64"):
            result |= {"batch_norm": batch_norm(rank, world_size), "gather": gathering(rank, world_size)}
            result["buffers"] = broadcasting(rank)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """Results of every worker of a world of the given size; each world is started once."""
    known: dict[int, list[dict[str, Any]]] = {}

    def results(world_size: int) -> list[dict[str, Any]]:
        if world_size not in known:
            folder = tmp_path_factory.mktemp(f"world-{world_size}")
            mp.spawn(worker, (world_size, str(folder)), nprocs=world_size)
            known[world_size] = [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
        return known[world_size]

    return results


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """||a - b|| / ||b|| of each tensor; the norm of b counts as at least a millionth of the largest one's."""
    assert found.keys() == expected.keys()
    norms = {name: float(value.double().norm()) for name, value in expected.items()}
    floor = 1e-6 * max(norms.values())
    return {
        name: float((found[name].double() - expected[name].double()).norm()) / max(norms[name], floor)
        for name in expected
    }


def worst(distances: dict[str, float]) -> tuple[float, str]:
    return max((value, name) for name, value in distances.items())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("world_size", WORLDS)
def test_workers_equal_one_worker(run: Callable[[int], list[dict[str, Any]]], world_size: int, dtype: str) -> None:
    [one] = (result[dtype] for result in run(1))
    for many in (result[dtype] for result in run(world_size)):
        for found, expected in zip(many["terms"], one["terms"], strict=True):
            assert found == pytest.approx(expected, rel=TOLERANCE[dtype])
        for tensors in ("gradients", "state"):
            assert worst(distance(many[tensors], one[tensors])) < (TOLERANCE[dtype], "")


def test_the_compared_training_reaches_every_parameter(run: Callable[[int], list[dict[str, Any]]]) -> None:
    [one] = run(1)
    frozen = {"head.neck.bias"}
    parameters = {name for name, _ in tiny_network(tiny_recipe()).named_parameters()} - frozen
    moved = {name for name, gradient in one["float64"]["gradients"].items() if gradient.abs().max() > 1e-12}
    assert moved == parameters
    assert all(terms["icg_pull"] > 0 and terms["icg_push"] > 0 for terms in one["float64"]["terms"])


@pytest.mark.parametrize("world_size", WORLDS)
def test_all_workers_hold_the_same_network(run: Callable[[int], list[dict[str, Any]]], world_size: int) -> None:
    first, *others = (result["float32"]["state"] for result in run(world_size))
    for other in others:
        assert [name for name, value in first.items() if not torch.equal(value, other[name])] == []


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_batch_norm_of_unequal_cuts_equals_batch_norm_of_the_whole(
    run: Callable[[int], list[dict[str, Any]]], world_size: int, case: int
) -> None:
    shape = SHAPES[case]
    xs, dys = rows_of(world_size, shape)
    expected = normalise(batch_norm_layer(shape).double(), torch.cat(xs), torch.cat(dys))
    found = [result["batch_norm"][case] for result in run(world_size)]
    for key in ("y", "dx", "eval"):
        torch.testing.assert_close(torch.cat([part[key] for part in found]), expected[key], rtol=1e-10, atol=1e-10)
    for key in ("dw", "db"):
        torch.testing.assert_close(sum(part[key] for part in found), expected[key], rtol=1e-10, atol=1e-10)
    for part in found:
        assert part["state"].keys() == expected["state"].keys()
        for name, value in expected["state"].items():
            torch.testing.assert_close(part["state"][name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("world_size", WORLDS)
def test_gathering_keeps_the_order_of_the_ranks_and_sums_the_gradients(
    run: Callable[[int], list[dict[str, Any]]], world_size: int
) -> None:
    found = [result["gather"] for result in run(world_size)]
    everything = torch.cat([part["x"] for part in found]).requires_grad_()
    # Worker r used (r + 1) times the loss.
    (sum(range(1, world_size + 1)) * loss_of_all(everything)).backward()
    torch.testing.assert_close(torch.cat([part["gradient"] for part in found]), everything.grad)
    for part in found:
        assert torch.equal(part["gathered"], everything.detach())
        assert part["labels"].tolist() == list(range(2 * world_size))
        assert part["flags"].tolist() == [flag for rank in range(world_size) for flag in (rank % 2 == 0, True)]


def test_without_a_process_group_everything_is_the_identity() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert distributed.world_size() == 1
    assert distributed.gather_with_gradient(x) is x
    assert torch.equal(distributed.gather(x), x)
    layer = distributed.synchronise_batch_norm(nn.Sequential(batch_norm_layer((3,))))[0]
    assert torch.equal(layer(x), batch_norm_layer((3,))(x))


def test_synchronised_network_keeps_its_tensors_names_and_frozen_bias() -> None:
    network = tiny_network(tiny_recipe())
    parameters = dict(network.named_parameters())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    distributed.synchronise_batch_norm(network)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert all(parameters[name] is parameter for name, parameter in network.named_parameters())
    assert not network.head.neck.bias.requires_grad
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_all_workers_validate_with_the_running_statistics_of_worker_0(
    run: Callable[[int], list[dict[str, Any]]],
) -> None:
    first, second = run(2)
    fresh = nn.BatchNorm1d(3).state_dict()
    assert not torch.equal(first["buffers"]["running_mean"], fresh["running_mean"].double())
    assert all(torch.equal(second["buffers"][name], value) for name, value in first["buffers"].items())
