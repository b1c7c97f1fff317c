"""The recipes that ship: they load, and what their headers promise is what the network costs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from icre import config
from icre.data.plan import TrainingIndex
from icre.data.sources import llcm, regdb, sysu
from icre.model.complexity import complexity

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
OPTIMIZERS = ("sgd", "adam")
PUBLISHED = {
    "sysu": tuple(sysu.PUBLISHED[name] for name in ("training identities", "visible training images")),
    "regdb": (regdb.IDENTITIES, regdb.IMAGES),
    "llcm": tuple(llcm.PUBLISHED[name] for name in ("training identities", "visible training images")),
}
"""Training identities, and images of the modality that has more of them."""
ESTIMATE = re.compile(
    r"all (?P<identities>\d+) training identities, (?P<epochs>\d+) epochs x (?P<steps>\d+) steps\n"
    r"# are (?P<pflop>\d+) PFLOP, (?P<hours>\d+\.\d) hours at a sustained 20 TFLOP/s; "
    r"a step keeps (?P<gib>\d+\.\d) GiB in float32\."
)
SUSTAINED_FLOP_PER_S = 20e12


def published_steps(images: int, batch: config.Batch) -> int:
    """Of an epoch: as the plan counts them, for as many images of both modalities."""
    rows = np.arange(2 * images)
    index = TrainingIndex.build(rows, np.zeros_like(rows), rows >= images)
    return index.steps(visible=batch.visible, infrared=batch.infrared, identities=batch.identities)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_header_names_it(path: Path) -> None:
    recipe = config.load_recipe(path)
    assert recipe.name == path.stem
    assert f"configs/{path.name}" in path.read_text().partition("\nname:")[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("source", PUBLISHED)
def test_headers_state_what_the_network_costs(source: str, optimizer: str) -> None:
    path = ROOT / "configs" / f"{source}-{optimizer}.yaml"
    stated = ESTIMATE.search(path.read_text())
    assert stated
    recipe = config.load_recipe(path)
    identities, images = PUBLISHED[source]
    steps = published_steps(images, recipe.batch)
    cost = complexity(recipe, classes=identities)
    # Forward, and twice as much backward; two operations for each multiply-accumulate.
    flop = 6 * cost.total.macs * recipe.batch.size * steps * recipe.train.epochs
    assert stated.groupdict() == {
        "identities": str(identities),
        "epochs": str(recipe.train.epochs),
        "steps": str(steps),
        "pflop": f"{flop / 1e15:.0f}",
        "hours": f"{flop / SUSTAINED_FLOP_PER_S / 3600:.1f}",
        "gib": f"{cost.training_bytes / 2**30:.1f}",
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("source", "protocol"), [("sysu", "sysu-all-single"), ("regdb", "regdb"), ("llcm", "llcm")])
def test_each_data_set_is_evaluated_by_its_protocol(source: str, protocol: str, optimizer: str) -> None:
    recipe = config.load_recipe(ROOT / "configs" / f"{source}-{optimizer}.yaml")
    assert recipe.data.source == source and recipe.optimizer.name == optimizer
    assert recipe.evaluation.protocol == protocol
