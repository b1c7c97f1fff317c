"""Results of an evaluation of features, as plain JSON types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from icre import config
from icre.data.records import MODALITIES, Record, SplitName
from icre.evaluation import DirectionResult, Protocol, protocol_of, run_protocol
from icre.evaluation.diagnostics import camera_pairs, distance_histogram, ranked_lists
from icre.evaluation.gallery_sampling import Permutations
from pipelines.data.prepared import PreparedData
from pipelines.runtime.progress import progress

SPLIT: SplitName = "test"


def measure(
    features: torch.Tensor,
    data: PreparedData,
    recipe: config.Recipe,
    *,
    permutations: Permutations | None = None,
) -> dict[str, Any]:
    """Content of an ``eval/`` file about (n, D) features of the test split.

    Metrics use the recipe's distance; camera pairs, ranked lists and the histogram always use cosine distance.
    """
    rows = data.rows_of(SPLIT)
    records = data.records(rows)
    protocol = protocol_of(recipe)
    with progress("evaluate: ranking", 3 + len(protocol.directions), "parts") as advance:
        results = run_protocol(features, records, protocol, rerank=recipe.evaluation.rerank, permutations=permutations)
        advance(1)
        noise = torch.randn(len(features), 64, generator=torch.Generator().manual_seed(recipe.evaluation.seed))
        chance = run_protocol(noise, records, protocol, permutations=permutations)
        advance(1)
        histogram = distance_histogram(features, records)
        advance(1)
        directions = {}
        for name, result in results.items():
            drawn: dict[str, Any] = {"direction": name, "permutations": permutations}
            ranked = ranked_lists(features, records, protocol, **drawn)
            directions[name] = {
                **_describe(result),
                "chance": chance[name].mean(),
                "distances": histogram,
                "camera_pairs": camera_pairs(features, records, protocol, **drawn),
                "ranked": [_named(entry, rows, records) for entry in ranked],
            }
            advance(1)
    return {
        "data": _describe_data(data, records) | {"differences": differences(results, protocol)},
        "protocol": choices(recipe),
        "directions": directions,
    }


def choices(recipe: config.Recipe) -> dict[str, Any]:
    """Everything that the numbers depend on besides the network and the images, by name."""
    settings = recipe.evaluation
    return protocol_of(recipe).choices() | {
        "feature": "BNNeck, L2-normalised",
        "distance": "k-reciprocal" if settings.rerank else "cosine",
        "flip": settings.flip,
        "rerank": "k1 20, k2 6, weight 0.3" if settings.rerank else False,
        "image_size": [recipe.data.height, recipe.data.width],
    }


def differences(results: dict[str, DirectionResult], protocol: Protocol) -> list[str]:
    """One line for each image count that is not the published one, which makes the result not comparable."""
    lines = []
    for name, result in results.items():
        found = {"query": result.queries + result.skipped, "gallery": result.gallery}
        for side, count in protocol.directions[name].published.items():
            if found[side] != count:
                lines.append(f"{protocol.name}, {name}: {found[side]:,} {side} images, {count:,} published")
    return lines


def _describe(result: DirectionResult) -> dict[str, Any]:
    return {
        "mean": result.mean(),
        "std": result.std(),
        "queries": result.queries,
        "skipped": result.skipped,
        "gallery": result.gallery,
        "trials": [
            {"cmc": t.cmc.tolist(), "mAP": t.mAP, "mINP": t.mINP, "queries": t.queries, "skipped": t.skipped}
            for t in result.trials
        ],
    }


def _describe_data(data: PreparedData, records: Sequence[Record]) -> dict[str, Any]:
    return {
        "name": data.manifest["name"],
        "hash": data.hash,
        "split": SPLIT,
        "images": len(records),
        "identities": len({record.pid for record in records}),
        **{name: sum(record.modality == name for record in records) for name in MODALITIES},
    }


def _named(entry: dict[str, Any], rows: Sequence[int], records: Sequence[Record]) -> dict[str, Any]:
    def named(item: dict[str, Any]) -> dict[str, Any]:
        record = records[item["row"]]
        place = {"row": rows[item["row"]], "identity": record.pid, "camera": record.camid, "path": record.path}
        return item | place

    return {"query": named(entry["query"]), "gallery": [named(item) for item in entry["gallery"]]}
