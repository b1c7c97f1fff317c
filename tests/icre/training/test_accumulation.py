"""A batch in parts gives the step of as many workers without synchronised batch norm, with one update."""

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

from icre.config import Recipe
from icre.training import compute, distributed
from icre.training.accumulation import backward_of_parts, outputs_of_parts
from icre.training.optimizer import build_optimizer
from icre.training.step import Batch, augmented, loss_terms, train_step
from tests.icre.training.tiny_training import Pixels, everything_in, tiny_network, tiny_recipe

STEPS = 2
LOSSES: dict[str, dict[str, Any]] = {
    "icg": {},
    "icg and triplet": {"loss": {"triplet": "weighted_regularized"}},
    "identity": {"components": ["mpfr", "sdce"]},
}

pytestmark = pytest.mark.timeout(180)


def part(batch: Batch, number: int, parts: int) -> Batch:
    """The batch's rows are ordered identity by identity; a worker of this test takes a run of them."""
    return Batch(*(column.chunk(parts)[number] for column in batch))


def train(recipe: Recipe, *, rank: int = 0, world_size: int = 1, sync: bool = False) -> dict[str, Any]:
    """Loss terms of every step, gradients after the first, everything after the last."""
    network = tiny_network(recipe)
    compute.arrange(network, recipe.compute)
    model: nn.Module = network
    if sync:
        distributed.synchronise_batch_norm(network)
    if world_size > 1:
        model = DistributedDataParallel(network, forward_sync_buffers=False)
    optimizer = build_optimizer(network, recipe.optimizer)
    terms, gradients = [], {}
    for step in range(STEPS):
        batch = part(Pixels.random().batch(recipe, step=step), rank, world_size)
        terms.append(train_step(model, optimizer, batch, recipe=recipe, epoch=0))
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    buffers = dict(network.named_buffers())
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    return {"terms": terms, "gradients": gradients, "parameters": parameters, "buffers": buffers}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    result: dict[str, Any] = {}
    with everything_in("float64"):
        for name, settings in LOSSES.items():
            result[name] = train(tiny_recipe(**settings), rank=rank, world_size=2)
        both = tiny_recipe(compute={"micro_batches": 2})
        result["two parts each"] = train(both, rank=rank, world_size=2)
        for name, flag in (("kept", False), ("recomputed", True)):
            recipe = tiny_recipe(compute={"checkpoint_activations": flag})
            result[name] = train(recipe, rank=rank, world_size=2, sync=True)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two-workers")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one_worker() -> Callable[..., dict[str, Any]]:
    def run(**settings: Any) -> dict[str, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with everything_in("float64"):
            result = train(tiny_recipe(**settings))
        torch.set_num_threads(threads)
        return result

    return run


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 1e-11) -> None:
    """Relative to each tensor's norm, which counts as at least a millionth of the largest."""
    for terms, reference in zip(found["terms"], expected["terms"], strict=True):
        # They pass through float32 on their way out of a step.
        assert terms == pytest.approx(reference, rel=1e-6)
    for kind in ("gradients", "parameters"):
        assert found[kind].keys() == expected[kind].keys()
        floor = 1e-6 * max(float(value.norm()) for value in expected[kind].values())
        for name, value in expected[kind].items():
            difference = float((found[kind][name] - value).norm())
            assert difference <= tolerance * max(float(value.norm()), floor), (kind, name)


# Against the other way to cut a batch


@pytest.mark.parametrize("name", LOSSES)
def test_two_parts_equal_two_workers(
    two_workers: list[dict[str, Any]], one_worker: Callable[..., dict[str, Any]], name: str
) -> None:
    parts = one_worker(compute={"micro_batches": 2}, **LOSSES[name])
    assert_same(parts, two_workers[0][name])


def test_two_parts_on_two_workers_equal_four_parts(
    two_workers: list[dict[str, Any]], one_worker: Callable[..., dict[str, Any]]
) -> None:
    assert_same(two_workers[0]["two parts each"], one_worker(compute={"micro_batches": 4}))


def test_parts_are_not_the_whole_because_batch_norm_sees_the_part(one_worker: Callable[..., dict[str, Any]]) -> None:
    # Otherwise the tests above would hold for a step that ignores the setting.
    with pytest.raises(AssertionError):
        assert_same(one_worker(compute={"micro_batches": 2}), one_worker(), tolerance=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_one_part_in_two_passes_is_the_plain_step_bit_for_bit(name: str) -> None:
    recipe = tiny_recipe(**LOSSES[name])
    batch = Pixels.random().batch(recipe, step=0)
    plain, accumulated = tiny_network(recipe), tiny_network(recipe)
    optimizer = build_optimizer(plain, recipe.optimizer)
    train_step(plain, optimizer, batch, recipe=recipe, epoch=0)
    images = augmented(batch, recipe, epoch=0)
    output = outputs_of_parts(accumulated, accumulated, images, batch.infrared, 1)
    loss_terms(output, batch, recipe)["loss"].backward()
    backward_of_parts(accumulated, accumulated, images, batch.infrared, 1, output)
    for name_, p in plain.named_parameters():
        gradient = accumulated.get_parameter(name_).grad
        assert (p.grad is None) == (gradient is None), name_
        assert p.grad is None or torch.equal(p.grad, gradient), name_
    for name_, buffer in plain.named_buffers():
        assert torch.equal(buffer, accumulated.get_buffer(name_)), name_


def test_running_statistics_count_each_part_once() -> None:
    recipe = tiny_recipe(compute={"micro_batches": 2})
    batch = Pixels.random().batch(recipe, step=0)
    network, reference = tiny_network(recipe), tiny_network(recipe)
    train_step(network, build_optimizer(network, recipe.optimizer), batch, recipe=recipe, epoch=0)
    with torch.no_grad():
        for rows, mask in zip(augmented(batch, recipe, epoch=0).chunk(2), batch.infrared.chunk(2), strict=True):
            reference(rows, mask)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer, msg=name)


# Recomputation, which shares the rule that a second pass does not count


def saved_bytes(run: Callable[[], object], network: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights, each storage once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # while it lives, no place in memory is given out twice
    weights = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    assert kept is not None
    return sum(size for place, size in sizes.items() if place not in weights)


def assert_bitwise(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["terms"] == expected["terms"]
    for kind in ("gradients", "parameters", "buffers"):
        assert found[kind].keys() == expected[kind].keys()
        assert [name for name, value in expected[kind].items() if not torch.equal(found[kind][name], value)] == []


def test_recomputed_activations_change_no_bit(one_worker: Callable[..., dict[str, Any]]) -> None:
    assert_bitwise(one_worker(compute={"checkpoint_activations": True}), one_worker())


def test_recomputed_activations_change_no_bit_on_two_workers(two_workers: list[dict[str, Any]]) -> None:
    for results in two_workers:
        assert_bitwise(results["recomputed"], results["kept"])


def test_recomputation_in_parts(one_worker: Callable[..., dict[str, Any]]) -> None:
    both = one_worker(compute={"checkpoint_activations": True, "micro_batches": 2})
    assert_bitwise(both, one_worker(compute={"micro_batches": 2}))


def test_recomputation_keeps_fewer_bytes() -> None:
    recipe = tiny_recipe()
    batch = Pixels.random().batch(recipe, step=0)
    images = augmented(batch, recipe, epoch=0)
    backbone = tiny_network(recipe).backbone
    stem = saved_bytes(lambda: backbone.stem(images, batch.infrared), backbone)
    whole = saved_bytes(lambda: backbone(images, batch.infrared), backbone)
    backbone.recompute_stages = True
    recomputed = saved_bytes(lambda: backbone(images, batch.infrared), backbone)
    assert recomputed - stem < 0.3 * (whole - stem)
