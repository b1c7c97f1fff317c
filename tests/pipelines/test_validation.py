"""Validation on several workers, and the device and threads that an evaluation takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from icre import config
from icre.model.build import build_network
from icre.model.network import ICRENetwork
from pipelines.data import prepare
from pipelines.data.prepared import open_data
from pipelines.evaluation import embed
from pipelines.training.validation import validate
from tests.conftest import Recipes

CPU = torch.device("cpu")


def network_of(recipe: config.Recipe, *, rank: int) -> ICRENetwork:
    """The same weights for every rank, and running statistics that differ widely."""
    network = build_network(recipe, classes=4)
    generator = torch.Generator().manual_seed(rank)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return network


def worker(rank: int, folder: str, values: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    recipe = config.parse_recipe(values, where="the tests")
    network = network_of(recipe, rank=rank)
    found = validate(network, open_data(recipe), recipe, CPU)
    torch.save({"metrics": found, "state": network.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.usefixtures("ray_cluster")
def test_without_synchronised_batch_norm_workers_rank_the_network_that_is_saved(
    recipes: Recipes, tmp_path: Path
) -> None:
    recipe = recipes("train.workers=2", "train.sync_batch_norm=false", "data.split.file=null", "data.split.val=0.3")
    data = prepare.run(recipe)
    mp.spawn(worker, (str(tmp_path), recipe.to_dict()), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    saved = network_of(recipe, rank=0)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in first["state"].items())
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in second["state"].items())
    assert first["metrics"] == second["metrics"] == pytest.approx(validate(saved, data, recipe, CPU), abs=1e-6)


def test_an_evaluation_takes_the_device_and_the_threads_of_its_recipe(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU, too: 0 GPUs a worker is the CPU. The command's own process keeps its threads."""
    recipe = recipes("evaluation.gpus_per_worker=0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(embed, "load_network", lambda *_: (build_network(recipe, classes=4), {}))
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert embed._Embedder("a-run", "best", recipe).device == CPU and asked == []
    own = config.override(recipe, ["evaluation.workers=1", "evaluation.cpus_per_worker=3"], where="the tests")
    assert embed._Embedder("a-run", "best", own).device == CPU and asked == [3]
