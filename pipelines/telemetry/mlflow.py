"""A run on an MLflow tracking server: the recipe as parameters, the scalars of TensorBoard as metrics.

MLflow cannot remove a metric. The last step of each kind is therefore stored in a tag that is sent with the metrics,
and an attempt that resumes from a checkpoint sends what is missing and nothing twice.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from icre import config
from pipelines.runs.run import Run
from pipelines.telemetry.background import MAX_ROWS, Row, TelemetryError
from pipelines.telemetry.tensorboard import scalars, wall_time

FILE = "mlflow.json"
SENT = "icre.sent"
ROWS_A_REQUEST = 50  # MLflow accepts 1,000 metrics and 100 parameters per request
PARAMS_A_REQUEST = 100

# Read by MLflow at import or when sending; variables exported by the user take precedence.
_SETTINGS = {
    # With the default, seven attempts of two minutes, a server that does not answer would keep a run from ending.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # MLflow would report its use to its developers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MLflow:
    """The MLflow run that belongs to ``run``, created on the first call. ``history``: rows up to the checkpoint."""

    label = "MLflow"

    def __init__(self, uri: str, recipe: config.Recipe, run: Run, history: Sequence[Row]) -> None:
        self._uri, self._recipe, self._run = uri, recipe, run
        self._unsent: deque[Row] = deque(history, maxlen=MAX_ROWS)
        self._sent: dict[str, int] = {}
        self._client: Any = None
        self._id = ""

    def write(self, rows: Sequence[Row]) -> None:
        """Send ``rows`` and any that could not be sent before. Raises TelemetryError, StorageError."""
        self._unsent.extend(rows)
        with _explained(self._uri):
            if self._client is None:
                self._client = self._connect()
            while self._unsent:
                self._send(list(islice(self._unsent, ROWS_A_REQUEST)))

    def close(self, *, succeeded: bool) -> None:
        """Record how this attempt ended; a later attempt resumes the MLflow run."""
        if self._client is not None:
            with _explained(self._uri):
                self._client.set_terminated(self._id, status="FINISHED" if succeeded else "FAILED")

    def _connect(self) -> Any:
        """A client whose MLflow run is resumed or new, with parameters and tags."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient(tracking_uri=self._uri)
        self._id = self._known_id() or self._create(client)
        found = client.get_run(self._id)
        self._sent = json.loads(found.data.tags.get(SENT, "{}"))
        # A parameter can only be rewritten with the same value, which differs if the run's storage was moved.
        missing = {k: str(v) for k, v in _leaves(self._recipe.to_dict()) if k not in found.data.params}
        params = [Param(key, value) for key, value in missing.items()]
        for first in range(0, len(params), PARAMS_A_REQUEST):
            client.log_batch(self._id, params=params[first : first + PARAMS_A_REQUEST])
        client.update_run(self._id, status="RUNNING")
        return client

    def _known_id(self) -> str | None:
        path = self._run.location / FILE
        known = path.read_json(default={})
        return known["run_id"] if known.get("tracking_uri") == self._uri else None

    def _create(self, client: Any) -> str:
        name = self._recipe.name
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        manifest = self._run.manifest
        tags = {"icre.location": self._run.location.url, "icre.data_hash": manifest["data"]["hash"]}
        if "commit" in manifest["code"]:
            tags["mlflow.source.git.commit"] = manifest["code"]["commit"]
        run_id = str(client.create_run(experiment_id, run_name=self._run.name, tags=tags).info.run_id)
        (self._run.location / FILE).write_json({"tracking_uri": self._uri, "run_id": run_id})
        return run_id

    def _send(self, rows: Sequence[Row]) -> None:
        """Send ``rows``, the oldest unsent ones, in one request, then drop them."""
        from mlflow.entities import Metric, RunTag

        metrics, sent = [], dict(self._sent)
        for row in rows:
            if row.get("step", 0) > sent.get(row["kind"], 0):
                time_ms = int(1000 * wall_time(row))
                metrics += [Metric(key, value, time_ms, row["step"]) for key, value in scalars(row).items()]
                sent[row["kind"]] = row["step"]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics, tags=[RunTag(SENT, json.dumps(sent))])
        self._sent = sent
        for _ in rows:
            self._unsent.popleft()


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Prepare the import of MLflow in the body, and convert its errors to TelemetryErrors."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            hint = "check the address, and that the server runs"
            raise TelemetryError(f"telemetry.mlflow={uri}: {error}", hint=hint) from error
    except ImportError as error:
        hint = "install the extra `mlflow` on the nodes that train, and what this kind of address needs"
        raise TelemetryError(f"telemetry.mlflow={uri}: {error}", hint=hint) from error


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
