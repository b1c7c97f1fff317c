"""Judge champion and challenger on the same current images: features, comparison, cost and all rules."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from icre import config
from icre.data.records import Record
from icre.errors import ProtocolError, TrainingError
from icre.evaluation import protocol_of
from icre.model.network import ICRENetwork
from pipelines.data.prepared import PreparedData
from pipelines.evaluation.embed import embed
from pipelines.evaluation.evaluate import permutations_of
from pipelines.evaluation.measure import SPLIT, choices
from pipelines.retraining.challenger import size_mib
from pipelines.retraining.gate import Comparison, Cost, Rule, compare, rules
from pipelines.runs.networks import load_network
from pipelines.runs.run import Run

ROUNDS = 7
"""Timed batches per network, interleaved; the first of each is not counted."""


SHOWN_RULES = 4
"""Rules listed in a one-line reason."""


@dataclass(frozen=True)
class Model:
    """A checkpoint of a run, or of a copy in the registry."""

    run: Run
    checkpoint: str


def judge(
    champion: Model,
    challenger: Model,
    data: PreparedData,
    recipe: config.Recipe,
    frozen: tuple[Sequence[int], Sequence[Record]],
) -> dict[str, Any]:
    """The decision as plain JSON types, inside an open Ray session. champion: the untrained network if there is none.

    frozen: positions among the test images, and records, of the frozen list; the other test images are the newest.
    Raises TrainingError when the challenger's features are not finite.
    """
    features = [_features(model, data, recipe) for model in (champion, challenger)]
    if not bool(torch.isfinite(features[1]).all()):
        raise TrainingError(
            f"features of {challenger.run.name} are not finite: its training diverged",
            hint="see metrics.jsonl of that run; a lower optimizer.lr may help",
        )
    places, records = list(frozen[0]), list(frozen[1])
    on_frozen = _compare(features, places, records, recipe)
    everything = data.records(data.rows_of(SPLIT))
    others = sorted(set(range(len(everything))) - set(places))
    new_records = [everything[place] for place in others]
    on_newest, note = None, ""
    try:
        on_newest = _compare(features, others, new_records, recipe)
    except ProtocolError as error:  # too few identities yet: noted, without a rule
        note = error.message
    latencies = _latencies(champion, challenger, recipe)
    cost = Cost(size_mib(challenger.run, challenger.checkpoint), latencies[1] if latencies else None)
    judged = rules(on_frozen, on_newest, cost, recipe.retrain)
    return {
        "promote": all(rule.passed for rule in judged),
        "metric": recipe.retrain.metric,
        "protocol": choices(recipe) | {"distance": "cosine", "rerank": False},
        "champion": {"run": champion.run.name, "checkpoint": champion.checkpoint},
        "challenger": {
            "run": challenger.run.name,
            "checkpoint": challenger.run.checkpoints.pointed(challenger.checkpoint),
        },
        "rules": [asdict(rule) for rule in judged],
        "frozen": asdict(on_frozen),
        "newest": None if on_newest is None else asdict(on_newest),
        "newest_images": len(others),
        "newest_note": note,
        "latency_ms": dict(zip(("champion", "challenger"), latencies, strict=True)) if latencies else None,
        "size_mib": cost.size_mib,
    }


def broken_rules(decision: dict[str, Any]) -> str:
    """The failed rules in words; empty if all passed."""
    broken = [rule for rule in (Rule(**rule) for rule in decision["rules"]) if not rule.passed]
    lines = [
        f"{rule.name}{f' ({rule.note})' if rule.note else ''} is {rule.value:.4f}, limit {rule.limit:g}"
        for rule in broken[:SHOWN_RULES]
    ]
    return "; ".join(lines) + (f"; and {len(broken) - SHOWN_RULES} more" if len(broken) > SHOWN_RULES else "")


def batch_latencies(networks: Sequence[ICRENetwork], batches: Sequence[torch.Tensor]) -> list[float]:
    """Median milliseconds per network for its batch (B, 3, H, W), interleaved, on the batches' device."""
    times: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for network, images, taken in zip(networks, batches, times, strict=True):
                infrared = torch.arange(len(images), device=images.device) % 2 == 1
                _wait_for(images.device)
                started = time.perf_counter()
                network.embed(images, infrared)
                _wait_for(images.device)
                taken.append(1000 * (time.perf_counter() - started))
    return [statistics.median(taken[1:]) for taken in times]


def _features(model: Model, data: PreparedData, recipe: config.Recipe) -> torch.Tensor:
    """(n, D) features of all test images at the model's training size. Not cached: images grow every night."""
    return embed(model.run.location.url, model.checkpoint, data, SPLIT, _sized(recipe, model.run))


def _sized(recipe: config.Recipe, run: Run) -> config.Recipe:
    trained = run.recipe.data
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"height": trained.height, "width": trained.width})}
    )


def _compare(
    features: Sequence[torch.Tensor], places: Sequence[int], records: Sequence[Record], recipe: config.Recipe
) -> Comparison:
    protocol = protocol_of(recipe)
    permutations = permutations_of(recipe) if protocol.draw == "official" else None
    champion, challenger = (found[list(places)] for found in features)
    return compare(
        champion,
        challenger,
        records,
        protocol,
        settings=recipe.retrain,
        seed=recipe.seed,
        permutations=permutations,
    )


def _latencies(champion: Model, challenger: Model, recipe: config.Recipe) -> list[float] | None:
    if recipe.retrain.max_latency_ms is None:
        return None
    device = torch.device("cuda" if recipe.evaluation.gpus_per_worker else "cpu")
    networks, batches = [], []
    for model in (champion, challenger):
        networks.append(load_network(model.run.location.url, model.checkpoint)[0].to(device).eval())
        size = model.run.recipe.data
        batches.append(torch.zeros(recipe.evaluation.batch_size, 3, size.height, size.width, device=device))
    return batch_latencies(networks, batches)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
