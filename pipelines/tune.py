"""``icre tune``: many trainings over a search space, in parallel on a cluster, to find the best recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.experiments.outcomes import grouped, outcomes_of
from pipelines.experiments.sweep import STATUS, open_sweep
from pipelines.experiments.sweep_table import sweep_table_markdown
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, RunByDefault, new_app, read_recipe, run_app
from pipelines.runtime.console import say
from pipelines.storage import Storage

app = new_app(RunByDefault, summary="Train over a search space; show a sweep's progress.")

SweepName = Annotated[str | None, typer.Option("--sweep", help="Name of the sweep. Default: <name>-<tune.method>.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Also resume failed trainings from their last checkpoint.")
]


@app.command("run", short_help="Train over the space; `run` can be omitted.")
def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    sweep_name: SweepName = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Train every point of tune.space, or those that a searcher chooses; write a table, figures and the best recipe.

    The same command resumes an interrupted sweep. Trials are compared on validation identities; only the best is
    evaluated, once, on the test identities.
    """
    from pipelines.experiments import tuning

    recipe = read_recipe(config_file, overrides)
    tuning.tune(recipe, sweep_name, dry_run=dry_run, retry_failed=retry_failed)


@app.command("status", short_help="Print a sweep's progress.")
def status(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of the sweep.")],
    storage: Annotated[str, typer.Option("--storage", help="Storage location, as in the recipe.")] = "storage",
) -> None:
    """Print a sweep's progress, during or after it. Reads the run folders; no cluster is needed."""
    sweep, definition = open_sweep(Storage(storage), name)
    outcomes = outcomes_of(sweep)
    if (last := (Storage(sweep.location) / STATUS).read_json(default=None)) is not None:
        counts = ", ".join(f"{count} {state}" for state, count in last["counts"].items() if count)
        say(f"tune: last updated at {last['updated']}: {counts}")
    print(sweep_table_markdown(grouped(outcomes), sweep.base, synthetic=definition["data"]["synthetic"]))


def main() -> None:
    """``python -m pipelines.tune``: the same as ``icre tune``."""
    run_app(app)


if __name__ == "__main__":
    main()
