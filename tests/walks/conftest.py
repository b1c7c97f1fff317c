"""What walks share: empty folders, and the one in which the README's commands were run by hand."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.walks.commands import block_with
from tests.walks.walking import SAME_ARITHMETIC, Ended, Folder, Running, plain_environment, until, write_recipes

Folders = Callable[[str], Folder]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """Makes folders for a walk, by name. Whatever a walk has started is ended with the session."""
    base, started = tmp_path_factory.mktemp("walks"), list[Running]()
    environment = plain_environment(base / "cache")
    (base / "logs").mkdir()
    yield lambda name: Folder(base / name, environment, base / "logs", started)
    for running in started:
        running.kill()


RAY = """
import os, time
import ray

parent = os.getppid()
print(ray.init("local", num_cpus=4, include_dashboard=False).address_info["gcs_address"], flush=True)
while os.getppid() == parent:
    time.sleep(1)
"""


@pytest.fixture(scope="session")
def running_ray(folders: Folders) -> dict[str, str]:
    """The variables by which commands find a Ray that runs on this machine already, as on a workstation that has one.

    Starting one is a third of what a command without trainings takes. The README's block, the demo and whatever is
    killed start their own.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    command = folders("ray").on(token).start("python", "-c", RAY)
    until(lambda: command.out.endswith("\n"), command)
    return {"RAY_ADDRESS": command.out.strip(), **token}


@dataclass(frozen=True)
class Road:
    """The folder after README's "The same by hand", and what each of its commands printed."""

    folder: Folder
    told: dict[str, Ended]

    def __getitem__(self, verb: str) -> Ended:
        return self.told[verb]


@pytest.fixture(scope="session")
def road(folders: Folders) -> Road:
    """An empty folder with the recipes alone, then every command of the README's block, in order and unchanged."""
    folder = folders("road")
    assert not any(Path(folder.path).iterdir())
    write_recipes(folder.path)
    plain, told = folder.environment, {}
    folder.environment = plain | SAME_ARITHMETIC
    for words in block_with("icre synthesize --config configs/demo.yaml"):
        told[words[1]] = folder.run(*words)
    folder.environment = plain
    return Road(folder, told)
