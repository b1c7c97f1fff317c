"""Prometheus metrics of a training: live ones through Ray's agents, and a summary at the end.

Live metrics go to the agent of the worker's node, which exports them with the prefix ``ray_``. Ray lists its agents in
``prom_metrics_service_discovery.json``, so a scrape finds the worker wherever it was restarted. An agent drops a gauge
within half a minute of its last set, so those of a dead worker disappear, and its replacement has its own series:
``max by (run) (last_over_time(...[1d]))`` is a run's value, regardless of the worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, generate_latest, pushadd_to_gateway
from ray.util import metrics as ray_metrics

from icre import config
from icre.errors import StorageError
from pipelines.runs.run import Run
from pipelines.runtime.console import print_warning
from pipelines.telemetry.background import Row

JOB = "icre_train"
PUSH_TIMEOUT_S = 10.0
TERMS = ("loss", "id", "icg", "triplet")
"""Prefixes of the names of the objective's terms."""


@dataclass(frozen=True)
class Metric:
    """A metric's name includes its unit, as Prometheus recommends; on Ray's agents it begins with ``ray_``."""

    name: str
    help: str
    kind: Literal["gauge", "counter"] = "gauge"
    tags: tuple[str, ...] = ("run",)


LIVE = {
    metric.name: metric
    for metric in (
        Metric("icre_train_loss", "Loss of the newest step, by term; `loss` is their sum.", tags=("run", "term")),
        Metric("icre_train_learning_rate", "Learning rate of new layers in the newest step."),
        Metric("icre_train_images_per_second", "Images trained on in a second, over the newest steps."),
        Metric("icre_train_data_wait_ratio", "Share of the newest steps' time spent waiting for data, 0 to 1."),
        Metric("icre_train_epoch", "Epoch in progress; the first is 1."),
        Metric("icre_train_step", "Optimiser steps taken since the start of the run."),
        # A time, not an age: an age would stop growing with the worker that reports it and always look recent.
        # `time() - max by (run) (last_over_time(...[1d]))` keeps growing if the worker hangs, dies or loses its node.
        Metric("icre_train_last_checkpoint_timestamp_seconds", "Unix time at which a checkpoint became durable."),
        # No histogram: there is one checkpoint per epoch, and Ray's agents estimate a histogram's sum from its buckets.
        Metric("icre_train_checkpoint_seconds", "Time from the start of the newest checkpoint until it was durable."),
        Metric("icre_train_checkpoint_stall_seconds", "Part of it in which no step was trained."),
        # Each attempt is a new worker and hence a new series, starting at the run's count so far: query the max.
        Metric("icre_train_restarts_total", "Times that training went on from a checkpoint.", kind="counter"),
        Metric("icre_train_skipped_steps", "Steps of the run left out so far: loss or gradient was not finite."),
        Metric("icre_validation_rank1_ratio", "Rank-1 of the newest validation, 0 to 1, mean of both directions."),
        Metric("icre_validation_map_ratio", "mAP of the newest validation, 0 to 1, mean of both directions."),
    )
}
"""Metrics set while a run trains."""

SUMMARY = {
    metric.name: metric
    for metric in (
        Metric("icre_train_last_success_timestamp_seconds", "Unix time at which a run was trained to its last epoch."),
        Metric("icre_train_last_completion_timestamp_seconds", "Unix time at which a run ended, well or not."),
        Metric("icre_train_duration_seconds", "Wall time of the command that ended the run."),
        Metric("icre_train_steps", "Optimiser steps that the run's last checkpoint holds."),
        Metric("icre_validation_rank1_ratio", "Rank-1 of the last validation, 0 to 1, mean of both directions."),
        Metric("icre_validation_map_ratio", "mAP of the last validation, 0 to 1, mean of both directions."),
        Metric("icre_validation_minp_ratio", "mINP of the last validation, 0 to 1, mean of both directions."),
    )
}
"""Metrics written when a run is over."""


class Live:
    """The gauges of one training, all set again at every call: an agent drops those that are not.

    run: value of the label. batch_size: images per step. skipped: steps skipped before.
    """

    label = "live metrics"

    def __init__(self, run: str, batch_size: int, *, skipped: int = 0) -> None:
        self._run, self._batch_size, self._skipped = run, batch_size, skipped
        self._values: dict[tuple[str, str], float] = {}
        self._gauges: dict[str, ray_metrics.Gauge] = {}

    def write(self, rows: Sequence[Row]) -> None:
        """Update to the newest values in ``rows``, and set every gauge."""
        steps = [row for row in rows if row["kind"] == "step"]
        if steps:
            self._take_steps(steps)
        self._skipped += sum(row["kind"] == "skipped" for row in rows)
        self._take("icre_train_skipped_steps", self._skipped)  # even if 0: an alert queries the increase
        for row in rows:
            if row["kind"] == "validation":
                self._take("icre_validation_rank1_ratio", row["rank1"])
                self._take("icre_validation_map_ratio", row["mAP"])
            elif row["kind"] == "checkpoint":
                self._take("icre_train_last_checkpoint_timestamp_seconds", row["time"])
                self._take("icre_train_checkpoint_seconds", row["seconds"])
                self._take("icre_train_checkpoint_stall_seconds", row["stall_seconds"])
            elif row["kind"] == "restart" and row["count"] > 0:
                self._restarted(row["count"])
        for (name, term), value in self._values.items():
            self._gauge(name).set(value, {"run": self._run} | ({"term": term} if term else {}))

    def close(self, *, succeeded: bool) -> None:
        """Do nothing: the agent drops the gauges."""

    def _take(self, name: str, value: float, *, term: str = "") -> None:
        self._values[name, term] = float(value)

    def _take_steps(self, steps: Sequence[Row]) -> None:
        seconds = sum(self._batch_size / row["images_per_s"] for row in steps)
        newest = steps[-1]
        for term in newest:
            if term.startswith(TERMS):
                self._take("icre_train_loss", newest[term], term=term)
        self._take("icre_train_learning_rate", newest["lr"])
        self._take("icre_train_epoch", newest["epoch"] + 1)
        self._take("icre_train_step", newest["step"])
        self._take("icre_train_images_per_second", len(steps) * self._batch_size / seconds)
        self._take("icre_train_data_wait_ratio", sum(row["data_wait_s"] for row in steps) / seconds)

    def _restarted(self, count: int) -> None:
        metric = LIVE["icre_train_restarts_total"]
        ray_metrics.Counter(metric.name, metric.help, metric.tags).inc(count, {"run": self._run})

    def _gauge(self, name: str) -> ray_metrics.Gauge:
        if name not in self._gauges:
            metric = LIVE[name]
            self._gauges[name] = ray_metrics.Gauge(metric.name, metric.help, metric.tags)
        return self._gauges[name]


def write_summary(
    run: Run, recipe: config.Recipe, *, succeeded: bool, seconds: float, warn: Callable[[str], None] = print_warning
) -> CollectorRegistry:
    """Write ``metrics.prom`` into the folder of a run that ended, and push it if the recipe names a Pushgateway.

    seconds: wall time of the command. Failures to read, write or push are warnings: the end of a run is pushed even if
    a storage failure ended it, then without the values that come from metrics.jsonl.
    """
    registry = CollectorRegistry()
    values = _ended(succeeded=succeeded, seconds=seconds)
    try:
        values |= _reached(run.metrics())
    except StorageError as error:
        warn(f"the run's summary says nothing of its steps: {error}")
    for name, value in values.items():
        Gauge(name, SUMMARY[name].help, SUMMARY[name].tags, registry=registry).labels(run=run.name).set(value)
    try:
        (run.location / "metrics.prom").write_text(generate_latest(registry).decode())
    except StorageError as error:
        warn(f"the run's summary is not written: {error}")
    if recipe.telemetry.pushgateway is not None:
        _push(recipe.telemetry.pushgateway, registry, recipe.name, warn)
    return registry


def _ended(*, succeeded: bool, seconds: float) -> dict[str, float]:
    now = time.time()
    values = {"icre_train_last_completion_timestamp_seconds": now, "icre_train_duration_seconds": seconds}
    return values | ({"icre_train_last_success_timestamp_seconds": now} if succeeded else {})


def _reached(rows: Sequence[Row]) -> dict[str, float]:
    values = {"icre_train_steps": float(max((row["step"] for row in rows), default=0))}
    for row in rows:
        if row["kind"] == "validation":
            values |= {f"icre_validation_{key.lower()}_ratio": row[key] for key in ("rank1", "mAP", "mINP")}
    return values


def _push(url: str, registry: CollectorRegistry, recipe: str, warn: Callable[[str], None]) -> None:
    try:
        # One group per recipe, not per run, as a gateway keeps groups forever. Added, not replaced: a failed run keeps
        # the time of the last success.
        pushadd_to_gateway(url, job=JOB, registry=registry, grouping_key={"recipe": recipe}, timeout=PUSH_TIMEOUT_S)
    except (OSError, HTTPException) as error:
        warn(f"Pushgateway {url}: {error}")
