"""Claim: most of the time from `icre submit train` to the first step is Python's and Ray's own start.

    python -m benchmarks.submit [--rounds 3]

A tiny recipe on a real head of this machine (four logical CPUs, a token), one worker. A watcher looks every 50 ms at
the processes of the cluster; the first step's time is the worker's own, from metrics.jsonl. Prints the median of each
part in seconds, and writes submit.json beside the other results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local.ray_cluster import LocalCluster
from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from pipelines import prepare
from pipelines.jobs.following import exit_code, follow
from pipelines.jobs.server import connect, version_warnings
from pipelines.jobs.upload import survey
from pipelines.jobs.verb import check_paths, read_work
from pipelines.session import Demand, ray_session
from pipelines.submit import submit

ROOT = Path(__file__).resolve().parents[1]
MARKS = {"driver": "-m pipelines.train", "controller": "ray::TrainController", "worker": "ray::RayTrainWorker"}
"""What a process of each part is called."""
RECIPE = [
    "data.height=64", "data.width=32", "model.backbone=resnet18", "model.dim=32", "model.heads=4",
    "batch.identities=4", "batch.visible=2", "batch.infrared=2", "schedule.warmup_epochs=0", "schedule.milestones=[]",
    "train.epochs=1", "train.steps_per_epoch=2", "train.loaders=1", "train.loader_cpus=0.25",
]  # fmt: skip


def main() -> None:
    """Prepare once, then submit, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("submit.json"))
    asked = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="icre-submit-") as scratch:
        overrides = _prepared(Path(scratch))
        with LocalCluster(nodes=1, cpus=4) as cluster:
            os.environ |= cluster.environment()
            rounds = [_one_round(cluster, overrides, number) for number in range(asked.rounds)]
    medians = {part: statistics.median(found[part] for found in rounds) for part in rounds[0]}
    asked.out.write_text(json.dumps({"rounds": rounds, "median_s": medians}, indent=2) + "\n")
    print("| from `icre submit train` to the first step | s |\n|---|---:|")
    for part, seconds in medians.items():
        print(f"| {part} | {seconds:.1f} |")
    print(f"| all | {statistics.median(sum(found.values()) for found in rounds):.1f} |")


def _prepared(scratch: Path) -> list[str]:
    generate(scratch / "people", SyntheticSpec(identities=20, images_per_modality=4, height=64, width=32))
    places = [f"storage={scratch / 'storage'}", f"data.root={scratch / 'people'}", "data.name=people"]
    recipe = config.load_recipe(None, [*RECIPE, *places])
    with ray_session(scratch / "logs", demand=Demand(2)):
        prepare.run(recipe)
    return [*RECIPE, *places]


def _one_round(cluster: LocalCluster, overrides: list[str], number: int) -> dict[str, float]:
    name = f"submit-{number}"
    begun = time.time()
    subprocess.run([sys.executable, "-c", "import pipelines.cli"], check=True)
    imported = time.time() - begun
    with _watching(cluster) as seen:
        start = time.time()
        work = read_work("train", ["--run", name, *overrides])
        server, upload = connect(), survey(ROOT)
        upload.check()
        version_warnings(server)
        check_paths(work, upload.folder, one_machine=server.is_this_machine_alone)
        checked = time.time()
        submit(server, work, name, upload)
        accepted = time.time()
        code = exit_code(follow(server, name, lambda text: None))
    if code:
        raise SystemExit(f"the job ended with exit code {code}")
    storage = Path(next(text for text in overrides if text.startswith("storage=")).partition("=")[2])
    rows = [json.loads(line) for line in (storage / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    first = next(row["time"] for row in rows if row["kind"] == "step")
    # The run folder is made by the driver when it has imported all and read the recipe and the data set.
    planned = (storage / "runs" / name / "config.yaml").stat().st_mtime
    return {
        "client: Python and its imports": imported,
        "client: checks of command, cluster, upload": checked - start,
        "client: upload, until the job is accepted": accepted - checked,
        "runtime environment, start of the driver": seen["driver"] - accepted,
        "driver: imports, recipe, data set": planned - seen["driver"],
        "driver: ray.init, Ray Train's controller": seen["controller"] - planned,
        "worker process": seen["worker"] - seen["controller"],
        "worker: imports, copy of the data, first batch and step": first - seen["worker"],
    }


@contextmanager
def _watching(cluster: LocalCluster) -> Iterator[dict[str, float]]:
    """The wall-clock time at which a new process of each of MARKS was first seen."""
    node = cluster.nodes[0]
    before, seen, over = set(node.pids), dict[str, float](), threading.Event()

    def watch() -> None:
        while not over.wait(0.05) and len(seen) < len(MARKS):
            for pid in set(node.pids) - before:
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                for part, mark in MARKS.items():
                    if mark in command:
                        seen.setdefault(part, time.time())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    main()
