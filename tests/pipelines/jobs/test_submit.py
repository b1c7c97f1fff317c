"""Submitting: what is refused before anything is sent, and real jobs on a real head until their exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sysconfig
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

from cluster.local.ray_cluster import LocalCluster
from pipelines.jobs.job_logs import exit_code, follow, known
from pipelines.jobs.server import JobServer, connect
from pipelines.jobs.upload import survey
from tests.pipelines.jobs.conftest import PLANTED, Icre

ROOT = Path(__file__).resolve().parents[3]

# A verb that starts in no time: `name=` says what it does. It writes down every start.
FAKE_VERB = """
import os, sys, time
from pathlib import Path
folder, todo = Path(sys.argv[1].removeprefix("storage=")), sys.argv[2].removeprefix("name=")
with (folder / "starts").open("a") as starts:
    starts.write("x")
print("started", todo, flush=True)
if todo == "wait":
    while not (folder / "go").exists():
        time.sleep(0.05)
if todo == "talk":
    for number in range(400):
        print(f"line {number} " + "y" * 50, flush=True)
        while number in (200, 300) and not (folder / f"go-{number}").exists():
            time.sleep(0.05)
if todo == "killed":
    os.kill(os.getpid(), 9)
sys.exit(int(todo.removeprefix("exit-")) if todo.startswith("exit-") else 0)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that looks like the project, with the fake verb in the place of `icre model`."""
    folder = tmp_path / "project"
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines" / "__init__.py").touch()
    (folder / "pipelines" / "show_model.py").write_text(FAKE_VERB)
    return folder


@pytest.fixture
def model(icre: Icre, project: Path, tmp_path: Path) -> Any:
    """``model("exit-3", "--id", "a")`` submits the fake verb."""

    def call(todo: str, *options: str) -> tuple[int, str, str]:
        return icre("submit", "--working-dir", str(project), *options, "model", f"storage={tmp_path}", f"name={todo}")

    return call


# Refused before anything is sent


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["submit", "train"],
        ["train", "--nope"],
        ["train", "train.epochs=0"],
        ["train", "storage=s3://bucket/x"],
        ["--address", "head:8265", "train", "storage=s3://bucket/x"],
        ["--address", "http://user:pw@head:8265", "train", "storage=s3://bucket/x"],
        ["--id", "a b", "train", "storage=s3://bucket/x"],
        ["--attach", "a", "train"],
        [],
    ],
    ids=" ".join,
)
def test_mistakes_of_the_command_line_are_told_without_a_cluster(icre: Icre, arguments: list[str]) -> None:
    code, out, err = icre("submit", *arguments)
    assert code == 2 and out == ""
    assert "rror: " in err and "Traceback" not in err
    assert "user:pw" not in err


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("arguments", "secret"),
    [
        (["storage=s3://key:hunter2hunter2@bucket/x"], "hunter2"),
        (["storage=s3://bucket/x", "model.weights=https://store/w.pth?X-Amz-Signature=abcdef0123"], "abcdef0123"),
        (["storage=s3://bucket/x", "aws_secret_access_key=abcdef0123"], "abcdef0123"),
        (["storage=s3://bucket/x", "--run", "AKIA" + "Z" * 16], "ZZZZ"),
        (["storage=s3://bucket/x", "name=swordfishswordfish"], "swordfish"),
    ],
)
def test_credentials_are_refused_and_not_repeated(
    icre: Icre, monkeypatch: pytest.MonkeyPatch, arguments: list[str], secret: str
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "swordfishswordfish")
    code, out, err = icre("submit", "train", *arguments)
    assert code == 2
    assert secret not in out + err
    assert "docs/cluster.md" in err


@pytest.mark.usefixtures("nowhere")
def test_credentials_in_the_recipe_file_are_refused(icre: Icre, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("storage: s3://bucket/x\nmodel: {weights: 'https://me:hunter2hunter2@store/w.pth'}\n")
    code, out, err = icre("submit", "train", "--config", str(recipe))
    assert code == 2 and "model.weights" in err and "hunter2" not in out + err


def test_what_would_be_uploaded_is_what_ray_packs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = [
        "pipelines/__init__.py",
        "kept/a.txt",
        "kept/skipped.log",
        "storage/runs/x",
        ".git/HEAD",
        ".venv/bin/python",
        "deep/ignored/here/x",
        "deep/__pycache__/x.pyc",
        "deep/kept.txt",
    ]
    for number, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x" * number)
    (source / ".gitignore").write_text("*.log\n")
    (source / "deep" / ".gitignore").write_text("ignored/\n")
    (source / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    package = tmp_path / "package.zip"
    create_package(str(source), package, include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__"])
    with zipfile.ZipFile(package) as archive:
        packed = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
    assert survey(source).files == packed
    assert "deep/kept.txt" in packed and "kept/skipped.log" not in packed


def test_an_upload_that_is_too_large_names_its_largest_folder(
    icre: Icre, at_cluster: LocalCluster, project: Path, tmp_path: Path
) -> None:
    (project / "pictures" / "of").mkdir(parents=True)
    with (project / "pictures" / "of" / "people.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    code, _, err = icre("submit", "--working-dir", str(project), "model", f"storage={tmp_path}")
    assert code == 2 and "pictures/of/ 101.0 MiB" in err
    (project / ".rayignore").write_text("pictures/\n")
    code, out, _ = icre("submit", "--dry-run", "--working-dir", str(project), "model", f"storage={tmp_path}")
    assert code == 0 and "3 files" in out


@pytest.mark.parametrize("name", [".env", "certificates/tls.pem", ".aws/credentials", "id_ed25519", "auth_token"])
def test_files_that_look_like_keys_are_not_uploaded(
    icre: Icre, at_cluster: LocalCluster, project: Path, tmp_path: Path, name: str
) -> None:
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("x")
    code, _, err = icre("submit", "--working-dir", str(project), "model", f"storage={tmp_path}")
    assert code == 2 and name in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "storage=relative/folder"], "storage=relative/folder"),
        (["train", "--config", "/etc/hostname"], "/etc/hostname"),
        (["--working-dir", "/etc", "train", "storage=s3://bucket/x"], "/etc"),
        (["--working-dir", "/nonexistent", "train", "storage=s3://bucket/x"], "/nonexistent"),
    ],
)
def test_paths_that_a_job_would_not_see_are_refused(
    icre: Icre, at_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = icre("submit", *arguments)
    assert code == 2 and out == "" and told in err


def test_a_local_storage_is_a_warning_where_the_cluster_is_not_this_machine_alone(
    icre: Icre, at_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    command = ["submit", "--dry-run", "train", f"storage={tmp_path}"]
    assert str(tmp_path) in icre(*command)[2]
    assert "warning" not in icre(*command[:3], "storage=s3://bucket/x")[2]
    assert len(connect().nodes) == 2
    monkeypatch.setattr(JobServer, "nodes", property(lambda server: [{}]))
    assert "warning" not in icre(*command)[2]


# The way to the cluster


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def test_no_answer_and_an_answer_of_somebody_else(icre: Icre, tmp_path: Path) -> None:
    with listener() as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        code, _, err = icre("submit", "--address", address, "model", f"storage={tmp_path}")
        thread.join()
        assert code == 1 and address in err and "Traceback" not in err
    code, _, err = icre("submit", "--address", address, "model", f"storage={tmp_path}")
    assert code == 1 and address in err and "Traceback" not in err


def test_the_address_option_wins_over_the_environment(icre: Icre, at_cluster: LocalCluster, tmp_path: Path) -> None:
    code, _, err = icre("submit", "--address", "http://127.0.0.1:9", "--attach", "x")
    assert code == 1 and "127.0.0.1:9" in err


@pytest.mark.parametrize("token", ["", "0" * 32])
def test_a_missing_or_wrong_token_is_the_users_mistake_and_stays_secret(
    icre: Icre, at_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    code, _, err = icre("submit", "--attach", "x")
    assert code == 2 and "token" in err and "0" * 32 not in err


def test_a_job_that_nobody_knows(icre: Icre, at_cluster: LocalCluster) -> None:
    code, _, err = icre("submit", "--attach", "never-submitted")
    assert code == 1 and "never-submitted" in err and "Traceback" not in err


# Real jobs


@pytest.mark.timeout(180)
def test_a_data_set_is_prepared_and_nothing_tells_the_nodes_secrets(
    icre: Icre, at_cluster: LocalCluster, synthetic_images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    storage = tmp_path / "storage"
    commands: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    commands.add(file.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code, out, err = icre(
            "submit", "--id", "prepared", "prepare", "--config", "configs/demo.yaml", f"storage={storage}",
            f"data.root={synthetic_images}", "data.name=people", "data.height=64", "data.width=32",
        )  # fmt: skip
    finally:
        over.set()
        watcher.join()
    assert code == 0, err
    assert "| train |" in out
    assert (storage / "datasets" / "people" / "manifest.json").is_file()
    job = str(known(connect(), "prepared"))
    assert "prepared" in job and any(b"pipelines.prepare" in command for command in commands)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    secrets = [*PLANTED.values(), token.read_text()]
    kept = [file for folder in (storage, at_cluster.folder) for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "job-driver-prepared.log" for file in kept)
    for secret in secrets:
        assert secret not in out + err + job
        assert not [command for command in commands if secret.encode() in command]
        assert not [file for file in kept if file != token and secret.encode() in file.read_bytes()]


@pytest.mark.parametrize(("todo", "expected"), [("exit-0", 0), ("exit-1", 1), ("exit-2", 2), ("killed", 137)])
def test_the_exit_code_is_the_drivers_own(model: Any, at_cluster: LocalCluster, todo: str, expected: int) -> None:
    code, out, err = model(todo)
    assert code == expected, err
    assert f"started {todo}\n" in out


def test_a_name_is_run_once(model: Any, at_cluster: LocalCluster, tmp_path: Path) -> None:
    first, second = model("exit-7", "--id", "once"), model("exit-7", "--id", "once")
    assert (first[0], second[0]) == (7, 7)
    assert first[1] == second[1]
    assert (tmp_path / "starts").read_text() == "x"
    code, out, err = model("exit-0", "--id", "once")
    assert code == 2 and "name=exit-7" in err and out == ""
    assert (tmp_path / "starts").read_text() == "x"


def test_a_dry_run_sends_nothing(model: Any, at_cluster: LocalCluster, tmp_path: Path) -> None:
    code, out, _ = model("exit-7", "--id", "planned", "--dry-run")
    assert code == 0 and "python -m pipelines.show_model" in out
    assert connect().job("planned") is None


def test_a_job_that_was_stopped_ends_as_by_sigterm(model: Any, icre: Icre, at_cluster: LocalCluster) -> None:
    code, out, _ = model("wait", "--id", "stopped", "--no-follow")
    assert (code, out) == (0, "stopped\n")
    connect().client.stop_job("stopped")
    assert icre("submit", "--attach", "stopped")[0] == 143


@pytest.mark.timeout(180)
def test_ctrl_c_detaches_and_the_job_goes_on(
    at_cluster: LocalCluster, project: Path, icre: Icre, tmp_path: Path
) -> None:
    client = subprocess.Popen(
        [f"{sysconfig.get_path('scripts')}/icre", "submit", "--id", "left", "--working-dir", str(project), "model",
         f"storage={tmp_path}", "name=wait"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        # A shell starts background jobs, a CI run among them, with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert client.stdout is not None
    while not (line := client.stdout.readline()).startswith("started wait"):
        assert line, client.communicate()[1]
    client.send_signal(signal.SIGINT)
    _, err = client.communicate(timeout=30)
    assert client.returncode == 130
    assert "--attach left" in err and "Traceback" not in err
    assert connect().client.get_job_status("left") == JobStatus.RUNNING
    (tmp_path / "go").touch()
    code, out, _ = icre("submit", "--attach", "left")
    assert code == 0 and out.count("started wait") == 1


class Proxy:
    """A way to the head that can be cut, as `kubectl port-forward` is."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                self._open += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for end in [*self._open, self._listening]:
            end.close()


@pytest.mark.timeout(180)
def test_a_cut_connection_loses_and_repeats_no_line(model: Any, at_cluster: LocalCluster, tmp_path: Path) -> None:
    assert model("talk", "--id", "cut", "--no-follow")[0] == 0
    proxy = Proxy(int(at_cluster.dashboard_url.rpartition(":")[2]))
    heard: list[str] = []

    def write(text: str) -> None:
        heard.append(text)
        if "line 200 " in text and not (tmp_path / "go-200").exists():
            proxy.cut()
            (tmp_path / "go-200").touch()
        if "line 300 " in text:  # by a new connection
            (tmp_path / "go-300").touch()

    try:
        job = follow(connect(proxy.address), "cut", write)
    finally:
        proxy.close()
    assert exit_code(job) == 0
    lines = [line for line in "".join(heard).splitlines() if line.startswith("line ")]
    assert lines == [f"line {number} " + "y" * 50 for number in range(400)]


@pytest.mark.timeout(180)
def test_a_plain_ray_job_submit_works_too(at_cluster: LocalCluster, project: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/ray", "job", "submit", "--working-dir", str(project),
         "--", "python", "-m", "pipelines.show_model", f"storage={tmp_path}", "name=exit-0"],
        capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "token"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "starts").read_text() == "x"
