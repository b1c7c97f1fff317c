"""Results by pair of query and gallery camera."""

from __future__ import annotations

from pipelines.reporting.metric_table import Evaluation, model_name, percent, protocol_name, words
from pipelines.runtime.markdown import markdown_table

MEANING = (
    "Rank-1 / mAP in percent of the queries of one camera (rows) in the gallery of one camera alone (columns), "
    "by cosine distance, means over the trials; – where no query has a match, or the protocol skips the pair."
)


def camera_table(evaluation: Evaluation, direction: str) -> list[list[str]]:
    """Rows of cells, starting with the header of gallery cameras."""
    pairs = {(pair["query"], pair["gallery"]): pair for pair in evaluation["directions"][direction]["camera_pairs"]}
    queries, gallery = (sorted({pair[side] for pair in pairs}, key=_by_number) for side in (0, 1))
    rows = [["query camera", *(f"gallery {camera}" for camera in gallery)]]
    for query in queries:
        found = [pairs.get((query, camera)) for camera in gallery]
        rows.append([query, *(f"{percent(p['rank1'])} / {percent(p['mAP'])}" if p else "–" for p in found)])
    return rows


def camera_tables_markdown(evaluation: Evaluation) -> str:
    """One table for each direction with more than one pair; empty without any."""
    tables = []
    for direction in evaluation["directions"]:
        head, *rows = camera_table(evaluation, direction)
        if len(rows) * (len(head) - 1) > 1:
            title = f"{words(direction)}, {model_name(evaluation)}, {protocol_name(evaluation)}:"
            tables.append(f"{title}\n\n{markdown_table(head, rows, numbers=range(1, len(head)))}")
    return "\n\n".join([*tables, MEANING]) if tables else ""


def _by_number(camera: str) -> tuple[int, str]:
    return (int(camera) if camera.isdecimal() else -1, camera)
