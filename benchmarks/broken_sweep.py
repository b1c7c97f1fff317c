"""Claim: a sweep that is broken by force, three times, ends as one that nothing happened to.

    python -m benchmarks.broken_sweep [--keep FOLDER] [--config configs/figure3-synthetic.yaml] [KEY=VALUE ...]

Runs `icre tune` by that recipe twice: on a cluster of two nodes where, after a quarter of the trainings, a process that
trains is killed; after a third, a node that trains, and another takes its place; after a half, the command and the
whole cluster, and the same command goes on with a new one; and once by itself. All kills are SIGKILL. Compares every
training's weights and metrics, the table, and the figures, bit for bit; and the undisturbed wall time with the sum of
the trainings' own steps. Two sweeps of half an hour each on two cores by the recipe as it is. Prints one Markdown row,
then JSON; --keep is where runs and figures stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.chaos_runs import TIMES
from cluster.local.programs import kill_all
from cluster.local.ray_cluster import LocalCluster
from icre import config
from pipelines.experiments.outcomes import outcomes_of
from pipelines.experiments.plan import listed_trials
from pipelines.experiments.sweep import sweep_of
from pipelines.experiments.trial import Sweep
from pipelines.runs.run import Run
from pipelines.storage import Storage

NAME = "broken"
CALM, BROKEN = "undisturbed", "broken"
SAME_FILES = ("table.md", "sweep.png", "parallel.png")
"""Of the sweep's folder. The PDFs hold the time at which they were drawn."""
CPUS = 1


def main() -> None:
    """Both sweeps, what differs between them."""
    options = _options()
    with ExitStack() as undo:
        folder = options.keep or Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="icre-benchmark-")))
        folder.mkdir(parents=True, exist_ok=True)
        sweeps = {name: _sweep(options, folder, name) for name in (CALM, BROKEN)}
        walls = {BROKEN: _broken(options, folder, sweeps[BROKEN]), CALM: _undisturbed(options, folder)}
        calm, broken = sweeps[CALM], sweeps[BROKEN]
        differing = [t.run for t in calm.trials if not _same_training(calm.run_called(t.run), broken.run_called(t.run))]
        tables = {name: (Storage(sweep.location) / "results.json").read_json() for name, sweep in sweeps.items()}
        same_results = _timeless(tables[CALM]) == _timeless(tables[BROKEN])
        files = {
            name: len({(Storage(sweep.location) / name).read_bytes() for sweep in sweeps.values()}) == 1
            for name in SAME_FILES
        }
    result = {
        "benchmark": "broken_sweep",
        "trainings": len(calm.trials),
        "finished": sum(row["state"] == "finished" for row in tables[BROKEN]),
        "differing": differing,
        "same_results": same_results,
        "same_files": files,
        "wall_s": {name: round(wall_s) for name, wall_s in walls.items()},
        "undisturbed_over_steps": round(walls[CALM] / sum(row["seconds"] for row in tables[CALM]), 2),
    }
    compared = {"results": same_results, **files}
    cells = [
        f"{len(calm.trials)} trainings, {result['finished']} finished",
        f"undisturbed {walls[CALM] / 60:.0f} min, x{result['undisturbed_over_steps']} of all steps",
        f"broken {walls[BROKEN] / 60:.0f} min",
        f"weights and metrics the same: {len(calm.trials) - len(differing)} of {len(calm.trials)}",
        ", ".join(f"{name} {'the same' if equal else 'DIFFER'}" for name, equal in compared.items()),
    ]
    print("|", " | ".join(cells), "|")
    print(json.dumps(result))


def _undisturbed(options: argparse.Namespace, folder: Path) -> float:
    start = time.monotonic()
    code = _command(options, folder, CALM, {}).wait()
    if code:
        raise RuntimeError(f"the undisturbed sweep ended with {code}: see {folder / CALM}.log")
    return time.monotonic() - start


def _broken(options: argparse.Namespace, folder: Path, sweep: Sweep) -> float:
    """The same sweep, while processes are killed; its wall time, with the time that no command ran left out."""
    start, count = time.monotonic(), len(sweep.trials)
    environment = {"ICRE_CACHE": str(folder / "cache")}
    with LocalCluster(nodes=2, cpus=CPUS, environment=environment) as cluster:
        command = _command(options, folder, BROKEN, cluster.environment())
        _wait(command, lambda: _finished(sweep) >= count // 4 and _in_the_middle(sweep, 1))
        kill_all(_trains(cluster)[:1])
        _wait(command, lambda: _finished(sweep) >= count // 3 and _in_the_middle(sweep, 2))
        cluster.kill_node(1)
        cluster.add_node()
        _wait(command, lambda: _finished(sweep) >= count // 2 and _in_the_middle(sweep, 2))
        kill_all([command.pid, *(pid for node in cluster.nodes.values() for pid in node.pids)])
        command.wait()
    wall_s = time.monotonic() - start
    with LocalCluster(nodes=2, cpus=CPUS, environment=environment) as cluster:
        start = time.monotonic()
        code = _command(options, folder, BROKEN, cluster.environment()).wait()
    if code:
        raise RuntimeError(f"the broken sweep ended with {code}: see {folder / BROKEN}.log")
    return wall_s + time.monotonic() - start


def _command(
    options: argparse.Namespace, folder: Path, name: str, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """One `icre tune`; the second with the same name goes on."""
    arguments = ["--config", str(options.config), "--sweep", NAME, *_overrides(options, folder, name)]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.tune", *arguments],
            env=os.environ | {"ICRE_CACHE": str(folder / "cache")} | environment,
            stdout=log,
            stderr=log,
        )


def _sweep(options: argparse.Namespace, folder: Path, name: str) -> Sweep:
    recipe = config.load_recipe(options.config, _overrides(options, folder, name))
    return sweep_of(recipe, NAME, listed_trials(recipe, NAME))


def _overrides(options: argparse.Namespace, folder: Path, name: str) -> list[str]:
    return [f"storage={folder / name}", f"data.root={folder / 'images'}", *options.overrides]


def _wait(command: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    while not happened():
        if command.poll() is not None:
            raise RuntimeError(f"the sweep ended with {command.returncode} before it could be broken")
        time.sleep(0.2)


def _finished(sweep: Sweep) -> int:
    return sum(outcome.state == "finished" for outcome in outcomes_of(sweep))


def _in_the_middle(sweep: Sweep, count: int) -> bool:
    """Whether so many trainings have a checkpoint and are not at their end."""
    running = [outcome for outcome in outcomes_of(sweep) if outcome.state == "running"]
    return sum(0 < outcome.epochs < sweep.base.train.epochs - 1 for outcome in running) >= count


def _trains(cluster: LocalCluster) -> list[int]:
    pids = [pid for node in cluster.nodes.values() for pid in node.pids]
    return [pid for pid in pids if "RayTrainWorker" in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # over
        return ""


def _same_training(ours: Run, theirs: Run) -> bool:
    """Every line of the metrics, and the last weights."""
    if ours.reference("last") is None or ours.reference("last") != theirs.reference("last"):
        return False
    weights = [
        (run.location / "checkpoints" / str(run.reference("last")) / "model.safetensors").read_bytes()
        for run in (ours, theirs)
    ]
    return weights[0] == weights[1] and _timeless(ours.metrics()) == _timeless(theirs.metrics())


def _timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in {*TIMES, "seconds"}} for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/figure3-synthetic.yaml"))
    parser.add_argument("--keep", type=lambda text: Path(text).resolve(), help="a folder; None: a temporary one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    return parser.parse_args()


if __name__ == "__main__":
    main()
