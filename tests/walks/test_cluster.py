"""Jobs on a cluster of two nodes with an object store.

Fourteen processes, six jobs, three trainings.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyarrow import fs

from tests.walks.commands import documented
from tests.walks.conftest import Folders
from tests.walks.walking import ROOT, Ended, Folder, table, until, write_recipes

pytestmark = pytest.mark.timeout(1800)

SENT = ("icre", "pipelines", "cluster", ".rayignore", "constraints.txt", "pyproject.toml")
STORAGE = "storage=s3://icre"
MINE = {
    "storage=s3://bucket/icre": STORAGE,
    "storage=s3://my-bucket/icre": STORAGE,
    "data.root=s3://bucket/images": "data.root=s3://icre/images",
    "storage=…": STORAGE,
    "data.root=…": "data.root=s3://icre/images",
}
DEMO = ["--config", "configs/demo.yaml"]
PREPARED = ["data.root=null", "data.synthetic=null"]
"""Images of which nothing is read any more once they are prepared."""


@dataclass(frozen=True)
class Place:
    """A checkout of the project in whose folder the commands are given, and the bucket."""

    folder: Folder
    bucket: fs.FileSystem
    address: str

    def names(self, under: str) -> set[str]:
        """Keys of the bucket below a folder."""
        found = self.bucket.get_file_info(fs.FileSelector(f"icre/{under}", recursive=True))
        return {file.path.removeprefix(f"icre/{under}/") for file in found}

    def read(self, name: str) -> Any:
        """A JSON file of the bucket."""
        with self.bucket.open_input_stream(f"icre/{name}") as file:
            return json.loads(file.read())

    def submit(self, *words: str, code: int = 0) -> Ended:
        """`icre submit`."""
        return self.folder.run("icre", "submit", *words, code=code)


def exported(printed: str) -> dict[str, str]:
    """The variables of the lines that are to be copied into a shell."""
    pairs = [shlex.split(line)[1].partition("=") for line in printed.splitlines() if line.startswith("export ")]
    return {name: value for name, _, value in pairs}


@pytest.fixture(scope="module")
def place(folders: Folders) -> Iterator[Place]:
    """The cluster is a process like any other: its printed lines are all that is known of it. Ctrl-C ends it."""
    rendered = folders("rendered")
    write_recipes(rendered.path)
    rendered.run("icre", "synthesize", *DEMO)
    folder = folders("checkout")
    for name in SENT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    write_recipes(folder.path)
    cluster = folder.start(*documented("python -m cluster.local --nodes 2"))
    try:
        until(lambda: "# ready" in cluster.out, cluster)
        variables = exported(cluster.out)
        folder.environment |= variables
        store = urlsplit(variables["AWS_ENDPOINT_URL"])
        bucket = fs.S3FileSystem(
            access_key=variables["AWS_ACCESS_KEY_ID"],
            secret_key=variables["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=store.netloc,
            scheme=store.scheme,
            region=variables.get("AWS_REGION", variables.get("AWS_DEFAULT_REGION", "us-east-1")),
        )
        fs.copy_files(str(rendered / "storage/images/demo"), "icre/images", destination_filesystem=bucket)
        yield Place(folder, bucket, variables["RAY_API_SERVER_ADDRESS"])
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.end(None).code in (0, 130)
    finally:
        if cluster.process.poll() is None:
            cluster.kill()


def test_the_doctor_looks_at_every_node(place: Place) -> None:
    """Exit code 0 or 1 as its own last line says; the way to the cluster and the bucket are in order."""
    mine = {**MINE, "http://127.0.0.1:8265": place.address}
    told = place.folder.run(
        *documented("icre doctor --address http://127.0.0.1:8265 storage=s3://bucket/icre", mine), code=None
    )
    failed = re.search(r"(\d+) failed", told.err)
    assert told.code == (1 if failed else 0), told.err
    lines = [line for line in told.out.splitlines() if "storage" in line or "cluster" in line]
    assert lines and not [line for line in lines if "failed" in line]


def test_jobs_prepare_train_evaluate_and_tune(place: Place) -> None:
    """One after the other; what each leaves is in the bucket, and nothing is in the folder."""
    prepared = place.folder.run(
        *documented("icre submit prepare data.root=s3://bucket/images storage=s3://bucket/icre", MINE), *DEMO
    )
    assert table(prepared.out)["train"][0] == "10"
    assert "manifest.json" in place.names("datasets/demo")

    train = documented("icre submit --id weekly-2026-47 --no-follow train storage=s3://bucket/icre", MINE)
    started = place.folder.run(*train, *DEMO, *PREPARED, "--run", "weekly")
    assert started.last_line == "weekly-2026-47"
    place.folder.run(*documented("icre submit --attach weekly-2026-47"))
    assert place.read("runs/weekly/status.json")["state"] == "finished"
    assert {"checkpoints/last", "checkpoints/best", "metrics.jsonl"} <= place.names("runs/weekly")

    place.submit("evaluate", *DEMO, STORAGE, "--run", "weekly", "evaluation.workers=1")
    result = place.read("runs/weekly/eval/best-folder.json")
    assert all(0 < found["mean"]["mAP"] <= 1 for found in result["directions"].values())

    place.submit("tune", "--config", "configs/figure3-synthetic.yaml", STORAGE, *PREPARED)
    assert {"best.yaml", "table.md", "parallel.png"} <= place.names("sweeps/figure3-synthetic-each")
    assert not (place.folder / "storage").exists()


def test_commands_of_the_text_that_would_take_a_real_cluster(place: Place) -> None:
    """All checks are made and what would be sent is printed."""
    ablate = documented(
        "icre submit --id ablate ablate --config configs/ablation-synthetic.yaml --table components --seeds 3 "
        "storage=… data.root=… train.cpus_per_worker=1 evaluation.cpus_per_worker=1",
        MINE,
    )
    train = documented("icre submit train --config configs/sysu-sgd.yaml storage=s3://bucket/icre", MINE)
    for told in place.folder.at_once(*([*words[:2], "--dry-run", *words[2:]] for words in (ablate, train))):
        assert "would upload" in told.out
    gateway = "icre train --config configs/demo.yaml storage=s3://icre telemetry.pushgateway=http://127.0.0.1:9091"
    prepare = documented("icre prepare --config configs/demo.yaml storage=s3://my-bucket/icre", MINE)
    plans = place.folder.at_once(
        [*documented(gateway), "--dry-run"],
        [*prepare, "data.root=s3://icre/images", "--dry-run"],
    )
    for told in plans:
        assert "s3://icre" in told.out


def test_a_job_for_kubernetes_is_printed_without_kubectl(place: Place) -> None:
    """A RayJob in YAML, which the shell's arrow puts into a file."""
    words = documented(
        "icre submit --kubernetes --dry-run --id train-47 train … > train-47.yaml", {"…": "storage=s3://bucket/icre"}
    )
    assert words[-2:] == [">", "train-47.yaml"]
    Path(place.folder / "train-47.yaml").write_text(place.folder.run(*words[:-2]).out)
    assert "kind: RayJob" in (place.folder / "train-47.yaml").read_text()
