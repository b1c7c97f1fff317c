"""Rendering of the recipe's synthetic people into its image folder."""

from __future__ import annotations

import os
from pathlib import Path

from icre import config
from icre.data.synthetic import SyntheticSpec, generate
from icre.errors import ConfigError
from pipelines.runtime.console import say
from pipelines.runtime.progress import progress


def run(recipe: config.Recipe) -> None:
    """Render the set unless the folder already holds it."""
    spec, root = spec_of(recipe)
    say(f"synthesize: {describe(spec)}")
    with progress("synthesize", images_of(spec), "images") as advance:
        generate(root, spec, workers=os.cpu_count() or 1, advance=advance)
    say(f"synthesize: {root}")


def spec_of(recipe: config.Recipe) -> tuple[SyntheticSpec, Path]:
    """The set to render and its local folder. Raises ConfigError if the recipe lacks either."""
    settings, data = recipe.data.synthetic, recipe.data
    if settings is None or data.root is None or "://" in data.root:
        raise ConfigError(
            f"data.synthetic={settings}, data.root={data.root!r}: nothing to render, or nowhere to",
            hint="set data.synthetic.identities=<n> and a local folder in data.root, as configs/demo.yaml does",
        )
    spec = SyntheticSpec(
        **settings.model_dump(),
        height=data.height,
        width=data.width,
        train_share=1 - data.split.val - data.split.test,
        val_share=data.split.val,
        test_share=data.split.test,
    )
    return spec, Path(data.root)


def images_of(spec: SyntheticSpec) -> int:
    """Number of images in a set."""
    return 2 * spec.identities * spec.images_per_modality


def describe(spec: SyntheticSpec) -> str:
    """One-line description of a set."""
    return (
        f"{spec.identities} synthetic identities, {images_of(spec)} images of {spec.height}x{spec.width}, "
        f"{spec.visible_cameras} visible and {spec.infrared_cameras} infrared cameras, "
        f"difficulty {spec.difficulty:g}"
    )
