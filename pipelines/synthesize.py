"""``icre synthesize``: render the recipe's synthetic people into its image folder."""

from __future__ import annotations

from pipelines.data.synthesize import describe, run, spec_of
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, read_recipe, run_command


def command(config_file: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Render synthetic (procedural) people as an image folder."""
    recipe = read_recipe(config_file, overrides)
    spec, root = spec_of(recipe)
    if dry_run:
        print(recipe.to_yaml())
        print(describe(spec))
        print(f"would write: {root}")
        return
    run(recipe)
    print(root)


if __name__ == "__main__":
    run_command(command)
