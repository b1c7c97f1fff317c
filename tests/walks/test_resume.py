"""A training that is killed goes on to the weights that it would have had.

Three processes, one training in two parts.
"""

from __future__ import annotations

import pytest

from tests.walks.commands import documented
from tests.walks.conftest import Folders, Road
from tests.walks.walking import SAME_ARITHMETIC, copy_prepared, until

pytestmark = pytest.mark.timeout(1800)


def test_a_killed_training_goes_on_and_ends_as_the_one_that_was_not(road: Road, folders: Folders) -> None:
    """SIGKILL to all of it as soon as there is a checkpoint; then the README's command."""
    folder, undisturbed = folders("resume"), road.folder.training("mine")
    folder.environment |= SAME_ARITHMETIC  # as the undisturbed one was trained
    copy_prepared(road.folder, folder)
    training = folder.training("mine")
    command = folder.start("icre", "train", "--config", "configs/demo.yaml", "--run", "mine")
    until((training.path / "checkpoints/last").exists, command)
    command.kill()
    assert command.process.returncode == -9
    assert training.state == "running" and len(training.steps) < len(undisturbed.steps)

    folder.run(*documented("icre train --config configs/demo.yaml --run mine --resume auto"))
    assert training.state == "finished"
    assert training.steps == undisturbed.steps
    assert training.weights == undisturbed.weights
    assert [row["loss"] for row in training.rows("step")] == [row["loss"] for row in undisturbed.rows("step")]

    refused = folder.run(*documented("icre train --resume mine"), code=2)
    assert refused.is_a_mistake_that_can_be_mended()
