"""``icre registry``: show which models serve, and change it by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from icre.errors import DataError
from pipelines.retraining.registry import Entry, Registry, models
from pipelines.runs.lease import holder, who
from pipelines.runs.run import open_run
from pipelines.runtime.command import ConfigFile, Overrides, new_app, read_recipe
from pipelines.runtime.console import say
from pipelines.runtime.markdown import markdown_table
from pipelines.storage import Storage

Model = Annotated[str, typer.Argument(help="Name of the model, which is the recipe's name.")]

app = new_app(summary="Show which model serves and its history; change it by hand.")


@app.command("list", short_help="Print every model and what it serves.")
def list_models(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print every model with its serving checkpoint."""
    storage = _storage(config_file, overrides)
    rows = []
    for name in models(storage):
        entry = _champion(Registry(storage, name))
        rows.append([name, str(entry.number), entry.run, entry.checkpoint, entry.time])
    print(markdown_table(["model", "entry", "run", "checkpoint", "since"], rows))


@app.command("show", short_help="Print a model's history, verify its weights.")
def show(model: Model, config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print a model's history and verify that the serving weights are the promoted ones."""
    registry = Registry(_storage(config_file, overrides), model)
    champion = _champion(registry)
    rows = []
    for entry in registry.entries():
        kind = entry.kind if entry.kind == "promote" else f"rollback to {entry.origin}"
        rows.append([str(entry.number), kind, entry.time, entry.by, entry.run, entry.checkpoint, entry.sha256[:12]])
    print(markdown_table(["entry", "kind", "time", "by", "run", "checkpoint", "SHA-256"], rows))
    print(f"\nchampion: entry {champion.number}, {registry.weights(champion).location.url}")
    if running := holder(registry.lease):
        print(f"a tick is running: {running}")
    registry.verify(champion)
    print("its weights are intact")


@app.command("promote", short_help="Put a checkpoint in service by hand.")
def promote(
    model: Model,
    run: Annotated[str, typer.Option("--run", help="Name of a run in <storage>/runs.")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best, last or step-….")] = "best",
    config_file: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Put a checkpoint in service by hand, without a comparison."""
    storage = _storage(config_file, overrides)
    registry = Registry(storage, model)
    after = registry.newest()
    entry = registry.promote(open_run(storage, run), checkpoint, after=after, by=who())
    _say(registry, entry)


@app.command("rollback", short_help="Serve an earlier model again.")
def rollback(
    model: Model,
    to: Annotated[int | None, typer.Option("--to", help="Number of an entry. Default: what served before.")] = None,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Serve an earlier model again; it becomes the newest entry of the history."""
    registry = Registry(_storage(config_file, overrides), model)
    _say(registry, registry.rollback(to=to, by=who()))


@app.command("freeze", short_help="Start a new list of frozen test images.")
def freeze(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Start a new list of frozen test images: all of the recipe's prepared test split as it is now."""
    from pipelines.data.prepared import open_data  # imports torch and pyarrow; the other commands need neither
    from pipelines.retraining import images

    recipe = read_recipe(config_file, overrides)
    registry = Registry(Storage(recipe.storage), recipe.name)
    data = open_data(recipe)
    number = images.freeze(registry, data, recipe, by=who())
    print(registry.frozen.path(number).url)
    try:
        images.refuse_leaked(registry, number, data.classes)
    except DataError as error:
        say(f"warning: {error.message}")


def _storage(config_file: ConfigFile, overrides: Overrides) -> Storage:
    return Storage(read_recipe(config_file, overrides).storage)


def _champion(registry: Registry) -> Entry:
    entry = registry.champion()
    if entry is None:
        known = ", ".join(models(registry.storage)) or "none yet"
        raise DataError(
            f"no model {registry.model!r} in {registry.storage.url}",
            hint=f"models there: {known}; `icre registry promote {registry.model} --run …` begins its history",
        )
    return entry


def _say(registry: Registry, entry: Entry) -> None:
    say(f"registry: entry {entry.number} of {registry.model}: {entry.run}, {entry.checkpoint} serves")
    print(registry.weights(entry).location.url)
