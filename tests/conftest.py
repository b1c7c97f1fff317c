"""Fixtures that many tests share: a real object store, one Ray for the session, small synthetic images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from icre import config
from icre.data.synthetic import SyntheticSpec, generate

Recipes = Callable[..., config.Recipe]
"""Called with dotted overrides as keyword-free strings; a small recipe whose storage is the test's own folder."""

TINY = {
    "data": {"height": 64, "width": 32, "shard_mib": 0.05, "split": {"file": "split.json"}},
    "model": {"backbone": "resnet18", "dim": 32, "heads": 4},
    "batch": {"identities": 4, "visible": 2, "infrared": 2},
    "augmentation": {"pad": 4},
    # Small steps of SGD, so that rounding stays rounding: on one worker, initial weights changed by 1e-7 change
    # the loss of this recipe by 1e-6 after 12 steps; with a rate of 0.02 the change grows 30-fold every step,
    # and Adam's first updates have the gradient's sign alone.
    "optimizer": {"name": "sgd", "lr": 2e-4, "backbone_lr": 2e-4},
    "schedule": {"warmup_epochs": 0, "milestones": []},
    "train": {"epochs": 2, "steps_per_epoch": 6, "cpus_per_worker": 0.5, "loaders": 1, "loader_cpus": 0.25},
    "evaluation": {"trials": 3, "batch_size": 32, "workers": 0, "cpus_per_worker": 0.5},
}


PLACES = {
    "walks/test_cluster.py": "walks on a cluster",
    "walks/test_regdb.py": "walks from an empty folder",
    "walks/test_own_images.py": "walks from an empty folder",
}
FIRST = ("walks on a cluster", "walks", "test_main_job.py", "walks from an empty folder", "jobs")
"""What takes longest begins first, so that no process of the suite is alone with it at the end."""


def place_of(nodeid: str) -> str:
    """Tests of a file, or of a folder that shares one place, stay in one process where there are several."""
    path = Path(nodeid.partition("::")[0])
    alone = PLACES.get(f"{path.parent.name}/{path.name}")
    return alone or (path.parent.name if path.parent.name in ("walks", "jobs") else path.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(place) if (place := place_of(item.nodeid)) in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByPlace(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return place_of(nodeid)

    return ByPlace(config, log)


@pytest.fixture(scope="session")
def object_store() -> Iterator[Any]:
    """A real S3 server with an empty bucket. A test that kills it restarts it."""
    from cluster.local.object_store import ObjectStore

    with ObjectStore(bucket="icre-tests") as store:
        yield store


@pytest.fixture(scope="session")
def ray_cluster(object_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests, on four logical CPUs. Its processes know the object store."""
    from pipelines.runtime.session import Demand, ray_session

    cache = tmp_path_factory.mktemp("cache")
    # Ray Train's watcher for nodes that go is one process more in each training; test_chaos has one.
    os.environ |= {**object_store.environment(), "ICRE_CACHE": str(cache), "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    with ray_session(tmp_path_factory.mktemp("ray-logs"), demand=Demand(4)):
        yield


@pytest.fixture(scope="session")
def synthetic_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 20 easy synthetic people, 4 images a modality. Tests that change it make a copy."""
    root = tmp_path_factory.mktemp("images") / "people"
    spec = SyntheticSpec(identities=20, images_per_modality=4, height=64, width=32, difficulty=0.1)
    generate(root, spec)
    return root


@pytest.fixture
def recipes(synthetic_images: Path, tmp_path: Path) -> Recipes:
    """Makes small recipes: ``recipes("train.epochs=1")``."""

    def make(*overrides: str) -> config.Recipe:
        path = tmp_path / "tiny.yaml"
        path.write_text(config.parse_recipe(TINY, where="the tests").to_yaml())
        base = [f"storage={tmp_path / 'storage'}", f"data.root={synthetic_images}"]
        return config.load_recipe(path, [*base, *overrides])

    return make
