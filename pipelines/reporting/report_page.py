"""A run as one HTML file that works offline, without scripts; figures are embedded as data."""

from __future__ import annotations

import io
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from icre import figures
from pipelines.reporting import metric_table
from pipelines.reporting.camera_table import MEANING as CAMERAS_MEANING
from pipelines.reporting.camera_table import camera_table
from pipelines.reporting.figure_export import FigureCollector
from pipelines.reporting.metric_table import Evaluation, metric_table_markdown, percent, words
from pipelines.reporting.pictures import Picture

ImageOf = Callable[[int], bytes | None]
Context = dict[str, Any]

TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL_HEIGHT = 192
LISTED = 100
"""Maximum number of excluded images listed."""


@dataclass(frozen=True)
class RunContent:
    """Content of a run folder used in a report."""

    name: str
    manifest: Mapping[str, Any]
    status: Mapping[str, Any]
    recipe_yaml: str
    metrics: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]
    """The files of eval/."""


def render(
    run: RunContent,
    *,
    image_of: ImageOf,
    others: Sequence[RunContent] = (),
    pictures: Sequence[Picture] = (),
    collector: FigureCollector | None = None,
) -> str:
    """The report of ``run``, which may be incomplete, with ``others`` that have comparable evaluations.

    ``image_of(row)`` returns the encoded image of a row of the manifest's data set, or None. ``collector`` collects the
    figures for print.
    """
    collector = collector or FigureCollector()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    manifest = run.manifest
    groups = [group for group in metric_table.comparable(_labelled([run, *others])) if _own(group, run)]
    groups.sort(key=lambda group: bool(group[0]["protocol"]["rerank"]))
    return environment.get_template("report.html.j2").render(
        run_name=run.name,
        others=[other.name for other in others],
        manifest=manifest,
        status=run.status,
        created=_minutes(manifest["created"]),
        updated=_minutes(run.status["updated"]),
        synthetic=manifest["data"]["synthetic"] or any(e["synthetic"] for e in run.evaluations),
        results=[_result(group, number, run, image_of, collector) for number, group in enumerate(groups)],
        pictures=[
            vars(picture) | {"figure": collector.embed(picture.name, picture.figure, "webp")} for picture in pictures
        ],
        training=_training([run, *others], collector),
        data=_data(manifest["data"]),
        provenance=_provenance(manifest, run.evaluations),
        recipe_yaml=run.recipe_yaml,
    )


def _labelled(runs: Sequence[RunContent]) -> list[Evaluation]:
    """All evaluations; with several runs, model names are prefixed with the run's name."""
    found: list[Evaluation] = [{**evaluation, "run": run.name} for run in runs for evaluation in run.evaluations]
    if len(runs) > 1:
        found = [{**one, "label": f"{one['run']}: {metric_table.model_name(one)}"} for one in found]
    return found


def _own(group: Sequence[Evaluation], run: RunContent) -> list[Evaluation]:
    return [evaluation for evaluation in group if evaluation["run"] == run.name]


def _result(
    group: Sequence[Evaluation], number: int, run: RunContent, image_of: ImageOf, collector: FigureCollector
) -> Context:
    """Template context of comparable evaluations."""
    own = _own(group, run)
    shown = metric_table.trained(own) or own[-1]
    # Rows index one data set: in another, they would be different images.
    same_data = group[0]["data"]["hash"] == run.manifest["data"]["hash"]
    prefix = f"{group[0]['protocol']['name']}-{number}"
    directions = list(shown["directions"])
    # Ranked lists, camera pairs and histograms use cosine distance: a re-ranked result has none.
    by_cosine = [] if group[0]["protocol"]["rerank"] else directions
    ranked = partial(_ranked, shown, image_of=image_of if same_data else _no_image, collector=collector, prefix=prefix)
    return {
        "data": group[0]["data"],
        "title": metric_table.protocol_name(shown),
        "model": metric_table.model_name(shown),
        "columns": list(metric_table.COLUMNS.values()),
        "table": [(name, list(rows)) for name, rows in groupby(metric_table.table_rows(group), _direction)],
        "protocol": " ".join(
            [metric_table.MEANING, metric_table.describe_protocol(group[0]), *metric_table.training_notes(group)]
        ),
        "markdown": metric_table_markdown(group),
        "summaries": [_summary(own, direction) for direction in directions],
        "cameras": [
            {"title": words(direction), "rows": rows}
            for direction in by_cosine
            if len(rows := camera_table(shown, direction)) > 1
        ],
        "cameras_meaning": CAMERAS_MEANING,
        "cmc": [_cmc(group, direction, collector, prefix) for direction in directions],
        "distances": collector.embed(f"{prefix}-distances", _distances(group, own), "svg") if by_cosine else None,
        "ranked": [ranked(direction) for direction in by_cosine],
    }


def _summary(group: Sequence[Evaluation], direction: str) -> Context:
    """One direction as a sentence, and as bars from chance to the trained network."""
    before, after = metric_table.untrained(group), metric_table.trained(group)
    models = [("chance", group[0]["directions"][direction]["chance"])]
    models += [(e["checkpoint"]["name"], e["directions"][direction]["mean"]) for e in (before, after) if e]
    rank1 = [e["directions"][direction]["mean"]["rank1"] if e else None for e in (before, after)]
    return {
        "direction": words(direction),
        "sentence": f"{words(direction)}: {_sentence(models[0][1]['rank1'], *rank1)}",
        "reached": percent(models[-1][1]["rank1"]),
        "metrics": [
            {
                "name": metric_table.COLUMNS[key],
                "bars": [(name, percent(means[key])) for name, means in models],
            }
            for key in ("rank1", "mAP")
        ],
    }


def _sentence(chance: float, untrained: float | None, reached: float | None) -> str:
    by_chance = f"{percent(chance)} % by chance"
    if reached is None:
        return f"only the untrained network has been evaluated; {by_chance}"
    text = f"rank-1 {percent(reached)} %"
    if untrained is None:
        return f"{text} against {by_chance}"
    if reached <= untrained:
        return f"{text}, no better than untrained ({percent(untrained)} %); {by_chance}"
    return f"{text} against {percent(untrained)} % untrained and {by_chance}"


def _training(runs: Sequence[RunContent], collector: FigureCollector) -> Context | None:
    metrics = runs[0].metrics
    if not metrics:
        return None
    steps = [row for row in metrics if row["kind"] == "step"]
    validations = [row for row in metrics if row["kind"] == "validation"]
    facts = [
        f"steps: {max(row['step'] for row in metrics)}",
        f"epochs: {max(row['epoch'] for row in metrics) + 1}",
    ]
    if steps:
        facts.append(f"median {statistics.median(row['images_per_s'] for row in steps):.0f} images/s")
    if validations:
        best = max(validations, key=lambda row: float(row["mAP"]))
        facts.append(f"highest validation mAP {percent(best['mAP'])} % at step {best['step']}")
    alt = "Loss terms, validation metrics and learning rate over the steps of the training"
    drawn = {"figure": collector.embed("training", figures.training_curves(metrics), "svg"), "alt": alt, "facts": facts}
    if len(runs) > 1:
        compared = figures.training_comparison({run.name: run.metrics for run in runs})
        drawn["comparison"] = collector.embed("training-comparison", compared, "svg")
    return drawn


def _cmc(group: Sequence[Evaluation], direction: str, collector: FigureCollector, prefix: str) -> Context:
    curves = {}
    for evaluation in group:
        trials = [trial["cmc"] for trial in evaluation["directions"][direction]["trials"]]
        curves[metric_table.model_name(evaluation)] = np.mean(trials, axis=0)
    title = words(direction)
    return {
        "title": title,
        "alt": f"CMC curves, {title}",
        "figure": collector.embed(f"{prefix}-cmc-{direction}", figures.cmc_curves(curves), "svg"),
    }


def _distances(group: Sequence[Evaluation], own: Sequence[Evaluation]) -> Figure:
    """Distances before training, then of each trained run. The distance between two images has no direction."""
    by_run = {evaluation["run"]: [e for e in group if e["run"] == evaluation["run"]] for evaluation in group}
    models = [metric_table.untrained(own), *map(metric_table.trained, by_run.values())]
    drawn = []
    for evaluation in models:
        if evaluation is not None:
            measured = next(iter(evaluation["directions"].values()))["distances"]
            drawn.append(figures.Distances(label=metric_table.model_name(evaluation), **measured))
    return figures.distance_histograms(drawn)


def _ranked(
    evaluation: Evaluation, direction: str, *, image_of: ImageOf, collector: FigureCollector, prefix: str
) -> Context:
    entries = evaluation["directions"][direction]["ranked"]
    lists = [
        figures.RankedList(
            query=_shown(entry["query"], image_of),
            gallery=[_shown(item, image_of) for item in entry["gallery"]],
        )
        for entry in entries
    ]
    first = sum(bool(entry["gallery"]) and entry["gallery"][0]["match"] for entry in entries)
    alt = f"{len(lists)} queries with their nearest gallery images; the first one is right for {first}"
    figure = collector.embed(f"{prefix}-ranked-{direction}", figures.ranked_list(lists), "webp") if lists else None
    return {"title": words(direction), "entries": entries, "figure": figure, "alt": alt}


def _shown(item: Mapping[str, Any], image_of: ImageOf) -> figures.RankedImage:
    content = image_of(item["row"])
    return figures.RankedImage(
        image=None if content is None else _thumbnail(content),
        identity=str(item["identity"]),
        camera=str(item["camera"]),
        path=item["path"],
        distance=item.get("distance"),
        match=item.get("match"),
    )


def _thumbnail(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image.thumbnail((THUMBNAIL_HEIGHT, THUMBNAIL_HEIGHT))
        return np.asarray(image.convert("RGB"))


def _direction(row: metric_table.Row) -> str:
    return row.direction


def _no_image(row: int) -> None:
    return None


def _data(data: Mapping[str, Any]) -> Context:
    counts = data["counts"]
    return {
        "name": data["name"],
        "hash": data["hash"],
        "counts": counts,
        "set_aside": list(data["set_aside"].items())[:LISTED],
        "set_aside_total": len(data["set_aside"]),
        "not_trained": list(data["not_trained"].items())[:LISTED],
        "not_trained_total": len(data["not_trained"]),
    }


def _provenance(manifest: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    code, hardware = manifest["code"], manifest["hardware"]
    commit = f", commit {code['commit']}" if "commit" in code else ""
    modified = ", with uncommitted changes" if code.get("modified") else ""
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    checkpoints = [e["checkpoint"] for e in evaluations if e["checkpoint"]["sha256"]]
    return [
        ("Started", manifest["created"]),
        ("Code", f"icre {code['version']}{commit}{modified}"),
        ("Command", shlex.join(manifest["argv"])),
        ("Seed", str(manifest["seed"])),
        ("Data", f"{manifest['data']['name']}, hash {manifest['data']['hash']}"),
        ("Made from", ", ".join(manifest["parents"])),
        ("Hardware", f"{hardware['machine']}, {hardware['cpus']} CPUs, {gpus}"),
        (
            "Packages",
            ", ".join(f"{k} {v}" for k, v in {"python": manifest["python"], **manifest["packages"]}.items()),
        ),
        *((f"Checkpoint {c['name']}", f"step {c['step']}, SHA-256 {c['sha256']}") for c in checkpoints),
    ]


def _minutes(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M} UTC"
