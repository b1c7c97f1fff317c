"""Claim: a training with ``train.workers=[1,2]`` goes on with one when the other is cut off, and loses nothing.

    python -m benchmarks.partition        (as root: it makes network namespaces)

Two nodes of one CPU train with a worker each, one of them in a network namespace. Its cable is pulled while its
processes go on, as in a real partition. Prints how long training stood still, the steps that were taken again, and
checks that every step is in ``metrics.jsonl`` once.
"""

from __future__ import annotations

import os
import time

from benchmarks.chaos_runs import Command, Stage, metrics_off, stage, undisturbed, using, weights_off
from cluster.local.namespaces import Network
from cluster.local.ray_cluster import LocalCluster
from pipelines.runs.run import Run

# What the head takes for dead after about 5 s; of its own it waits for half a minute.
SHORT_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # The other side of it: a node that does not reach the head for so long ends itself.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
OPTIONS = ["train.workers=[1,2]", "train.cpus_per_worker=1", "train.cache=decoded"]


def cut_off(place: Stage) -> tuple[Run, float, list[str]]:
    """The disturbed run, seconds until the first new step after the cut, and what is wrong."""
    name = "partition"
    added = SHORT_CHECKS | {"ICRE_CHAOS": name}
    with Network() as network, LocalCluster(nodes=2, cpus=1, environment=added, network=network) as cluster:
        command = Command(
            place,
            name,
            str(place.folder / "storage"),
            environment=using(cluster),
            overrides=OPTIONS,
        )
        with command.disturbed() as process:
            if {cluster.node_of(pid) for pid in command.workers()} != {0, 1}:
                raise RuntimeError("training did not start with a worker on each node, so nothing would be shown")
            before, cut = command.last_step, time.monotonic()
            cluster.partition(1)
            command.wait_for_step(process, before + 8)
            stood_still = time.monotonic() - cut
        wrong = [] if command.codes == [0] else [f"exit codes {command.codes}; it said:\n{command.said}"]
        return command.run, stood_still, wrong


def main() -> None:
    """Train undisturbed and cut off, compare, print."""
    os.environ.pop("RAY_ADDRESS", None)
    with stage() as place:
        calm = undisturbed(place)
        run, stood_still, wrong = cut_off(place)
        single = Command(place, "single", str(place.folder / "storage"), overrides=["train.workers=1"])
        single.run_to_the_end()
        status = (run.location / "status.json").read_json()
        steps = [row["step"] for row in run.metrics() if row["kind"] == "step"]
        if steps != [row["step"] for row in calm.metrics() if row["kind"] == "step"]:
            wrong.append(f"steps are missing or double: {steps}")
        restarts = status["restarts"]
        print(f"new steps {stood_still:.0f} s after the cut; restarts: {restarts}")
        print(
            f"{len(steps)} steps, each once; weights {weights_off(run, calm):.0e} off the undisturbed run's, metrics "
            f"{metrics_off(run, calm):.0e} (one worker from the start: {weights_off(single.run, calm):.0e}, "
            f"{metrics_off(single.run, calm):.0e})"
        )
        if wrong:
            raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
