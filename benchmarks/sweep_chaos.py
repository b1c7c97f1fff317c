"""Claim: a sweep that is disturbed, by processes and nodes that are killed, ends with the results of one that is not.

    python -m benchmarks.sweep_chaos [--only worker --only node ...]

`icre tune` trains the recipe and two variants of it, one after the other, on a tiny network and synthetic people:
undisturbed, then once for every way to disturb it while the second training is half-way. Prints a Markdown table: the
commands' exit codes, and whether weights and metrics of all trainings, and the sweep's results, are those of the
undisturbed one, bit for bit. tests/pipelines/test_tune_faults.py asserts the like on one machine.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos_runs import Command, Stage, metrics_off, nodes, one_that_trains, stage, using, weights_off
from pipelines.runs import Run
from pipelines.storage import Storage

SPACE = "tune.space={loss.icg.weight: [0.5], loss.icg.rho1: [0.2]}"
TRAININGS = 3


@dataclass
class Sweep(Command):
    """One ``icre tune`` in a process of its own; the later ones go on with the same sweep."""

    @property
    def run(self) -> Run:
        """The training that is disturbed."""
        return self.runs[1]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [Run(Storage(self.storage) / f"runs/{self.name}-{number:04d}") for number in range(TRAININGS)]

    @property
    def arguments(self) -> list[str]:
        """Of Python."""
        asked = ["tune.method=each", "tune.concurrent=1", SPACE, *self.overrides]
        return ["-m", "pipelines.tune", "--config", str(self.stage.recipe(self.storage)), "--sweep", self.name, *asked]

    def results(self) -> list[dict[str, Any]]:
        """results.json without names and times."""
        rows = (Storage(self.storage) / f"sweeps/{self.name}/results.json").read_json()
        return [{key: value for key, value in row.items() if key not in ("run", "seconds")} for row in rows]


def worker(place: Stage) -> Sweep:
    """SIGKILL of a training process"""
    sweep = Sweep(place, "worker", str(place.folder / "storage"))
    with sweep.disturbed():
        os.kill(sweep.workers()[0], signal.SIGKILL)
    return sweep


def driver(place: Stage) -> Sweep:
    """SIGKILL of the command and its Ray, then the same command again"""
    sweep = Sweep(place, "driver", str(place.folder / "storage"))
    with sweep.disturbed() as process:
        sweep.kill(process)
    sweep.run_to_the_end()
    return sweep


def driver_of_cluster(place: Stage) -> Sweep:
    """SIGKILL of the command on a cluster that lives on, then the same command again"""
    with nodes("driver-of-cluster", others=1, cpus=2) as cluster:
        sweep = Sweep(place, "driver-of-cluster", str(place.folder / "storage"), environment=using(cluster))
        with sweep.disturbed() as process:
            sweep.kill(process)
        sweep.run_to_the_end()
    return sweep


def node(place: Stage) -> Sweep:
    """SIGKILL of all processes of a node that trains, in a cluster of three"""
    with nodes("node", others=2, cpus=2) as cluster:
        sweep = Sweep(place, "node", str(place.folder / "storage"), environment=using(cluster))
        with sweep.disturbed():
            cluster.kill_node(one_that_trains(cluster, sweep.workers()).number)
    return sweep


SCENARIOS: dict[str, Callable[[Stage], Sweep]] = {
    "worker": worker,
    "driver": driver,
    "driver_of_cluster": driver_of_cluster,
    "node": node,
}


def main() -> None:
    """Disturb, compare, print."""
    options = _options()
    with stage() as (place, _):
        calm = Sweep(place, "calm-sweep", str(place.folder / "storage"))
        calm.run_to_the_end()
        if calm.codes != [0]:
            raise RuntimeError(f"the undisturbed sweep failed:\n{calm.said}")
        print("| what happens | exit code | weights | metrics | results |\n|---|---|---|---|---|")
        for name in options.only or SCENARIOS:
            sweep = SCENARIOS[name](place)
            pairs = list(zip(sweep.runs, calm.runs, strict=True))
            same = [
                all(weights_off(*pair) == 0 for pair in pairs),
                all(metrics_off(*pair) == 0 for pair in pairs),
                sweep.results() == calm.results(),
            ]
            said = ["the same" if held else "DIFFER" for held in same]
            codes = ", then ".join(map(str, sweep.codes))
            print("|", " | ".join([str(SCENARIOS[name].__doc__), codes, *said]), "|", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="one scenario; may be repeated")
    return parser.parse_args()


if __name__ == "__main__":
    main()
