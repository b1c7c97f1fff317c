from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from tensorboardX.proto.event_pb2 import Event, SessionLog

from icre import config
from icre.errors import ConfigError, StorageError
from pipelines.runs.run import Run
from pipelines.storage import Storage
from pipelines.telemetry import background as telemetry_background
from pipelines.telemetry import telemetry
from pipelines.telemetry.background import Background, Row
from pipelines.telemetry.prometheus import LIVE, SUMMARY, write_summary
from pipelines.telemetry.telemetry import Telemetry

PATIENCE_S = 40.0


def step(number: int, *, loss: float = 2.0, images_per_s: float = 64.0, waited: float = 0.0) -> Row:
    return {
        "kind": "step",
        "step": number,
        "epoch": 4,
        "lr": 0.03,
        "loss": loss,
        "id": loss - 0.5,
        "icg_pull": 0.5,
        "images_per_s": images_per_s,
        "data_wait_s": waited,
    }


def validation(number: int, *, rank1: float = 0.5) -> Row:
    return {"kind": "validation", "step": number, "epoch": 4, "rank1": rank1, "mAP": 0.25, "mINP": 0.125}


def recipe(*overrides: str) -> config.Recipe:
    return config.load_recipe(None, ["name=night", *overrides])


def new_run(folder: Path, asked: config.Recipe, name: str = "night-1") -> Run:
    run = Run(Storage(folder / "runs" / name))
    (run.location / "config.yaml").write_text(asked.to_yaml())
    (run.location / "manifest.json").write_json({"code": {"commit": "c0ffee"}, "data": {"hash": "abc"}})
    return run


def eventually(look: Callable[[], Any]) -> Any:
    """The first true thing that ``look`` finds."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


# TensorBoard


def events(run: Run) -> list[Any]:
    """All events of all files, read by the format's definition: length, its checksum, the event, its checksum."""
    folder, found = run.location / "tensorboard", []
    for name in folder.list():
        content, at = (folder / name).read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def scalars(run: Run) -> list[tuple[str, int, float]]:
    return [(value.tag, event.step, value.simple_value) for event in events(run) for value in event.summary.value]


def test_event_files_have_every_step_once_also_after_a_restart_from_a_checkpoint(tmp_path: Path) -> None:
    asked = recipe()
    run = new_run(tmp_path, asked)
    before = [step(number, loss=1.0) for number in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt), Telemetry.open(asked, run) as told:
        for row in before[:2]:
            told.step(row)
        told.validation(validation(2))
        told.checkpoint(step=2, seconds=1.5, stall_seconds=0.5)
        eventually(lambda: ("checkpoint/seconds", 2, 1.5) in scalars(run))
        assert [(s, v) for tag, s, v in scalars(run) if tag == "train/loss"] == [(1, 1.0), (2, 1.0)]
        told.step(before[2])
        raise KeyboardInterrupt
    assert [(s, v) for tag, s, v in scalars(run) if tag == "train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0)]

    with Telemetry.open(asked, run, history=[*before[:2], validation(2)]) as told:
        told.restarted(1)
        for number in (3, 4):
            told.step(step(number, loss=9.0))
    found = scalars(run)
    assert [(s, v) for tag, s, v in found if tag == "train/loss"] == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0)]
    assert [(s, v) for tag, s, v in found if tag == "validation/mAP"] == [(2, 0.25)]
    assert len({(tag, s) for tag, s, _ in found}) == len(found)
    # A TensorBoard that read the first file forgets everything from this step on.
    starts = [event.step for event in events(run) if event.session_log.status == SessionLog.START]
    assert starts == [0]
    assert events(run)[0].file_version == "brain.Event:2"


# Places that do not work


class Place:
    """A sink that a test steers."""

    label = "place"

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.open, self.rows = error, threading.Event(), list[Row]()

    def write(self, rows: Sequence[Row]) -> None:
        assert self.open.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.rows += rows

    def close(self, *, succeeded: bool) -> None:
        pass


def test_rows_that_wait_too_long_are_dropped_oldest_first_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_background, "MAX_ROWS", 3)
    place, warnings = Place(), list[str]()
    background = Background(place, interval_s=None, warn=warnings.append)
    for number in range(1, 6):
        background.put(step(number))
    background.end(succeeded=True)
    place.open.set()
    background.join(PATIENCE_S)
    assert [row["step"] for row in place.rows] == [3, 4, 5]
    assert len(warnings) == 1 and "2 rows" in warnings[0]


def test_a_place_that_is_away_is_one_warning_and_gets_what_comes_when_it_is_back() -> None:
    place, warnings = Place(StorageError("the store is away")), list[str]()
    place.open.set()
    background = Background(place, interval_s=0.001, warn=warnings.append)
    eventually(lambda: warnings)
    background.put(step(1))
    eventually(lambda: not background._rows)
    place.error = None
    background.put(step(2))
    background.end(succeeded=True)
    background.join(PATIENCE_S)
    assert [row["step"] for row in place.rows][-1] == 2
    assert len(warnings) == 1 and "the store is away" in warnings[0]


def test_a_defect_is_reported_with_its_traceback_and_the_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", reported.append)
    place = Place(ZeroDivisionError())
    place.open.set()
    background = Background(place, interval_s=0.001, warn=pytest.fail)
    eventually(lambda: reported)
    background.put(step(1))
    background.end(succeeded=True)
    background.join(PATIENCE_S)
    assert [error.exc_type for error in reported] == [ZeroDivisionError] and reported[0].exc_traceback is not None


# MLflow


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlflow").as_uri()


def test_an_mlflow_run_goes_on_after_a_restart_with_every_step_once(mlflow_store: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    asked = recipe(f"telemetry.mlflow={mlflow_store}", "train.epochs=70")
    run = new_run(tmp_path, asked)
    first = [*(step(number, loss=1.0) for number in range(1, 121)), validation(120)]
    with pytest.raises(KeyboardInterrupt), Telemetry.open(asked, run) as told:
        for row in first[:110]:
            told.step(row)
        raise KeyboardInterrupt
    client = MlflowClient(tracking_uri=mlflow_store)
    experiment = client.get_experiment_by_name("night")
    assert experiment is not None
    (stopped,) = client.search_runs([experiment.experiment_id])
    assert stopped.info.status == "FAILED"

    # The checkpoint that the run goes on from is newer than what the server was told, as after a SIGKILL.
    with Telemetry.open(asked, run, history=first) as told:
        told.restarted(1)
        told.step(step(121, loss=9.0))
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("night-1", "FINISHED")
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [*((number, 1.0) for number in range(1, 121)), (121, 9.0)]
    assert [m.step for m in client.get_metric_history(found.info.run_id, "validation/rank1")] == [120]
    assert found.data.params["train.epochs"] == "70" and found.data.params["loss.icg.rho2"] == "0.7"
    assert found.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert found.data.tags["icre.location"] == run.location.url


def test_training_goes_on_while_mlflow_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setattr(telemetry, "END_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as kept_open:
        asked = recipe(f"telemetry.mlflow=http://127.0.0.1:{server.getsockname()[1]}")
        run, warnings = new_run(tmp_path, asked), list[str]()
        with Telemetry.open(asked, run, warn=warnings.append) as told:
            told.step(step(1))
            told.checkpoint(step=1, seconds=1.0, stall_seconds=1.0)
            connection = kept_open.enter_context(server.accept()[0])
            assert connection.recv(1)
            for number in range(2, 101):
                told.step(step(number))
            told.checkpoint(step=100, seconds=1.0, stall_seconds=1.0)
            eventually(lambda: ("checkpoint/seconds", 100, 1.0) in scalars(run))
            assert warnings == []  # still waiting for MLflow's answer
        assert len(warnings) == 1 and warnings[0].startswith("MLflow")
    for thread in threading.enumerate():
        if thread.name == "telemetry-MLflow":
            thread.join(PATIENCE_S)


@pytest.mark.parametrize("installed", [True, False])
def test_no_mlflow_is_one_warning(installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed:
        pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    else:
        monkeypatch.setitem(sys.modules, "mlflow", None)
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        asked = recipe(f"telemetry.mlflow={uri}")
        run, warnings = new_run(tmp_path, asked), list[str]()
        with Telemetry.open(asked, run, warn=warnings.append) as told:
            told.step(step(1))
    assert len(warnings) == 1 and uri in warnings[0]
    assert ("train/loss", 1, 2.0) in scalars(run)


def test_addresses_with_credentials_are_refused() -> None:
    for setting in ("mlflow=http://me:secret@host:5000", "pushgateway=http://me:secret@host", "pushgateway=host:9091"):
        with pytest.raises(ConfigError):
            recipe(f"telemetry.{setting}")


# The summary of a run


def summary(run: Run) -> dict[str, float]:
    families = text_string_to_metric_families((run.location / "metrics.prom").read_text())
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["run"] for sample in samples} == {run.name}
    return {sample.name: sample.value for sample in samples}


def test_the_summary_of_a_run(tmp_path: Path) -> None:
    run = new_run(tmp_path, recipe())
    run.write_metrics([step(1), validation(1, rank1=0.1), step(2), validation(2, rank1=0.7)])
    started = time.time()
    write_summary(run, recipe(), succeeded=True, seconds=12.5, warn=pytest.fail)
    found = summary(run)
    assert found.keys() == SUMMARY.keys()
    assert started <= found["icre_train_last_success_timestamp_seconds"] <= time.time()
    assert found["icre_train_duration_seconds"] == 12.5 and found["icre_train_steps"] == 2
    assert found["icre_validation_rank1_ratio"] == 0.7
    assert found["icre_validation_map_ratio"] == 0.25 and found["icre_validation_minp_ratio"] == 0.125

    write_summary(run, recipe(), succeeded=False, seconds=1.0, warn=pytest.fail)
    assert found.keys() - summary(run).keys() == {"icre_train_last_success_timestamp_seconds"}


def test_a_run_that_fails_before_its_first_step_has_a_summary(tmp_path: Path) -> None:
    run = new_run(tmp_path, recipe())
    write_summary(run, recipe(), succeeded=False, seconds=1.0, warn=pytest.fail)
    assert summary(run)["icre_train_steps"] == 0


def test_a_pushgateway_or_a_store_that_is_away_is_a_warning(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        asked, warnings = recipe(f"telemetry.pushgateway={url}"), list[str]()
        run = new_run(tmp_path, asked)
        (tmp_path / "runs" / "night-1" / "metrics.prom").mkdir()
        write_summary(run, asked, succeeded=True, seconds=1.0, warn=warnings.append)
    assert len(warnings) == 2 and url in warnings[1]


def binary(name: str) -> str:
    """Debian packages of Prometheus; root installs them, so not everybody has them."""
    found = shutil.which(name)
    if found is None and os.environ.get("ICRE_REQUIRE_PROMETHEUS"):
        pytest.fail(f"ICRE_REQUIRE_PROMETHEUS is set and there is no {name}")
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def fetch(url: str) -> str:
    """The body, or nothing while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


GATEWAY = ("--web.listen-address={address}", "--persistence.file=")  # Debian's keeps everything unless told so


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a server with ``{address}`` in its arguments replaced, and gives its URL when it answers."""
    started = []

    def serve(*command: str, ready: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        arguments = [argument.replace("{address}", address) for argument in command]
        with (tmp_path / "server.log").open("ab") as log:
            started.append(subprocess.Popen(arguments, cwd=tmp_path, stdout=log, stderr=log))
        eventually(lambda: fetch(f"http://{address}{ready}"))
        return f"http://{address}"

    yield serve
    for process in started:
        process.kill()
        process.wait()


def test_a_pushgateway_keeps_the_last_success_when_the_next_run_fails(
    served: Callable[..., str], tmp_path: Path
) -> None:
    url = served(binary("prometheus-pushgateway"), *GATEWAY, ready="/-/ready")
    asked = recipe(f"telemetry.pushgateway={url}")
    write_summary(new_run(tmp_path / "1", asked), asked, succeeded=True, seconds=5.0, warn=pytest.fail)
    (before,) = pushed(url, "icre_train_last_success_timestamp_seconds")
    write_summary(new_run(tmp_path / "2", asked), asked, succeeded=False, seconds=6.0, warn=pytest.fail)
    assert pushed(url, "icre_train_last_success_timestamp_seconds") == [before]
    assert [sample.value for sample in pushed(url, "icre_train_duration_seconds")] == [6.0]
    assert (before.labels["job"], before.labels["recipe"]) == ("icre_train", "night")


def test_that_a_run_ended_is_pushed_also_when_its_storage_is_what_ended_it(
    served: Callable[..., str], tmp_path: Path
) -> None:
    url = served(binary("prometheus-pushgateway"), *GATEWAY, ready="/-/ready")
    asked, warnings = recipe(f"telemetry.pushgateway={url}"), list[str]()
    run = new_run(tmp_path, asked)
    for name in ("config.yaml", "metrics.jsonl", "metrics.prom"):  # cannot be read, or written
        (Path(run.location.url) / name).unlink(missing_ok=True)
        (Path(run.location.url) / name).mkdir()
    write_summary(run, asked, succeeded=False, seconds=6.0, warn=warnings.append)
    assert len(warnings) == 2
    assert len(pushed(url, "icre_train_last_completion_timestamp_seconds")) == 1
    assert pushed(url, "icre_train_last_success_timestamp_seconds") == pushed(url, "icre_train_steps") == []


def pushed(url: str, name: str) -> list[Any]:
    families = text_string_to_metric_families(fetch(f"{url}/metrics"))
    return [sample for family in families for sample in family.samples if sample.name == name]


# Live metrics, in a real worker


WANTED = {
    ("icre_train_loss", "loss"): 1.5,
    ("icre_train_loss", "id"): 1.0,
    ("icre_train_loss", "icg_pull"): 0.5,
    ("icre_train_learning_rate", ""): 0.03,
    ("icre_train_images_per_second", ""): 128 / 1.5,
    ("icre_train_data_wait_ratio", ""): 0.5,
    ("icre_train_epoch", ""): 5,
    ("icre_train_step", ""): 12,
    ("icre_train_checkpoint_seconds", ""): 3.0,
    ("icre_train_checkpoint_stall_seconds", ""): 0.5,
    ("icre_train_restarts_total", ""): 2,
    ("icre_train_skipped_steps", ""): 2,
    ("icre_validation_rank1_ratio", ""): 0.5,
    ("icre_validation_map_ratio", ""): 0.25,
}
CHECKPOINT_TIME = "icre_train_last_checkpoint_timestamp_seconds"
LIVE_RUN = "night-2"
"""The other tests, too, report to the agent when a Ray is open: this run is no other's."""


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[float]:
    """A worker that trains, in a manner of speaking; nothing happens there since the Unix time that is given."""
    asked = recipe()
    run = new_run(tmp_path_factory.mktemp("storage"), asked, LIVE_RUN)
    skipped = {
        "kind": "skipped",
        "step": 10,
        "epoch": 4,
        "reason": "loss is nan",
        "images_per_s": 1.0,
        "data_wait_s": 0,
    }

    @ray.remote(num_cpus=0.1)
    class Worker:  # here, so that it is sent whole: workers cannot import tests
        def start(self, steps: list[Row], validated: Row) -> float:
            self.told = Telemetry.open(asked, run, history=[skipped])
            self.told.restarted(2)
            for row in steps:
                self.told.step(row)
            self.told.step(skipped)
            self.told.validation(validated)
            self.told.checkpoint(step=12, seconds=3.0, stall_seconds=0.5)
            return time.time()

        def end(self) -> None:
            self.told.__exit__(None, None, None)

    worker = Worker.remote()  # type: ignore[attr-defined]
    # Half a second for 64 images, then a whole one; half of each is spent waiting.
    steps = [step(11, images_per_s=128.0, waited=0.25), step(12, loss=1.5, images_per_s=64.0, waited=0.5)]
    yield ray.get(worker.start.remote(steps, validation(12)))
    ray.get(worker.end.remote())
    ray.kill(worker)


@pytest.fixture(scope="module")
def discovery(ray_cluster: None) -> Path:
    """The file in which Ray lists its agents for Prometheus."""
    session = ray.get_runtime_context().get_session_name()
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / session / "prom_metrics_service_discovery.json"
    return eventually(lambda: file if file.exists() else None)


def scraped(discovery: Path) -> dict[str, Any]:
    """Metric families that begin with ray_icre_, with their samples of this run, from all agents, by name."""
    found = {}
    for group in json.loads(discovery.read_text()):
        for target in group["targets"]:
            for family in text_string_to_metric_families(fetch(f"http://{target}/metrics")):
                family.samples = [sample for sample in family.samples if sample.labels.get("run") == LIVE_RUN]
                if family.name.startswith("ray_icre_") and family.samples:
                    found[family.name] = family
    return found


def test_prometheus_finds_the_worker_through_rays_discovery_file(
    trained: float, discovery: Path, served: Callable[..., str], tmp_path: Path
) -> None:
    # A scrape may take as long as its interval: of an agent that has served the whole suite it can take over a second.
    scrape = {"job_name": "ray", "scrape_interval": "10s", "file_sd_configs": [{"files": [str(discovery)]}]}
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))  # JSON is YAML
    url = served(
        binary("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=tsdb",
        "--web.listen-address={address}",
        ready="/-/ready",
    )

    def ask(query: str) -> list[Any]:
        answer = json.loads(fetch(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
        assert answer["status"] == "success"
        return [(found["metric"], float(found["value"][1])) for found in answer["data"]["result"]]

    # A worker reports to its agent every 10 s: the first scrape may see only some terms, or those of the step before.
    last = {"loss": 1.5, "id": 1.0, "icg_pull": 0.5}
    eventually(
        lambda: last == {found["term"]: value for found, value in ask(f'ray_icre_train_loss{{run="{LIVE_RUN}"}}')}
    )
    ((_, age),) = eventually(lambda: ask(f'time() - last_over_time(ray_{CHECKPOINT_TIME}{{run="{LIVE_RUN}"}}[1d])'))
    assert age == pytest.approx(time.time() - trained, abs=5)
    restarts = eventually(lambda: ask(f'max by (run) (ray_icre_train_restarts_total{{run="{LIVE_RUN}"}})'))
    assert restarts == [({"run": LIVE_RUN}, 2.0)]


def test_live_metrics_are_on_the_nodes_agent_and_stay_there_without_news(trained: float, discovery: Path) -> None:
    # A worker reports every 10 s, and its agent forgets 20 s later what is not repeated.
    families = eventually(lambda: time.time() > trained + 32 and scraped(discovery))
    assert {name.removeprefix("ray_") for name in families} == {name.removesuffix("_total") for name in LIVE}
    values = dict[tuple[str, str], float]()
    for metric in LIVE.values():
        family = families[f"ray_{metric.name.removesuffix('_total')}"]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert sample.name == f"ray_{metric.name}"
            assert ("term" in sample.labels) == ("term" in metric.tags)
            values[metric.name, sample.labels.get("term", "")] = sample.value
    assert trained - 5 < values.pop((CHECKPOINT_TIME, "")) <= trained
    assert values == pytest.approx(WANTED)
