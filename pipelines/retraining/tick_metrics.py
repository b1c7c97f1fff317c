"""Outputs of a tick: Prometheus metrics and an HTML report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from prometheus_client import CollectorRegistry, Gauge, generate_latest, pushadd_to_gateway

from pipelines.reporting.metric_table import percent, words
from pipelines.retraining.gate import METRICS
from pipelines.retraining.journal import Outcome, Past, Tick
from pipelines.retraining.registry import Registry
from pipelines.runtime.console import print_warning
from pipelines.telemetry.prometheus import PUSH_TIMEOUT_S

JOB = "icre_retrain"
OUTCOMES: tuple[Outcome, ...] = ("promoted", "kept", "nothing_new", "failed", "busy")
NAMES: Mapping[Outcome, str] = {
    "promoted": "promoted",
    "kept": "kept",
    "nothing_new": "nothing new",
    "failed": "failed",
    "busy": "another tick is running",
}
"""Outcomes as printed in the last line of the command."""
HELP = {
    "icre_retrain_last_tick_timestamp_seconds": "Unix time at which a tick ended, however it did.",
    "icre_retrain_last_success_timestamp_seconds": "Unix time at which a tick ended in order, with or without a "
    "promotion.",
    "icre_retrain_last_promotion_timestamp_seconds": "Unix time of the newest promotion.",
    "icre_retrain_outcome": "1 for how the last tick ended, 0 for the others.",
    "icre_retrain_refused_in_a_row": "Challengers judged and not promoted since the last promotion.",
    "icre_retrain_duration_seconds": "Wall time of the command of the last tick.",
    "icre_retrain_new_images": "Training images that were new to the last tick.",
    "icre_champion_metric_ratio": "Of the model in service on the frozen test list, 0 to 1, mean of the directions.",
    "icre_challenger_metric_ratio": "The same of the newest challenger.",
}


@dataclass(frozen=True)
class TickSummary:
    """Information available when a command ends; None where the storage could not be read."""

    outcome: Outcome
    seconds: float
    past: Past | None = None
    promoted: float | None = None
    """Unix time of the newest promotion."""
    new_images: int | None = None


def metrics_of(model: str, told: TickSummary) -> CollectorRegistry:
    """All metrics that have a value, each with the label ``model``."""
    found = CollectorRegistry()

    def gauge(name: str, value: float | None, **labels: str) -> None:
        if value is not None:
            metric = gauges.get(name) or Gauge(name, HELP[name], ["model", *labels], registry=found)
            gauges[name] = metric
            metric.labels(model=model, **labels).set(value)

    gauges: dict[str, Gauge] = {}
    gauge("icre_retrain_last_tick_timestamp_seconds", time.time())
    past = told.past
    gauge("icre_retrain_last_success_timestamp_seconds", past.last_success if past else None)
    gauge("icre_retrain_last_promotion_timestamp_seconds", told.promoted)
    for outcome in OUTCOMES:
        gauge("icre_retrain_outcome", float(outcome == told.outcome), outcome=outcome)
    gauge("icre_retrain_refused_in_a_row", past.refused_in_a_row if past else None)
    gauge("icre_retrain_duration_seconds", told.seconds)
    gauge("icre_retrain_new_images", told.new_images)
    for role in ("champion", "challenger"):
        for metric in METRICS:
            gauge(f"icre_{role}_metric_ratio", past.metrics.get(role, {}).get(metric) if past else None, metric=metric)
    return found


def promoted_at(registry: Registry) -> float | None:
    """Unix time of the newest promotion; rollbacks do not count."""
    times = [entry.time for entry in registry.entries() if entry.kind == "promote"]
    return datetime.fromisoformat(times[-1]).timestamp() if times else None


def as_text(metrics: CollectorRegistry) -> str:
    """Metrics in Prometheus's text format."""
    return generate_latest(metrics).decode()


def push(url: str, metrics: CollectorRegistry, model: str) -> None:
    """Add the model's metrics to the Pushgateway; an unreachable Pushgateway causes a warning."""
    try:
        pushadd_to_gateway(url, job=JOB, registry=metrics, grouping_key={"model": model}, timeout=PUSH_TIMEOUT_S)
    except (OSError, HTTPException) as error:
        print_warning(f"Pushgateway {url}: {error}")


def page(model: str, tick: Tick, decision: Mapping[str, Any] | None) -> str:
    """The tick as one HTML file that works offline."""
    environment = Environment(
        loader=PackageLoader("pipelines.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "words": words}
    template = environment.get_template("decision.html.j2")
    return template.render(model=model, tick=tick, facts=tick.facts, decision=decision, metrics=METRICS)
