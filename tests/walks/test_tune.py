"""A sweep with the storage that nobody named. Nine processes, four trainings, one of which fails on purpose."""

from __future__ import annotations

import pytest
import yaml
from PIL import Image

from tests.walks.commands import documented
from tests.walks.conftest import Road
from tests.walks.walking import Folder, contents, table, until

pytestmark = pytest.mark.timeout(1800)

SWEEP = "storage/sweeps/figure3-synthetic-each"
TRIALS = ["figure3-synthetic-each-0000", "figure3-synthetic-each-0001"]


@pytest.fixture(scope="module")
def folder(road: Road, running_ray: dict[str, str]) -> Folder:
    """The road's, after the sweep: the recipe's own weight of the loss, and twice as much.

    SIGKILL to the command with its Ray as soon as one training has a checkpoint; then the same command again.
    """
    planned = road.folder.run(*documented("icre tune --config configs/figure3-synthetic.yaml --dry-run"))
    assert all(trial in planned.out for trial in TRIALS)
    assert not (road.folder / SWEEP).exists()
    sweep = documented("icre tune --config configs/figure3-synthetic.yaml")
    command = road.folder.start(*sweep)
    begun = [road.folder.training(trial).path / "checkpoints/last" for trial in TRIALS]
    until(lambda: any(path.exists() for path in begun), command)
    command.kill()
    assert not (road.folder / SWEEP / "best.yaml").exists()
    folder = road.folder.on(running_ray)
    folder.run(*sweep)
    return folder


def test_a_sweep_ends_with_its_table_its_pictures_and_the_best_recipe(folder: Folder) -> None:
    for trial in TRIALS:
        assert folder.training(trial).state == "finished" and folder.training(trial).steps == [1, 2]
    for name in ("parallel", "sweep"):
        with Image.open(folder / SWEEP / f"{name}.png") as picture:
            assert min(picture.size) > 100
        assert (folder / SWEEP / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    best = yaml.safe_load((folder / SWEEP / "best.yaml").read_text())
    assert best["loss"]["icg"]["weight"] in (1.0, 2.0)
    rows = table((folder / SWEEP / "table.md").read_text())
    assert len(rows) == 3  # its head and two combinations


def test_how_far_it_is_and_the_best_recipe_is_an_ordinary_one(folder: Folder) -> None:
    status, planned = folder.at_once(
        documented("icre tune status figure3-synthetic-each"),
        [*documented("icre train --config storage/sweeps/figure3-synthetic-each/best.yaml"), "--dry-run"],
    )
    assert table(status.out) == table((folder / SWEEP / "table.md").read_text())
    assert "backbone: resnet18" in planned.out


def test_the_same_command_again_trains_nothing(folder: Folder) -> None:
    before = [contents(folder.training(trial).path / "checkpoints") for trial in TRIALS]
    folder.run(*documented("icre tune --config configs/figure3-synthetic.yaml"))
    assert [contents(folder.training(trial).path / "checkpoints") for trial in TRIALS] == before


def test_a_trial_is_repeated_to_the_last_digit(folder: Folder) -> None:
    named = {"figure3-synthetic-each-0004-seed1": TRIALS[1]}
    command = documented("icre train --from-trial figure3-synthetic-each-0004-seed1", named)
    folder.run(*command, "--run", "again")
    assert folder.training("again").weights == folder.training(TRIALS[1]).weights
    assert folder.training(TRIALS[0]).weights != folder.training(TRIALS[1]).weights


def test_a_sweep_of_which_nothing_comes_is_an_error(folder: Folder) -> None:
    """All trainings fail: 1. A mistake in the recipe: 2, before anything is trained."""
    common = ["icre", "tune", "--config", "configs/figure3-synthetic.yaml", "tune.method=grid"]
    failed, mistaken = folder.at_once(
        [*common, "--sweep", "hopeless", "tune.space={optimizer.lr: [1.0e+30]}"],
        [*common, "--sweep", "mistaken", "tune.space={optimizer.lrr: [0.1]}"],
        code=None,
    )
    assert failed.code == 1, failed.err
    assert "error: " in failed.err and "Traceback" not in failed.err
    assert (folder / "storage/sweeps/hopeless/table.md").is_file()
    assert not (folder / "storage/sweeps/hopeless/best.yaml").exists()
    assert mistaken.code == 2 and mistaken.is_a_mistake_that_can_be_mended(), mistaken.err
    assert not (folder / "storage/sweeps/mistaken").exists()
