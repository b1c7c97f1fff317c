"""A Ray session, quiet on the console: the cluster the command runs on, or a local one that ends with it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import ray
import ray.data

from icre import config
from icre.errors import StorageError, UserError
from pipelines.runtime.console import warned_of
from pipelines.runtime.progress import progress
from pipelines.storage import Storage

# Read by Ray at its start; variables exported by the user take precedence.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Interval at which Ray Train's controller polls for reports; the default of 2 s would stall every report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOGS_COPIED = ("worker-*.err", "worker-*.out", "raylet.*", "gcs_server.*", "ray-data/*", "ray-train*", "train/*")


MIN_LOGICAL_CPUS = 4
"""With fewer, Ray warns on the console about the number of processes from fractional CPU requests."""


@dataclass(frozen=True, order=True)
class Demand:
    """Logical CPUs that a verb needs concurrently; a local Ray is started with at least as many."""

    cpus: float

    @classmethod
    def of_training(cls, train: config.Train) -> Demand:
        """Demand of workers and their decode tasks."""
        loaders = train.loaders * train.loader_cpus if train.cache == "encoded" else 0
        return cls(train.worker_range[1] * (train.cpus_per_worker + loaders))

    @classmethod
    def of_embedding(cls, evaluation: config.Evaluation) -> Demand:
        """Demand of embedding processes and of their read tasks, which reserve a whole CPU."""
        return cls(evaluation.workers * evaluation.cpus_per_worker + 1)


@contextlib.contextmanager
def ray_session(logs: Path, *, demand: Demand, dashboard: bool = True) -> Iterator[None]:
    """Connect to ``RAY_ADDRESS`` if set (as inside a Ray job), otherwise start a local Ray and stop it at the end.

    Ray's own log lines go to ``logs/driver.log``. At the end of a local session its processes' logs are copied to
    ``logs`` too. A session that is already open (the demo runs several verbs in one) is reused.

    dashboard: start a local Ray with its dashboard, which also lists its nodes for Prometheus; this takes seconds.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with _log_to(logs / "driver.log"), _native_stderr_to(logs / "driver.err"), ray_messages_to(logs / "driver.out"):
        if ray.is_initialized():
            yield
            return
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        attached = bool(os.environ.get("RAY_ADDRESS"))
        started: dict[str, Any] = {}
        if not attached:
            # Without this, Ray would join the cluster last started on this machine.
            started["address"] = "local"
            started["include_dashboard"] = dashboard
            started["num_cpus"] = max(os.cpu_count() or 1, math.ceil(demand.cpus), MIN_LOGICAL_CPUS)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": False}
        with progress("joining the cluster" if attached else "starting Ray"):
            try:
                _check_address(os.environ.get("RAY_ADDRESS", ""))
                session: Any = ray.init(**quiet, **started)
            except OSError as error:  # a ConnectionError is one
                raise UserError(
                    f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: cannot join this Ray cluster: {error}",
                    hint="is it running? If it wants a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH. Without RAY_ADDRESS, a Ray is started here",
                ) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # The newer Parquet reader always starts 32 processes for the footers; on two cores that takes longer than
        # embedding a small data set.
        context.use_datasource_v2 = False
        try:
            yield
        finally:
            folder = Path(session.address_info["session_dir"]) / "logs"
            # Ray now prints the messages it held back as duplicates, and does so in this thread.
            with (logs / "driver.out").open("a") as file, contextlib.redirect_stdout(file):
                ray.shutdown()
            if not attached:
                _copy_logs(folder, logs / "ray")


def _check_address(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would end the process after some time without a word."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def ray_session_for(folder: Storage, demand: Demand, *, dashboard: bool = True) -> Iterator[None]:
    """A Ray session whose logs are uploaded to ``folder``/logs, even if the body raises."""
    with tempfile.TemporaryDirectory(prefix="icre-logs-") as scratch:
        try:
            with ray_session(Path(scratch), demand=demand, dashboard=dashboard):
                yield
        finally:
            with warned_of(StorageError):
                upload_logs(Path(scratch), folder / "logs")


def upload_logs(scratch: Path, destination: Storage) -> None:
    """Copy the local log folder of a session to a run's ``logs/``."""
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        (destination / path.relative_to(scratch).as_posix()).upload(path)


@contextlib.contextmanager
def _native_stderr_to(path: Path) -> Iterator[None]:
    """Redirect file descriptor 2, to which Ray's C++ core writes, to ``path``; Python's stderr stays the console."""
    if sys.stderr is not sys.__stderr__ or sys.stderr is None:
        yield  # already redirected, for example by a test runner
        return
    console = sys.stderr
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=console.encoding, errors=console.errors)
    kept = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        sys.stderr.close()
        sys.stderr = console


@contextlib.contextmanager
def ray_messages_to(path: Path) -> Iterator[None]:
    """Redirect the output of Ray's own thread to ``path``, as standard output is for results only."""
    if sys.stdout is not sys.__stdout__ or sys.stdout is None:
        yield  # as for stderr
        return
    console = sys.stdout
    with path.open("a", buffering=1) as file:
        sys.stdout = cast(TextIO, _ByThread(console, file))
        try:
            yield
        finally:
            sys.stdout = console


class _ByThread:
    """Standard output, except for the thread in which Ray prints warnings about its own processes."""

    def __init__(self, console: TextIO, file: TextIO) -> None:
        self._console, self._file = console, file

    def __getattr__(self, name: str) -> Any:
        rays = threading.current_thread().name == "ray_listen_error_messages"
        return getattr(self._file if rays else self._console, name)


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    logging.captureWarnings(True)
    root.setLevel(logging.INFO)
    silenced = [logging.getLogger(name) for name in ("ray", "ray.data", "ray.train", "ray.tune")]
    kept = [(logger, logger.handlers[:], logger.propagate) for logger in silenced]
    for logger in silenced:
        logger.handlers, logger.propagate = [], True
    try:
        yield
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers, logger.propagate = handlers, propagate
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


def _copy_logs(source: Path, target: Path) -> None:
    for pattern in LOGS_COPIED:
        for path in source.glob(pattern):
            if path.is_file() and path.stat().st_size:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
