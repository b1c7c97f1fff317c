"""``icre prepare``: convert an image folder into a prepared data set in storage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from icre.errors import DataError
from pipelines.data import prepare
from pipelines.data.catalog import Survey, survey
from pipelines.data.prepare import describe_counts
from pipelines.data.prepared import location_of
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, read_recipe, run_command
from pipelines.runtime.console import say
from pipelines.runtime.progress import progress
from pipelines.runtime.session import Demand, ray_session

Strict = Annotated[bool, typer.Option("--strict", help="Fail if a count differs from the published one.")]


def command(
    config_file: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False, strict: Strict = False
) -> None:
    """Turn images into sharded Parquet with a manifest."""
    recipe = read_recipe(config_file, overrides)
    with progress("prepare: listing files"):
        found = survey(recipe)  # reports a wrong location before Ray starts
    if dry_run or strict:
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
        prepare.run(recipe, found)


def _report_differences(found: Survey, *, strict: bool) -> None:
    if strict and found.differences:
        raise DataError(
            f"{found.root.url}: {len(found.differences)} counts are not the published ones: "
            + "; ".join(found.differences),
            hint="unpack the release anew, or leave out --strict to prepare what is there",
        )
    for difference in found.differences:
        say(f"prepare: warning: {difference}")


if __name__ == "__main__":
    run_command(command)
