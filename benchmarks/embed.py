"""Claim: embedding a small data set takes half as long when no processes are started for its Parquet footers.

    python -m benchmarks.embed [--rounds 3]

Embeds the test images of 40 synthetic people with an untrained network, in turns as `icre` does it and with Ray Data's
newer reader, which starts 32 processes for the footers of its files. Prints a Markdown row, then JSON, and fails if a
feature differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import ray.data
import torch

from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from pipelines.data import prepare
from pipelines.evaluation.embed import embed
from pipelines.runs.run import UNTRAINED
from pipelines.runtime.session import Demand, ray_session
from pipelines.training import launch


def main() -> None:
    """Embed in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    seconds: dict[bool, list[float]] = {False: [], True: []}
    features = []
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as scratch:
        folder = Path(scratch)
        generate(folder / "images", SyntheticSpec(identities=40, images_per_modality=8, height=96, width=48))
        places = [f"storage={folder / 'storage'}", f"data.root={folder / 'images'}", "data.synthetic=null"]
        recipe = config.load_recipe(Path("configs/demo.yaml"), places)
        with ray_session(folder / "logs", demand=Demand.of_embedding(recipe.evaluation)):
            data = prepare.run(recipe)
            run = launch.start(recipe, "untrained")
            for _ in range(rounds):
                for newer, taken in seconds.items():
                    ray.data.DataContext.get_current().use_datasource_v2 = newer
                    start = time.perf_counter()
                    features.append(embed(run.location.url, UNTRAINED, data, "test", recipe))
                    taken.append(time.perf_counter() - start)
    if not all(torch.equal(found, features[0]) for found in features):
        raise SystemExit("features differ")
    own, newer_s = statistics.median(seconds[False]), statistics.median(seconds[True])
    print(f"| {len(features[0])} images | {own:.1f} s | newer reader {newer_s:.1f} s | x{newer_s / own:.1f} |")
    print(json.dumps({"benchmark": "embed", "own_s": own, "newer_reader_s": newer_s, "ratio": newer_s / own}))


if __name__ == "__main__":
    main()
