"""Grafana dashboard for ICRE, as JSON for Grafana's import.

    python -m cluster.monitoring.dashboard > icre.json

Dashboard variables select the data source and the runs. Ray's own dashboards use the same schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA = 27  # as in Ray 2.60; newer Grafana versions migrate it on load
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _ALL = 8, 7, 24
_OF_RUN = '{run=~"$run"}'


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries``: legend to PromQL; ``unit``: Grafana's unit name; ``help``: the panel's tooltip."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    help: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"


def _newest(metric: str, *, by: str = "run") -> str:
    """A live gauge regardless of the reporting process: a replacement worker has its own series."""
    return f"max by ({by}) (ray_{metric}{_OF_RUN})"


def _age(metric: str, by: str) -> str:
    return f"time() - max by ({by}) (last_over_time({metric}[1d]))"


ROWS: Mapping[str, Sequence[Panel]] = {
    "Training": (
        Panel("Loss", {"{{run}} {{term}}": _newest("icre_train_loss", by="run, term")}, help="By term; loss: total."),
        Panel(
            "Validation",
            {
                "{{run}} Rank-1": _newest("icre_validation_rank1_ratio"),
                "{{run}} mAP": _newest("icre_validation_map_ratio"),
            },
            "percentunit",
            "On training identities that were held out.",
        ),
        Panel("Images per second", {"{{run}}": _newest("icre_train_images_per_second")}, help="Sum over all workers."),
        Panel("Learning rate", {"{{run}}": _newest("icre_train_learning_rate")}),
        Panel("Epoch", {"{{run}}": _newest("icre_train_epoch")}, kind="stat"),
        Panel(
            "Restarts and steps left out",
            {
                "{{run}} restarts": f"max by (run) (last_over_time(ray_icre_train_restarts_total{_OF_RUN}[1d]))",
                "{{run}} not finite": _newest("icre_train_skipped_steps"),
            },
            help="Resumptions from a checkpoint; steps whose loss or gradient was not finite.",
        ),
    ),
    "Data feed": (
        Panel("Waiting for images", {"{{run}}": _newest("icre_train_data_wait_ratio")}, "percentunit", "Of the time."),
        Panel(
            "Object store in use",
            {
                "{{NodeAddress}}": "sum by (NodeAddress) (ray_object_store_used_memory) / sum by (NodeAddress) "
                "(ray_object_store_used_memory + ray_object_store_available_memory)"
            },
            "percentunit",
            "Decoded batches on their way.",
        ),
        Panel("Network in", {"{{ip}}": "sum by (ip) (ray_node_network_receive_speed)"}, "Bps"),
    ),
    "Checkpoints": (
        Panel(
            "Age of the newest",
            {"{{run}}": _age(f"ray_icre_train_last_checkpoint_timestamp_seconds{_OF_RUN}", "run")},
            "s",
            "What a lost node would cost at most. Grows on after the end of a run.",
        ),
        Panel("Time to write one", {"{{run}}": _newest("icre_train_checkpoint_seconds")}, "s"),
        Panel("Training stood still for it", {"{{run}}": _newest("icre_train_checkpoint_stall_seconds")}, "s"),
    ),
    "Sweep": (
        Panel("Trainings", {"{{sweep}} {{state}}": "max by (sweep, state) (ray_icre_sweep_trials)"}),
        Panel("Best validation", {"{{sweep}}": "max by (sweep) (ray_icre_sweep_best_ratio)"}, "percentunit"),
        Panel(
            "Since the last validation",
            {"{{sweep}}": _age("ray_icre_sweep_last_report_timestamp_seconds", "sweep")},
            "s",
            "Of any of its trainings. Grows on after the end of a sweep.",
        ),
    ),
    "Retraining": (
        Panel(
            "Since the last",
            {
                "{{model}} tick": _age("icre_retrain_last_tick_timestamp_seconds", "model"),
                "{{model}} good end": _age("icre_retrain_last_success_timestamp_seconds", "model"),
                "{{model}} promotion": _age("icre_retrain_last_promotion_timestamp_seconds", "model"),
            },
            "s",
            kind="stat",
        ),
        Panel("Last outcome", {"{{model}} {{outcome}}": "icre_retrain_outcome == 1"}, kind="stat"),
        Panel("Refused in a row", {"{{model}}": "max by (model) (icre_retrain_refused_in_a_row)"}, kind="stat"),
        Panel(
            "Champion and challenger",
            {
                "{{model}} champion {{metric}}": "icre_champion_metric_ratio",
                "{{model}} challenger {{metric}}": "icre_challenger_metric_ratio",
            },
            "percentunit",
            "On the frozen test list, mean of both directions.",
        ),
        Panel("Time of a tick", {"{{model}}": "max by (model) (icre_retrain_duration_seconds)"}, "s"),
        Panel("New images", {"{{model}}": "max by (model) (icre_retrain_new_images)"}),
    ),
    "Cluster": (
        Panel(
            "Nodes",
            {
                "alive": "count(count by (ip) (ray_node_cpu_count))",
                "lost since the start": "sum(ray_node_failure_total) or vector(0)",
            },
        ),
        Panel("CPU in use", {"{{ip}}": "max by (ip) (ray_node_cpu_utilization) / 100"}, "percentunit"),
        Panel(
            "Memory in use",
            {"{{ip}}": "max by (ip) (ray_node_mem_used / ray_node_mem_total)"},
            "percentunit",
        ),
        Panel(
            "Disk that is free",
            {"{{ip}}": "min by (ip) (ray_node_disk_free / (ray_node_disk_free + ray_node_disk_usage))"},
            "percentunit",
        ),
        Panel(
            "CPUs asked for", {"{{State}}": 'sum by (State) (ray_resources{Name="CPU"})'}, help="As reported by Ray."
        ),
        Panel(
            "Alerts that fire",
            {"": 'sum by (alertname) (ALERTS{alertname=~"ICRE.*", alertstate="firing"}) or vector(0)'},
            kind="stat",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    return {
        "title": "ICRE",
        "uid": "icre",
        "version": 1,
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["icre"],
        "templating": {"list": [_source_variable(), _run_variable()]},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    """Each row's title, then its panels from left to right, three per line."""
    found: list[dict[str, Any]] = []
    top = 0
    for title, panels in ROWS.items():
        place = {"x": 0, "y": top, "w": _ALL, "h": 1}
        found.append({"id": len(found) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place})
        top += 1
        for index, panel in enumerate(panels):
            place = {"x": index * _WIDTH % _ALL, "y": top + index * _WIDTH // _ALL * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            found.append({"id": len(found) + 1, "gridPos": place, **_picture(panel)})
        top += -(-len(panels) * _WIDTH // _ALL) * _HEIGHT
    return found


def _picture(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend or "__auto"}
        for index, (legend, query) in enumerate(panel.queries.items())
    ]
    defaults = {"unit": panel.unit, "min": 0} | ({"max": 1} if panel.unit == "percentunit" else {})
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {"legend": {"displayMode": "list"}},
        "targets": targets,
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "refresh": 1}


def _run_variable() -> dict[str, Any]:
    query = "label_values(ray_icre_train_step, run)"
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": everything,
    }


def main() -> None:
    """Print the dashboard."""
    print(json.dumps(dashboard(), indent=2))


if __name__ == "__main__":
    main()
