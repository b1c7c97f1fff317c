"""``icre demo``: the whole pipeline on synthetic people, in one Ray session."""

from __future__ import annotations

import tempfile
from pathlib import Path

from icre import config
from pipelines import report, train
from pipelines.data import prepare, synthesize
from pipelines.evaluation import evaluate
from pipelines.reporting.metric_table import metric_table_markdown
from pipelines.runs.run import UNTRAINED, Run
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, Verbose, read_recipe, run_command
from pipelines.runtime.console import say
from pipelines.runtime.session import Demand, ray_session, upload_logs
from pipelines.training import execution, launch

DEFAULT = Path("configs/demo.yaml")


def command(
    config_file: ConfigFile = DEFAULT,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: train.NewRun = None,
    verbose: Verbose = False,
) -> None:
    """Synthesize, prepare, train, evaluate and report. Add components=[] for the baseline."""
    recipe = read_recipe(config_file, overrides)
    if verbose:
        say(recipe.to_yaml())
    if dry_run:
        spec, root = synthesize.spec_of(recipe)
        print(recipe.to_yaml())
        print(synthesize.describe(spec))
        print(f"would write: {root}, {recipe.storage}/datasets/{recipe.data.name}, {recipe.storage}/runs/")
        return
    synthesize.run(recipe)
    demand = max(Demand.of_training(recipe.train), Demand.of_embedding(recipe.evaluation))
    started: Run | None = None
    with tempfile.TemporaryDirectory(prefix="icre-logs-") as scratch:
        try:
            with ray_session(Path(scratch), demand=demand):
                prepare.run(recipe)
                started = launch.start(recipe, run)
                execution.execute(started)
                results = [evaluate.evaluate(started, recipe, name) for name in (UNTRAINED, "best")]
            page = report.write(started)
        finally:
            if started is not None:
                upload_logs(Path(scratch), started.location / "logs")
    print(f"\n{metric_table_markdown(results)}")
    print(f"run folder  {started.location.url}\nreport      {page.url}\n")
    print(_next_steps(recipe, started.name, config_file))


def _next_steps(recipe: config.Recipe, name: str, config_file: Path | None) -> str:
    here = str(Path("storage").absolute())
    common = f"--config {config_file}" + (f" storage={recipe.storage}" if recipe.storage != here else "")
    return "\n".join(
        [
            "Try next:",
            f"  icre demo {common} components=[]            # the baseline, for comparison",
            f"  icre evaluate {common} --run {name} --checkpoint last",
            "  icre prepare data.root=<your folder> data.name=mine   # {visible,infrared}/<identity>/<camera>_*.jpg",
            "  icre config schema                            # every key that can be set",
        ]
    )


if __name__ == "__main__":
    run_command(command)
