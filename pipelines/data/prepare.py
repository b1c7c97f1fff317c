"""Preparation of a data set inside an open Ray session, with a printed summary."""

from __future__ import annotations

from icre import config
from pipelines.data import ingest
from pipelines.data.catalog import Survey
from pipelines.data.prepared import PreparedData
from pipelines.runtime.console import say
from pipelines.runtime.markdown import markdown_table


def run(recipe: config.Recipe, found: Survey | None = None) -> PreparedData:
    """Prepare inside an open Ray session and print the outcome. found: as in :func:`ingest.prepare`."""
    data, written = ingest.prepare(recipe, found)
    manifest = data.manifest
    for difference in manifest["differences"]:
        say(f"prepare: warning: {recipe.data.source}: {difference}")
    say(f"prepare: {'wrote' if written else 'already there, nothing to do:'} {data.location.url}")
    if one_sided := manifest["not_trained"]:
        say(f"prepare: {len(one_sided)} training identities lack a modality, not trained on: {_first(one_sided)}")
    if manifest["set_aside"]:
        say(f"prepare: {len(manifest['set_aside'])} files set aside: {_first(manifest['set_aside'])}")
        say("prepare: the whole list is under set_aside in its manifest.json, and in each run's")
    print(describe_counts(manifest["counts"]))
    return data


def describe_counts(counts: dict[str, dict[str, object]]) -> str:
    """Markdown table: identities, images of each modality and cameras of each split."""
    head = ["split", "identities", "visible", "infrared", "visible cameras", "infrared cameras"]
    rows = []
    for split, row in counts.items():
        cameras = row["cameras"]
        assert isinstance(cameras, dict)
        numbers = [str(row[name]) for name in head[1:4]]
        rows.append([split, *numbers, *(", ".join(cameras[m]) or "-" for m in ("visible", "infrared"))])
    return markdown_table(head, rows, numbers=range(1, 4))


def _first(reasons: dict[str, str], limit: int = 3) -> str:
    shown = "; ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:limit])
    return shown + ("; …" if len(reasons) > limit else "")
