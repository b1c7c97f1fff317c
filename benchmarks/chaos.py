"""Claim: a training that is killed at any point ends with the same weights as an undisturbed one.

    python -m benchmarks.chaos [--only worker --only driver ...]

Trains a tiny network on synthetic identities with two workers: once undisturbed, then once per failure scenario, with
real process kills, object store outages and full disks. Prints a Markdown table of lost work, downtime, and whether
weights and metrics match the undisturbed run bit for bit. tests/test_chaos.py asserts the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.chaos_runs import (
    WAIT_S,
    Command,
    Outcome,
    Stage,
    filled,
    give_notice,
    metrics_off,
    nodes,
    one_that_trains,
    small_disk,
    stage,
    undisturbed,
    using,
    weights_off,
)
from pipelines.runs.run import Run

Scenario = Callable[[Stage, Run], Outcome]


def worker(stage: Stage, calm: Run) -> Outcome:
    """SIGKILL of a training process"""
    command = Command(stage, "worker", str(stage.folder / "storage"))
    with command.disturbed():
        os.kill(command.workers()[0], signal.SIGKILL)
    return command.outcome(calm, sign="workers were lost")


def hung(stage: Stage, calm: Run) -> Outcome:
    """a training process stops answering (SIGSTOP)"""
    command = Command(stage, "hung", str(stage.folder / "storage"))
    with command.disturbed():
        os.kill(command.workers()[0], signal.SIGSTOP)
    return command.outcome(calm, sign="workers were lost")


def driver(stage: Stage, calm: Run) -> Outcome:
    """SIGKILL of the command, then the same command again"""
    command = Command(stage, "driver", str(stage.folder / "storage"))
    with command.disturbed() as process:
        command.kill(process)
    step = command.last_step
    command.run_to_the_end()
    return command.outcome(calm, lost=f"steps since the last checkpoint (here step {step})", sign="goes on from step")


def preempted(stage: Stage, calm: Run) -> Outcome:
    """SIGTERM to the command, then the same command again"""
    command = Command(stage, "preempted", str(stage.folder / "storage"))
    with command.disturbed() as process:
        process.terminate()
    command.run_to_the_end()
    return command.outcome(calm, sign="goes on from step")


def truncated(stage: Stage, calm: Run) -> Outcome:
    """SIGKILL of the command, and its newest checkpoint cut off"""
    command = Command(stage, "truncated", str(stage.folder / "storage"))
    with command.disturbed() as process:
        command.kill(process)
    step = command.last_step
    newest = command.run.location / f"checkpoints/{command.run.checkpoints.pointed('last')}/model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    command.run_to_the_end()
    return command.outcome(
        calm, lost=f"steps since the checkpoint before (here before step {step})", sign="passed over"
    )


def outage(stage: Stage, calm: Run) -> Outcome:
    """the object store is down for 10 s during checkpoints"""
    command = Command(stage, "outage", f"{stage.store.url}/chaos")
    with command.disturbed():
        stage.store.kill()
        time.sleep(10)
        stage.store.restart()
    return command.outcome(calm)


def store_gone(stage: Stage, calm: Run) -> Outcome:
    """the object store goes and stays away: it stops; the store comes back; the same command again"""
    patience = {"AWS_MAX_ATTEMPTS": "3"}  # instead of a minute of retries per request
    command = Command(stage, "store-gone", f"{stage.store.url}/chaos", environment=patience)
    with command.disturbed():
        stage.store.kill()
    stage.store.restart()
    command.run_to_the_end()
    return command.outcome(calm, lost="steps since the last checkpoint", sign="checkpoints in a row")


def full_disk(stage: Stage, calm: Run) -> Outcome:
    """the disk is full for one checkpoint"""
    with small_disk(stage.folder / "small-disk", mib=450) as disk:
        command = Command(stage, "full-disk", str(disk))
        with command.disturbed() as process, filled(disk):
            command.wait_until_it_says(process, "could not be written")
        return command.outcome(calm, sign="could not be written")


def disk_stays_full(stage: Stage, calm: Run) -> Outcome:
    """the disk is full and stays so: it stops; room is made; the same command again"""
    with small_disk(stage.folder / "another-disk", mib=450) as disk:
        command = Command(stage, "stays-full", str(disk))
        with command.disturbed() as process, filled(disk):
            process.wait(WAIT_S)
        command.run_to_the_end()
        return command.outcome(calm, lost="steps since the last checkpoint", sign="checkpoints in a row")


def raylet(stage: Stage, calm: Run) -> Outcome:
    """SIGKILL of the raylet of a node that trains, in a cluster of three nodes"""
    with nodes("raylet", others=2, cpus=2) as cluster:
        one_cpu = ["train.cpus_per_worker=1"]  # both workers do not fit on the command's node
        storage = str(stage.folder / "storage")
        command = Command(stage, "raylet", storage, environment=using(cluster), overrides=one_cpu)
        with command.disturbed():
            os.kill(one_that_trains(cluster, command.workers()).raylet, signal.SIGKILL)
    return command.outcome(calm, sign="workers were lost")


def drained(stage: Stage, calm: Run) -> Outcome:
    """notice that a node that trains will be taken away, as for a spot machine; then its raylet is killed"""
    with nodes("drained", others=2, cpus=2) as cluster:
        storage = str(stage.folder / "storage")
        one_cpu = ["train.cpus_per_worker=1"]
        command = Command(stage, "drained", storage, environment=using(cluster), overrides=one_cpu)
        with command.disturbed(from_step=1) as process:
            node = one_that_trains(cluster, command.workers())
            give_notice(cluster, node, seconds=60)
            command.wait_until_it_says(process, "will be taken away")
            command.wait_for_step(process, int(command.said.split("a checkpoint of step ")[1].split()[0]))
            os.kill(node.raylet, signal.SIGKILL)
    return command.outcome(calm, sign="will be taken away")


def elastic(stage: Stage, calm: Run) -> Outcome:
    """SIGKILL of the raylet with `train.workers=[1,2]` and room for one worker alone: it goes on with one"""
    options = ["train.workers=[1,2]", "train.cpus_per_worker=1", "train.cache=decoded"]
    storage = str(stage.folder / "storage")
    with nodes("elastic", others=1, cpus=1) as cluster:
        command = Command(stage, "elastic", storage, environment=using(cluster), overrides=options)
        with command.disturbed():
            if len(command.workers()) != 2:
                raise RuntimeError(f"training started with {len(command.workers())} workers, so nothing would be shown")
            os.kill(one_that_trains(cluster, command.workers()).raylet, signal.SIGKILL)
    # Another number of workers changes the summation order: bitwise equality holds only for the same number. A run with
    # one worker from the start gives the size of the difference.
    single = Command(stage, "single", storage, overrides=["train.workers=1"])
    single.run_to_the_end()
    bound = 2 * weights_off(single.run, calm), 2 * metrics_off(single.run, calm)
    return replace(command.outcome(calm, sign="workers were lost"), bound=bound)


SCENARIOS: dict[str, Scenario] = {
    "worker": worker,
    "hung": hung,
    "driver": driver,
    "preempted": preempted,
    "truncated": truncated,
    "raylet": raylet,
    "drained": drained,
    "elastic": elastic,
    "outage": outage,
    "store_gone": store_gone,
    "full_disk": full_disk,
    "disk_stays_full": disk_stays_full,
}


def main() -> None:
    """Run all scenarios, compare and print."""
    options = _options()
    print("| what happens | lost | still for | exit code | weights | metrics |\n|---|---|---:|---|---|---|")
    with stage() as place:
        calm = undisturbed(place)
        for name in options.only or SCENARIOS:
            outcome = SCENARIOS[name](place, calm)
            still = "" if outcome.restart_s is None else f"{outcome.restart_s:.0f} s"
            codes = ", then ".join(map(str, outcome.exit_codes))
            same = [
                _sameness(*pair) for pair in zip((outcome.weights_off, outcome.metrics_off), outcome.bound, strict=True)
            ]
            print("|", " | ".join([str(SCENARIOS[name].__doc__), outcome.lost, still, codes, *same]), "|", flush=True)


def _sameness(off: float, bound: float) -> str:
    if off == 0:
        return "the same"
    return f"within {off:.0e}, of {bound:.0e} allowed" if off <= bound else "DIFFER"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="only this scenario; may be repeated")
    return parser.parse_args()


if __name__ == "__main__":
    main()
