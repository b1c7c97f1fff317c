"""``icre report``: everything a run folder holds, as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Callable

from icre import config
from icre.errors import DataError
from pipelines import runs
from pipelines.command import ConfigFile, DryRun, Overrides, RunName, run_command
from pipelines.data.prepared import open_data
from pipelines.reporting.report_page import render
from pipelines.runs import Run
from pipelines.storage import Storage


def command(
    config_file: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False, run: RunName = "latest"
) -> None:
    """Write report/index.html of a run."""
    recipe = config.load_recipe(config_file, overrides or [])
    found = runs.open_run(Storage(recipe.storage), run)
    if dry_run:
        evaluated = (found.location / "eval").list() if (found.location / "eval").exists() else []
        print(f"run: {found.name}\nmetric lines: {len(found.metrics())}\nevaluations: {', '.join(evaluated) or 'none'}")
        print(f"would write: {report_path(found).url}")
        return
    print(write(found).url)


def write(run: Run) -> Storage:
    """Render the run's report; where it lies."""
    folder = run.location / "eval"
    evaluations = [(folder / name).read_json() for name in (folder.list() if folder.exists() else [])]
    page = render(
        run_name=run.name,
        manifest=run.manifest,
        status=(run.location / "status.json").read_json(),
        recipe_yaml=run.recipe.to_yaml(),
        metrics=run.metrics(),
        evaluations=evaluations,
        image_of=_image_reader(run),
    )
    path = report_path(run)
    path.write_text(page)
    return path


def report_path(run: Run) -> Storage:
    """Where a run's report lies."""
    return run.location / "report" / "index.html"


def _image_reader(run: Run) -> Callable[[int], bytes | None]:
    """Encoded image of a row; None for all when the data set is gone or is no longer the one evaluated."""
    try:
        data = open_data(run.recipe)
    except DataError:
        return lambda row: None
    if data.hash != run.manifest["data"]["hash"]:
        return lambda row: None
    return data.image


if __name__ == "__main__":
    run_command(command)
