"""The scaling model of docs/scaling.md: its terms, and that the page shows what the code computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling_model import Machine, Network, network_of, predict, prediction_markdown
from icre import config
from icre.model.complexity import complexity

ROOT = Path(__file__).resolve().parents[1]
# Round numbers: a bucket of 1 MiB and one of 25.
NETWORK = Network(
    gradient_bytes=26 * 2**20, feature_dim=100, batch_norms=10, batch_norm_channels=1_000, state_bytes=1_000_000
)
MACHINE = Machine(fixed_s=0.5, image_s=0.1, latency_s=1e-3, bandwidth=1e6, copy_bandwidth=1e6, ring=True)


def test_each_term_of_the_model() -> None:
    step = predict(NETWORK, MACHINE, workers=4, batch=8, checkpoint_every_s=100)
    assert step.compute == pytest.approx(0.5 + 0.1 * 2)
    assert step.gradients == pytest.approx(2 * 0.75 * 26 * 2**20 / 1e6 + 2 * 3 * 1e-3 * 2)
    assert step.features == pytest.approx(3 * 0.75 * 8 * 409 / 1e6 + 9 * 3 * 1e-3)
    assert step.batch_norm == pytest.approx(0.75 * (4 * 4 * 2_010 + 16 * 1_000) / 1e6 + 3 * 3 * 1e-3 * 10)
    # A copy takes a second; one every 100 s of training.
    assert step.total == pytest.approx(1.01 * (step.total - step.checkpoint))


def test_one_worker_sends_nothing() -> None:
    step = predict(NETWORK, MACHINE, workers=1, batch=8)
    assert step.gradients == step.features == step.batch_norm == 0


def test_a_tree_has_fewer_hops_and_shared_cores_compute_slower() -> None:
    ring, tree = (predict(NETWORK, replace(MACHINE, ring=r), workers=64, batch=64) for r in (True, False))
    saved = (63 - 6) * 1e-3 * (2 * 2 + 9 + 3 * 10)
    assert ring.total - ring.checkpoint - tree.total + tree.checkpoint == pytest.approx(saved)
    assert predict(NETWORK, MACHINE, workers=4, batch=8, sharing=2).compute == pytest.approx(2 * 0.7)


def test_a_network_sends_a_gradient_for_each_trained_parameter() -> None:
    recipe = config.load_recipe(ROOT / "configs" / "demo.yaml")
    cost = complexity(recipe, classes=395)
    network = network_of(recipe)
    assert network.gradient_bytes == cost.gradient_bytes
    assert network.state_bytes == cost.weight_bytes + cost.optimizer_bytes


def test_the_page_shows_what_the_model_computes() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    shown = page.partition("<!-- printed by: python -m benchmarks.scaling_model -->\n")[2].partition("\n<!-- end")[0]
    assert shown == prediction_markdown()
