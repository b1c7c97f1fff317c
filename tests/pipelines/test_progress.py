from __future__ import annotations

from typing import Any

import pytest

from pipelines.training import progress
from pipelines.training.progress import Rate, format_line

STATE: dict[str, Any] = {
    "epoch": 0,
    "epochs": 80,
    "step": 1234,
    "steps": 55600,
    "terms": {"loss": 3.648, "id": 2.95, "icg_pull": 0.203, "icg_push": 0.495},
    "images_per_s": 51.2,
    "data_wait_share": 0.02,
    "val_mAP": None,
    "eta_s": 3725.0,
}


def test_a_narrow_terminal_still_shows_where_training_is_and_when_it_ends() -> None:
    line = format_line("train", STATE)[:80]
    assert "epoch 1/80" in line and "step 1234/55600" in line and "ETA 62:05" in line and "loss 3.648" in line
    assert "val mAP" not in format_line("train", STATE)
    assert "val mAP 41.0 %" in format_line("train", STATE | {"val_mAP": 0.41})
    assert "ETA …" in format_line("train", STATE | {"eta_s": None})


def test_the_time_left_does_not_count_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    rate = Rate(step=10, total=110, warm_up=3)
    left = []
    for step, seconds in ((11, 100.0), (12, 100.0), (13, 100.0), (14, 2.0), (15, 2.0)):
        clock[0] += seconds
        left.append(rate.eta_s(step))
    assert left == [None, None, None, 192.0, 190.0]


def test_notes_are_said_once_each_and_none_is_lost_at_the_end(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    notes = ["workers were lost"]
    monkeypatch.setattr(progress, "_news", lambda progress_actor, label: (label, list(notes)))
    monkeypatch.setattr("pipelines.runtime.progress.POLL_INTERVAL_S", 0.001)
    progress_actor: Any = None
    with progress.follow(progress_actor, "train"):
        notes.append("the last one")
    assert capsys.readouterr().err.splitlines() == ["train: workers were lost", "train: the last one"]
