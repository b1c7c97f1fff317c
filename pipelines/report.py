"""``icre report``: the contents of a run folder as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from icre.errors import DataError
from pipelines.data.prepared import PreparedData, open_data
from pipelines.evaluation.features import kept_features, model_hash
from pipelines.evaluation.measure import SPLIT
from pipelines.reporting.figure_export import FigureCollector
from pipelines.reporting.metric_table import BEST
from pipelines.reporting.pictures import Examples, Model, Picture, pictures
from pipelines.reporting.report_page import RunContent, render
from pipelines.runs.networks import load_network
from pipelines.runs.run import UNTRAINED, Run, open_run
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, read_recipe, run_command
from pipelines.runtime.console import say
from pipelines.runtime.progress import progress
from pipelines.storage import Storage

RunNames = Annotated[
    list[str],
    typer.Option(
        "--run", help="A run in <storage>/runs; latest: the newest. Additional runs are compared with the first."
    ),
]

WithFigures = Annotated[
    bool, typer.Option("--figures", help="Also write each figure next to the page, as PNG and PDF for print.")
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    names: RunNames = ["latest"],  # noqa: B006
    with_figures: WithFigures = False,
) -> None:
    """Write report/index.html of the first run, compared with any number of others."""
    recipe = read_recipe(config_file, overrides)
    found = [open_run(Storage(recipe.storage), name) for name in dict.fromkeys(names)]
    if dry_run:
        for run in found:
            evaluated = ", ".join(_evaluated(run)) or "none"
            print(f"run: {run.name}\nmetric lines: {len(run.metrics())}\nevaluations: {evaluated}")
        print(f"would write: {report_path(found[0]).url}")
        return
    print(write(*found, with_figures=with_figures).url)


def write(run: Run, *others: Run, with_figures: bool = False) -> Storage:
    """Render the report of ``run`` compared with ``others``, and return its location.

    with_figures: also write each figure as PNG and PDF, which takes longer than the page.
    """
    data = _data_of(run)
    seen = [] if data is None else _pictures(run, others, data)
    with progress("report: figures of the page", unit="figures") as advance:
        collector = FigureCollector(advance)
        page = render(
            _content(run),
            others=[_content(other) for other in others],
            image_of=_no_image if data is None else data.image,
            pictures=seen,
            collector=collector,
        )
    path = report_path(run)
    folder = run.location / "report" / "figures"
    folder.delete()  # figures of an earlier report
    if with_figures:
        for name, content in collector.files().items():
            (folder / name).write_bytes(content)
    path.write_text(page)
    return path


def report_path(run: Run) -> Storage:
    """Location of a run's report."""
    return run.location / "report" / "index.html"


def _content(run: Run) -> RunContent:
    return RunContent(
        name=run.name,
        manifest=run.manifest,
        status=(run.location / "status.json").read_json(),
        recipe_yaml=run.recipe.to_yaml(),
        metrics=run.metrics(),
        evaluations=[(run.location / "eval" / name).read_json() for name in _evaluated(run)],
    )


def _evaluated(run: Run) -> Sequence[str]:
    folder = run.location / "eval"
    return folder.list()


def _pictures(run: Run, others: Sequence[Run], data: PreparedData) -> list[Picture]:
    """Pictures of the untrained network and of every run's best checkpoint, if evaluated on ``data``."""
    wanted = [(run, UNTRAINED, UNTRAINED), (run, BEST, run.name if others else BEST)]
    wanted += [(other, BEST, other.name) for other in others]
    examples = Examples(data, run.recipe)
    models = [model for each in wanted if (model := _model(*each, examples)) is not None]
    return pictures(models, examples)


def _model(run: Run, checkpoint: str, label: str, examples: Examples) -> Model | None:
    if checkpoint != UNTRAINED and run.checkpoints.pointed(checkpoint) is None:
        return None
    size, shown = ((r.data.height, r.data.width) for r in (run.recipe, examples.recipe))
    if size != shown:
        say(f"report: no pictures of {run.name}: it takes images of {size}, and those shown are {shown}")
        return None
    network, described = load_network(run.location.url, checkpoint)
    features = kept_features(run, described["sha256"] or model_hash(network), examples.data, SPLIT, run.recipe)
    if features is None:
        command = f"icre evaluate --run {run.name} --checkpoint {checkpoint}"
        say(f"report: no pictures of {checkpoint} of {run.name} before `{command}`")
        return None
    return Model(label, network, features)


def _data_of(run: Run) -> PreparedData | None:
    """The run's data set; None if it is gone or is no longer the one that was evaluated."""
    try:
        data = open_data(run.recipe)
    except DataError:
        return None
    return data if data.hash == run.manifest["data"]["hash"] else None


def _no_image(row: int) -> None:
    return None


if __name__ == "__main__":
    run_command(command)
