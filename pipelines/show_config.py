"""``icre config show|schema``: the resolved recipe, and the schema of every key."""

from __future__ import annotations

from icre import config
from pipelines.runtime.command import ConfigFile, Overrides, new_app

app = new_app(summary="Show the resolved recipe, or the schema of every key.")


@app.command()
def show(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print the resolved recipe as YAML."""
    print(config.load_recipe(config_file, overrides or []).to_yaml(), end="")


@app.command(short_help="Print the JSON Schema of the recipe.")
def schema() -> None:
    """Print the JSON Schema of the recipe: every key, its meaning, type, bounds and default."""
    print(config.json_schema())
