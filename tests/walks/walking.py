"""Running ICRE as somebody does who has only the README: processes in a folder, and what they leave there.

Nothing here knows the inside: no name of the code, only commands, exit codes, what is printed, and the files that the
README names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"icre": str(Path(sys.executable).with_name("icre")), "python": sys.executable}
LIMIT_S = 500.0
"""No command of a walk takes longer, even where the machine is busy."""
MARK = "ICRE_WALK"
"""In the environment of a command and of everything that it starts, so that all of it can be ended."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SAME_ARITHMETIC = {
    # With one thread, and the instructions that any x86-64 has, sums are added up in the same order everywhere. That is
    # slow: only what is pinned, or compared with it, is made so.
    **ONE_THREAD,
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
OF_OTHERS = ("RAY_", "AWS_", "ICRE_", "MLFLOW_")
"""Variables that tests beside the walks export, and that would lead a command elsewhere."""

SMALL: dict[str, Any] = {
    "data": {"height": 64, "width": 32, "shard_mib": 1},
    "model": {"backbone": "resnet18", "weights": None, "dim": 32, "heads": 4},
    "batch": {"identities": 4, "visible": 2, "infrared": 2},
    "augmentation": {"pad": 4},
    # So small a rate keeps rounding small: on another processor, numbers stay near each other.
    "optimizer": {"name": "sgd", "lr": 2.0e-4, "backbone_lr": 2.0e-4},
    "schedule": {"warmup_epochs": 0, "milestones": []},
    "train": {
        "epochs": 1,
        "steps_per_epoch": 2,
        "workers": 1,
        "cpus_per_worker": 0.5,
        "gpus_per_worker": 0,
        "loaders": 1,
        "loader_cpus": 0.25,
        "validate_every": 1,
    },
    "evaluation": {"workers": 0, "cpus_per_worker": 0.5, "gpus_per_worker": 0, "batch_size": 32},
}
"""What makes every recipe of the project small."""
PEOPLE = {
    "identities": 20,
    "images_per_modality": 4,
    "visible_cameras": 2,
    "infrared_cameras": 2,
    "difficulty": 0.1,
}
"""The synthetic people of every recipe that has some: one folder of images and one data set serve all walks."""
OWN: dict[str, dict[str, Any]] = {
    "demo": {"train": {"epochs": 2, "steps_per_epoch": 3}, "evaluation": {"trials": 3}},
    # Where a walk has many trainings, they need no processes of their own: `demo` has them.
    "ablation-synthetic": {"train": {"workers": 0}, "evaluation": {"trials": 2}},
    # The first value is the recipe's own, so these are two trainings.
    "figure3-synthetic": {
        "data": {"name": "demo", "root": "storage/images/demo"},
        "train": {"workers": 0},
        "evaluation": {"trials": 2},
        "tune": {"seeds": 1, "space": {"loss.icg.weight": [1.0, 2.0]}},
    },
    "regdb-sgd": {
        "data": {"split": {"val": 0.0}},
        "batch": {"identities": 2},
        "train": {"steps_per_epoch": 1, "workers": 0},
    },
    "sysu-sgd": {"data": {"split": {"val": 0.0}}, "batch": {"identities": 2}},
}
"""Settings of single recipes that differ from :data:`SMALL`."""


@dataclass(frozen=True)
class Ended:
    """A command that is over."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of standard output."""
        return self.out.rstrip().rpartition("\n")[2]

    def is_a_mistake_that_can_be_mended(self) -> bool:
        """Two lines, what and how to mend it, and nothing of the program's inside."""
        lines = self.err.splitlines()
        told = [any(line.startswith(begin) for line in lines) for begin in ("error: ", "hint: ")]
        return all(told) and "Traceback" not in self.out + self.err


class Running:
    """A command that was started, in a process group of its own."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], logs: Path) -> None:
        self.words, self.mark = tuple(words), uuid.uuid4().hex
        self._started = time.monotonic()
        self._logs = logs
        # To files: a process that outlives the command would keep a pipe open.
        self._files = [logs / f"{self.mark}.{stream}" for stream in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [PROGRAMS.get(words[0], words[0]), *words[1:]],
                cwd=folder,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                # A shell's background job is deaf to Ctrl-C, and so is all that it starts.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def out(self) -> str:
        """Standard output until now."""
        return self._files[0].read_text(errors="replace")

    def end(self, code: int | None = 0) -> Ended:
        """Wait for it. None: any exit code will do."""
        try:
            found = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{' '.join(self.words)} did not end:\n{self._tail()}") from None
        seconds = time.monotonic() - self._started
        out, err = (file.read_text(errors="replace") for file in self._files)
        with (self._logs / "commands.tsv").open("a") as file:
            file.write(f"{seconds:.1f}\t{found}\t{' '.join(self.words)}\n")
        assert code is None or found == code, f"exit code {found}: {' '.join(self.words)}\n{self._tail()}"
        return Ended(self.words, found, out, err, seconds)

    def kill(self) -> None:
        """SIGKILL to its process group, then to whatever it started that is elsewhere."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        kill_marked(self.mark)
        self.process.wait()

    def _tail(self) -> str:
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in self._files)


class Folder:
    """A folder in which somebody works. ``environment``: the variables of the commands there."""

    def __init__(self, path: Path, environment: Mapping[str, str], logs: Path, started: list[Running]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.environment = path, dict(environment)
        self._logs, self._started = logs, started

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def on(self, ray: Mapping[str, str]) -> Folder:
        """The same folder, for commands that use a Ray that runs already."""
        return Folder(self.path, self.environment | ray, self._logs, self._started)

    def start(self, *words: str) -> Running:
        """A command, which goes on while the walk does something else."""
        running = Running(words, self.path, self.environment, self._logs)
        self._started.append(running)
        return running

    def run(self, *words: str, code: int | None = 0) -> Ended:
        """A command, to its end."""
        return self.start(*words).end(code)

    def at_once(self, *commands: Sequence[str], code: int | None = 0) -> list[Ended]:
        """Commands that do not need each other, as many at a time as a small machine has cores."""
        found: list[Ended] = []
        for first in range(0, len(commands), 2):
            pair = [self.start(*words) for words in commands[first : first + 2]]
            found += [running.end(code) for running in pair]
        return found

    def file(self, name: str) -> Any:
        """What a JSON file says."""
        return json.loads((self / name).read_text())

    def training(self, run: str, storage: str = "storage") -> Training:
        """A run folder."""
        return Training(self / f"{storage}/runs/{run}")

    def runs(self) -> set[str]:
        """Names of all run folders."""
        return {path.name for path in (self / "storage/runs").glob("*")}


@dataclass(frozen=True)
class Training:
    """A run folder, as the README describes it."""

    path: Path

    @property
    def state(self) -> str:
        """The state in status.json."""
        return str(json.loads((self.path / "status.json").read_text())["state"])

    @property
    def weights(self) -> str:
        """SHA-256 of the newest checkpoint's weights file."""
        name = (self.path / "checkpoints/last").read_text().strip()
        (file,) = (self.path / "checkpoints" / name).glob("*.safetensors")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl: ``step`` or ``validation``."""
        rows = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["kind"] == kind]

    @property
    def steps(self) -> list[int]:
        """Numbers of the steps, as they are written."""
        return [row["step"] for row in self.rows("step")]

    def metrics(self, checkpoint: str) -> dict[str, float]:
        """Means of the only protocol by which a checkpoint was evaluated: ``visible_to_infrared/rank1`` and so on."""
        (file,) = (self.path / "eval").glob(f"{checkpoint}-*.json")
        directions = json.loads(file.read_text())["directions"]
        return {
            f"{direction}/{metric}": found["mean"][metric]
            for direction, found in directions.items()
            for metric in ("rank1", "mAP")
        }


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with what changes when somebody writes it."""
    files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): (stat.st_mtime_ns, stat.st_size) for path, stat in files.items()}


def table(markdown: str) -> dict[str, list[str]]:
    """Cells of the lines of Markdown tables, by the first cell."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines if not set(line[0]) <= {"-", ":"}}


def merged(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with changes, section by section."""
    found = dict(base)
    for change in changes:
        for key, value in change.items():
            inner = isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and key != "space"
            found[key] = merged(found[key], value) if inner else value
    return found


def write_recipes(folder: Path) -> None:
    """The project's own recipes under their own names in ``configs/``, made small."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        people = {"data": {"synthetic": PEOPLE}} if recipe["data"].get("synthetic") else {}
        small = merged(recipe, SMALL, people, OWN.get(path.stem, {}))
        (folder / "configs" / path.name).write_text(yaml.safe_dump(small, sort_keys=False))


def copy_prepared(source: Folder, target: Folder) -> None:
    """Recipes, images and the prepared data set; no run."""
    for name in ("configs", "storage/images", "storage/datasets"):
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)


def until(condition: Callable[[], Any], command: Running) -> None:
    """Wait for something that a command does."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert command.process.poll() is None, f"ended before that: {command.end(None)}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def plain_environment(cache: Path) -> dict[str, str]:
    """This process' environment without what others exported, with one thread."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(OF_OTHERS)}
    return {
        **own,
        **ONE_THREAD,
        # Where copies of data sets are kept. By default it is the temporary folder, which nobody would clean here.
        "ICRE_CACHE": str(cache),
        # Ray's watch for nodes that are taken away is one process more in each training; tests/test_chaos.py has it.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }


def kill_marked(mark: str) -> None:
    """SIGKILL to every process that has the mark in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
