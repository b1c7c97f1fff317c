"""Training that is disturbed ends as it would have: scenarios of benchmarks/chaos.py, asserted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import chaos
from benchmarks.chaos_runs import Outcome, Stage, metrics_off, stage, weights_off
from pipelines.runs import Run
from pipelines.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A minute each, so those whose parts other tests cover are left to `python -m benchmarks.chaos`: a killed worker
# (test_main_job), a killed command (test_tune_faults), a newest checkpoint that is cut off (test_main_job), a killed
# raylet (a part of "drained"), an object store that comes back (test_storage) or does not (as a disk that stays full),
# a disk that is full for a while (test_saver), any number of workers (test_distributed), and a worker that hangs.
EXIT_CODES = {"preempted": [143, 0], "drained": [0], "disk_stays_full": [1, 0]}


@pytest.fixture(scope="module")
def disturbed() -> Iterator[tuple[Stage, Run]]:
    with pytest.MonkeyPatch.context() as patched, stage() as found:
        patched.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)  # as the other tests have it
        yield found


def may_mount(folder: Path) -> bool:
    if shutil.which("mount") is None:
        return False
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    return tried.returncode == 0 and subprocess.run(["umount", str(folder)], check=True).returncode == 0


@pytest.mark.parametrize("name", EXIT_CODES)
def test_the_run_ends_as_the_undisturbed_one(name: str, disturbed: tuple[Stage, Run], tmp_path: Path) -> None:
    if name == "disk_stays_full" and not may_mount(tmp_path):
        pytest.skip("mounting a small file system is not allowed here")
    outcome: Outcome = chaos.SCENARIOS[name](*disturbed)
    assert outcome.exit_codes == EXIT_CODES[name]
    assert outcome.weights_off == outcome.metrics_off == 0
    assert outcome.said, "whoever started the training was not told"


def test_a_difference_is_seen(disturbed: tuple[Stage, Run], tmp_path: Path) -> None:
    _, calm = disturbed
    shutil.copytree(calm.location.url, tmp_path / "other")
    other = Run(Storage(tmp_path / "other"))
    assert weights_off(other, calm) == metrics_off(other, calm) == 0
    path = tmp_path / "other" / "checkpoints" / str(other.reference("last")) / "model.safetensors"
    content = load_file(path)
    content["head.classifier.weight"][0, 0] += 1e-3
    save_file(content, path)
    assert 0 < weights_off(other, calm) < 1
    rows = other.metrics()
    rows[3]["loss"] *= 1.001
    other.write_metrics(rows)
    assert metrics_off(other, calm) == pytest.approx(1e-3, rel=1e-6)
    for broken in (rows[:-1], [*rows, rows[-1]], [*rows[:-1], rows[-1] | {"step": 1}]):
        other.write_metrics(broken)
        assert metrics_off(other, calm) == float("inf")
