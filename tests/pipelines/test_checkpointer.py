"""The background writer of checkpoints, on a local folder and on tiny state; no Ray."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from icre import config
from icre.errors import StorageError, WeightsError
from icre.training import checkpoint
from icre.training.checkpoint import Progress, Snapshot
from pipelines.runs.checkpoints import CheckpointStore, folder_name
from pipelines.runs.run import Run
from pipelines.storage import Storage
from pipelines.training.checkpointer import AsyncCheckpointer, Saved


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Storage(tmp_path / "run"))


class Heard:
    """What a saver told."""

    def __init__(self) -> None:
        self.saved: list[Saved] = []
        self.warnings: list[str] = []


def saver(run: Run, heard: Heard, **settings: Any) -> AsyncCheckpointer:
    chosen = config.Checkpoints(**settings)
    return AsyncCheckpointer(run, chosen, steps_per_epoch=10, done=heard.saved.append, warn=heard.warnings.append)


def snapshot(step: int) -> Snapshot:
    network = torch.nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.fill_(step)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    progress = Progress(step=step, best_metric=None, best_step=None)
    return checkpoint.take_snapshot(network=network, optimizer=optimizer, progress=progress, classes=2)


def save_all(save: AsyncCheckpointer, steps: list[int], improved: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    for step in steps:
        save.save(snapshot(step), [{"kind": "step", "step": step}], improved=step in improved)
    save.wait()


def kept(run: Run) -> list[int]:
    names = (run.location / "checkpoints").list()
    return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [13, 40, 45]),
        ({"keep": 1}, [13, 45]),
        ({"keep": 3}, [13, 30, 40, 45]),
        ({"keep": 1, "keep_every": 2}, [13, 20, 40, 45]),
    ],
)
def test_the_newest_the_best_and_the_permanent_ones_are_kept(
    run: Run, settings: dict[str, int], expected: list[int]
) -> None:
    save_all(saver(run, Heard(), **settings), [7, 10, 13, 20, 30, 40, 45], improved={10, 13})
    assert kept(run) == expected
    assert (run.checkpoints.pointed("last"), run.checkpoints.pointed("best")) == (folder_name(45), folder_name(13))
    for step in expected:
        with run.checkpoints.load(folder_name(step)) as (_, meta):
            assert meta["progress"]["step"] == step


def test_checkpoints_of_a_history_that_was_left_do_not_count_as_newest(run: Run) -> None:
    """After step 40 turned out damaged, training went on from 30: what lies beyond is written anew or removed."""
    save_all(saver(run, Heard()), [30, 40])
    save_all(saver(run, Heard()), [35])
    assert kept(run) == [30, 35]
    assert run.checkpoints.pointed("last") == folder_name(35)


@pytest.mark.parametrize("pointed", [0, 1])
def test_a_kill_between_two_pointers_loses_no_best_checkpoint(
    run: Run, pointed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new best is step 20; what goes on from the last checkpoint does not come to that step again."""
    save_all(saver(run, Heard()), [10], improved={10})
    original, done = CheckpointStore.point, list[str]()

    def point(store: CheckpointStore, name: str, step_folder: str) -> None:
        if len(done) == pointed:
            raise KeyboardInterrupt  # nothing catches it, as nothing catches SIGKILL
        original(store, name, step_folder)
        done.append(name)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CheckpointStore, "point", point)
        save_all(saver(run, Heard()), [20], improved={20})
    last = int(str(run.checkpoints.pointed("last")).removeprefix("step-"))
    save_all(saver(run, Heard()), [step for step in (20, 30) if step > last], improved={20})
    assert (run.checkpoints.pointed("last"), run.checkpoints.pointed("best")) == (folder_name(30), folder_name(20))


def test_a_network_is_read_without_the_optimiser(run: Run) -> None:
    """Whose state is as large as the weights, or twice that; damage to it is seen only by who needs it."""
    save_all(saver(run, Heard()), [10])
    with run.checkpoints.load("last", optimizer=True) as (folder, _):
        assert (folder / checkpoint.OPTIMIZER).exists()
    (run.location / "checkpoints" / folder_name(10) / checkpoint.OPTIMIZER).write_bytes(b"cut")
    with run.checkpoints.load("last") as (folder, _):
        assert not (folder / checkpoint.OPTIMIZER).exists() and (folder / checkpoint.NETWORK).exists()
    with pytest.raises(WeightsError), run.checkpoints.load("last", optimizer=True):
        pass


def test_a_snapshot_does_not_change_while_training_goes_on() -> None:
    network = torch.nn.BatchNorm2d(3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        network(torch.randn(4, 3, 2, 2)).square().sum().backward()
        optimizer.step()

    step()
    taken = checkpoint.take_snapshot(network=network, optimizer=optimizer, progress=Progress(1, None, None), classes=2)
    before = {name: value.clone() for name, value in taken.network.items()}
    momentum = taken.optimizer["state"][0]["momentum_buffer"].clone()
    step()
    assert all(torch.equal(taken.network[name], before[name]) for name in before)
    assert torch.equal(taken.optimizer["state"][0]["momentum_buffer"], momentum)
    assert not torch.equal(network.state_dict()["running_mean"], before["running_mean"])


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(run: Run) -> None:
    heard, gate = Heard(), threading.Event()
    save = saver(run, heard, minutes=1e-9)
    assert save.is_due
    original = run.write_metrics
    object.__setattr__(run, "write_metrics", lambda rows: (gate.wait(10), original(rows)))
    save.save(snapshot(5), [], improved=False)
    assert not save.is_due, "a second one inside an epoch would make training wait for the first"
    assert heard.saved == [] and run.checkpoints.pointed("last") is None
    gate.set()
    save.save(snapshot(6), [], improved=False)
    assert [saved.step for saved in heard.saved][:1] == [5]
    save.wait()
    assert [saved.step for saved in heard.saved] == [5, 6] and save.is_due


def test_one_failure_is_a_warning_and_two_in_a_row_are_an_error_that_names_the_last_good_one(run: Run) -> None:
    heard = Heard()
    save = saver(run, heard)
    save_all(save, [10])
    blocked = Path((run.location / "metrics.jsonl").url)
    blocked.unlink(missing_ok=True)
    blocked.mkdir()  # writing the file fails now, as on a full disk
    save_all(save, [20])
    assert save.error is None and len(heard.warnings) == 1 and "step 20" in heard.warnings[0]
    assert run.checkpoints.pointed("last") == folder_name(10)
    blocked.rmdir()
    save_all(save, [30])
    blocked.unlink()
    blocked.mkdir()
    save_all(save, [40])
    assert save.error is None, "a success in between starts the count again"
    save_all(save, [50])
    assert save.error is not None and folder_name(30) in save.error.hint
    with run.checkpoints.newest() as found:
        assert found is not None and found[1]["progress"]["step"] == 30


def test_a_defect_is_raised_and_not_taken_for_a_full_disk(run: Run) -> None:
    save = saver(run, Heard())
    save.save(snapshot(1), [{"not json": object()}], improved=False)
    with pytest.raises(TypeError):
        save.wait()


def test_storage_errors_are_what_a_folder_in_the_way_gives(run: Run) -> None:
    (run.location / "metrics.jsonl" / "in-the-way").write_text("")
    with pytest.raises(StorageError):
        run.write_metrics([])


def test_a_failure_is_known_until_a_checkpoint_succeeds(run: Run) -> None:
    save = saver(run, Heard())
    (run.location / "metrics.jsonl" / "in-the-way").write_text("")
    save_all(save, [10])
    assert save.failed
    (run.location / "metrics.jsonl").delete()
    save_all(save, [10])
    assert not save.failed and run.checkpoints.pointed("last") == folder_name(10)
