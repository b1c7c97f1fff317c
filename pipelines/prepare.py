"""``icre prepare``: an image folder becomes a prepared data set in storage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from icre import config
from icre.errors import DataError
from pipelines.command import ConfigFile, DryRun, Overrides, read_recipe, run_command, say
from pipelines.data import ingest
from pipelines.data.prepared import PreparedData, location_of
from pipelines.data.survey import Survey, survey
from pipelines.session import Demand, ray_session

Strict = Annotated[bool, typer.Option("--strict", help="A count that differs from the published one is an error.")]


def command(
    config_file: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False, strict: Strict = False
) -> None:
    """Turn images into sharded Parquet with a manifest."""
    recipe = read_recipe(config_file, overrides)
    if dry_run or strict:
        found = survey(recipe)
        _report_differences(found, strict=strict)
    if dry_run:
        print(recipe.to_yaml())
        print(describe_counts(found.counts()))
        print(f"\nwould write: {(location_of(recipe)).url}")
        return
    with (
        tempfile.TemporaryDirectory(prefix="icre-logs-") as logs,
        ray_session(Path(logs), demand=Demand(2), dashboard=False),
    ):
        run(recipe)


def run(recipe: config.Recipe) -> PreparedData:
    """Prepare inside an open Ray session and say what came out."""
    data, written = ingest.prepare(recipe)
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


def _report_differences(found: Survey, *, strict: bool) -> None:
    if strict and found.differences:
        raise DataError(
            f"{found.root.url}: {len(found.differences)} counts are not the published ones: "
            + "; ".join(found.differences),
            hint="unpack the release anew, or leave out --strict to prepare what is there",
        )
    for difference in found.differences:
        say(f"prepare: warning: {difference}")


def describe_counts(counts: dict[str, dict[str, object]]) -> str:
    """Markdown table: identities, images of each modality and cameras of each split."""
    lines = ["| split | identities | visible | infrared | visible cameras | infrared cameras |"]
    lines.append("|---|---:|---:|---:|---|---|")
    for split, row in counts.items():
        cameras = row["cameras"]
        assert isinstance(cameras, dict)
        named = [", ".join(cameras[m]) or "-" for m in ("visible", "infrared")]
        lines.append(
            f"| {split} | {row['identities']} | {row['visible']} | {row['infrared']} | {named[0]} | {named[1]} |"
        )
    return "\n".join(lines)


def _first(reasons: dict[str, str], limit: int = 3) -> str:
    shown = "; ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:limit])
    return shown + ("; …" if len(reasons) > limit else "")


if __name__ == "__main__":
    run_command(command)
