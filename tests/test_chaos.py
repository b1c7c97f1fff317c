"""Training that is disturbed ends as it would have: the scenarios of benchmarks/chaos.py, asserted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import SCENARIOS, Outcome, Stage, stage
from pipelines.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXIT_CODES = {
    "driver": [-9, 0],
    "truncated": [-9, 0],
    "preempted": [143, 0],
    "disk_stays_full": [1, 0],
    "store_gone": [1, 0],
}
NEEDS_A_MOUNT = {"full_disk", "disk_stays_full"}


@pytest.fixture(scope="module")
def disturbed() -> Iterator[tuple[Stage, Run]]:
    with stage() as found:
        yield found


def may_mount(folder: Path) -> bool:
    if shutil.which("mount") is None:
        return False
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    return tried.returncode == 0 and subprocess.run(["umount", str(folder)], check=True).returncode == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_run_ends_as_the_undisturbed_one(name: str, disturbed: tuple[Stage, Run], tmp_path: Path) -> None:
    if name in NEEDS_A_MOUNT and not may_mount(tmp_path):
        pytest.skip("mounting a small file system is not allowed here")
    outcome: Outcome = SCENARIOS[name](*disturbed)
    assert outcome.exit_codes == EXIT_CODES.get(name, [0])
    assert outcome.weights_off <= outcome.bound[0] < 0.3
    assert outcome.metrics_off <= outcome.bound[1] < 0.3
    assert outcome.bound == (0, 0) or name == "elastic"
    if name != "outage":
        assert outcome.said, "whoever started the training was not told"


def test_two_runs_that_differ_are_told_apart(disturbed: tuple[Stage, Run]) -> None:
    from benchmarks import chaos

    place, calm = disturbed
    other = chaos.Command(place, "other", str(place.folder / "storage"), overrides=["seed=1", "train.epochs=1"])
    other.run_to_the_end()
    assert chaos.weights_off(other.run, calm) > 1e-3
    assert chaos.metrics_off(other.run, calm) > 1e-2
    assert chaos.weights_off(calm, calm) == chaos.metrics_off(calm, calm) == 0
