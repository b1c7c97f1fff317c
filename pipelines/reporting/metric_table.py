"""The metric table, with the same rows, order and number format on the console, in Markdown and in the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.runs.run import UNTRAINED
from pipelines.runtime.markdown import markdown_table

COLUMNS = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "rank20": "Rank-20",
    "mAP": "mAP",
    "mINP": "mINP",
}
CHANCE = "chance"
BEST = "best"
MEANING = "Percent; mean ± standard deviation over the gallery draws (trials)."
SYNTHETIC = "Synthetic data: the people are drawn by a program; no number here is a claim about real footage."

_PROTOCOL_WORDS = {
    "gallery_cameras": "gallery cameras",
    "drawn_queries": "queries are drawn in",
    "camera_rule": "camera rule",
    "cmc": "CMC counts",
    "flip": "flip averaging",
    "rerank": "re-ranking",
    "image_size": "image size",
}

Evaluation = Mapping[str, Any]
"""Output of ``icre evaluate`` for one checkpoint."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    direction: str
    model: str
    cells: tuple[str, ...]
    """Cells in percent, in the order of COLUMNS."""
    is_result: bool
    """Whether this row is the run's representative trained network."""


def percent(fraction: float, spread: float | None = None) -> str:
    """A fraction in percent with one decimal and without the % sign: ``61.2``, or ``61.2 ± 1.3``."""
    return f"{100 * fraction:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def words(direction: str) -> str:
    """``visible_to_infrared`` as words."""
    return direction.replace("_", " ")


def comparable(evaluations: Iterable[Evaluation]) -> list[list[Evaluation]]:
    """Groups of evaluations with the same data and protocol, each in order of training."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        key = json.dumps([evaluation["protocol"], evaluation["data"]], sort_keys=True)
        groups.setdefault(key, []).append(evaluation)
    return [sorted(group, key=_order) for group in groups.values()]


def trained(group: Sequence[Evaluation]) -> Evaluation | None:
    """The run's representative evaluation: of ``best``, else of the latest step, else None."""
    candidates = [e for e in group if e["checkpoint"]["name"] != UNTRAINED]
    return max(candidates, key=_order, default=None)


def untrained(group: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation of the network before its first step, or None."""
    return next((e for e in group if e["checkpoint"]["name"] == UNTRAINED), None)


def model_name(evaluation: Evaluation) -> str:
    """``untrained``, or the checkpoint's name and step, unless the evaluation has a label."""
    if "label" in evaluation:
        return str(evaluation["label"])
    checkpoint = evaluation["checkpoint"]
    name = str(checkpoint["name"])
    return name if name == UNTRAINED else f"{name} (step {checkpoint['step']})"


def protocol_name(evaluation: Evaluation) -> str:
    """The protocol's name, with other settings that affect the ranking."""
    protocol = evaluation["protocol"]
    options = [word for key, word in (("flip", "flip averaging"), ("rerank", "re-ranking")) if protocol[key]]
    return " with ".join([str(protocol["name"]), *([" and ".join(options)] if options else [])])


def table_rows(group: Sequence[Evaluation]) -> list[Row]:
    """Rows of comparable evaluations: chance, then the checkpoints, for each direction."""
    rows = []
    result = trained(group)
    for direction in group[0]["directions"]:
        name = words(direction)
        chance = group[0]["directions"][direction]["chance"]
        rows.append(Row(name, CHANCE, tuple(percent(chance[key]) for key in COLUMNS), is_result=False))
        for evaluation in group:
            scores = evaluation["directions"][direction]
            cells = tuple(percent(scores["mean"][key], scores["std"][key]) for key in COLUMNS)
            rows.append(Row(name, model_name(evaluation), cells, is_result=evaluation is result))
    return rows


def describe_protocol(evaluation: Evaluation) -> str:
    """One line with every choice that the numbers depend on."""
    data, protocol = evaluation["data"], dict(evaluation["protocol"])
    shown = {k: v for k, v in protocol.items() if k != "name"}
    choices = "; ".join(f"{_PROTOCOL_WORDS.get(k, k)} {_value(v)}" for k, v in shown.items())
    return (
        f"Protocol {protocol['name']}: {choices}. "
        f"Data {data['name']}, {data['split']} split: {data['images']} images of {data['identities']} "
        f"identities, hash {str(data['hash'])[:12]}. {_describe_queries(evaluation)}{_differences(data)}"
    )


def summary_of(evaluation: Evaluation) -> dict[str, Any]:
    """One run's entry in tables of several runs: checkpoint, data and means, without ranked lists and histograms."""
    means = {direction: scores["mean"] for direction, scores in evaluation["directions"].items()}
    return {"checkpoint": evaluation["checkpoint"], "data": evaluation["data"], "mean": means}


def metric_table_markdown(evaluations: Sequence[Evaluation]) -> str:
    """The tables, one per protocol and data set, ready to paste; a one-line note without any."""
    if not evaluations:
        return "Not evaluated yet."
    return "\n\n".join(_markdown(group) for group in comparable(evaluations))


def _markdown(group: Sequence[Evaluation]) -> str:
    head = ["Direction", "Model", *COLUMNS.values()]
    rows = [[row.direction, row.model, *row.cells] for row in table_rows(group)]
    notes = [f"{MEANING} {describe_protocol(group[0])}", *training_notes(group)]
    notes += [SYNTHETIC] if group[0]["synthetic"] else []
    return "\n\n".join([markdown_table(head, rows, numbers=range(2, len(head))), *notes])


def training_notes(group: Sequence[Evaluation]) -> list[str]:
    """A sentence for each run that was trained on other data than these evaluations."""
    found = [change for evaluation in group for change in evaluation["data"].get("changes", ())]
    return list(dict.fromkeys(found))


def _differences(data: Mapping[str, Any]) -> str:
    found = data.get("differences")
    return f" Not the published numbers of images: {'; '.join(found)}." if found else ""


def _order(evaluation: Evaluation) -> tuple[bool, bool, int]:
    checkpoint = evaluation["checkpoint"]
    return checkpoint["name"] != UNTRAINED, checkpoint["name"] == BEST, int(checkpoint["step"])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " × ".join(str(part) for part in value)
    return str(value)


def _describe_queries(evaluation: Evaluation) -> str:
    parts = []
    for direction, scores in evaluation["directions"].items():
        left_out = f" ({scores['skipped']} more have no match and are left out)" if scores["skipped"] else ""
        parts.append(f"{words(direction)} {scores['queries']}{left_out}")
    return f"Queries: {', '.join(parts)}."
