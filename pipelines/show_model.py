"""``icre model``: the cost of a recipe's network and of each component."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from icre import config
from icre.model.complexity import Complexity, Cost, component_grid
from pipelines.runtime.command import ConfigFile, Overrides, read_recipe, run_command
from pipelines.runtime.markdown import markdown_table

SYSU_MM01_CLASSES = 395
"""Training identities of SYSU-MM01; published networks of the field are sized for it."""

_WORDS = {"stem": "stems", "mpfr": "MPFR", "align": "align (X3 for SDCE)", "sdce": "SDCE"}
_OPTIMIZER_STATE = {"sgd": "SGD's momentum", "adam": "Adam's two moments", "adamw": "Adam's two moments"}
_COSTS = ("Parameters (M)", "MACs an image (G)", "MACs / baseline", "Activations (MiB)")
_NOTE = """\
MACs: convolutions, linear layers and attention, forward; an image passes one of the two stems. Activations: what
autograd keeps for the backward pass, for the whole batch at once, in float32 and without recomputation, whatever the
recipe says of these; each tensor once, where it is kept first, attention as fused kernels keep it. Neither the loss nor
the workspace of kernels is counted."""

Grid = dict[tuple[config.Component, ...], Complexity]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    classes: Annotated[
        int, typer.Option(min=1, help="Training identities (rows of the classifier); SYSU-MM01 has 395.")
    ] = SYSU_MM01_CLASSES,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print exact counts (parameters, MACs, bytes) as JSON.")
    ] = False,
) -> None:
    """Print parameters, MACs and training memory of the network, by component, and of its ablations."""
    recipe = read_recipe(config_file, overrides)
    grid = component_grid(recipe, classes=classes)
    if as_json:
        print(json.dumps(as_dict(recipe, grid, classes=classes), indent=2))
    else:
        print(as_markdown(recipe, grid, classes=classes))


def as_markdown(recipe: config.Recipe, grid: Grid, *, classes: int) -> str:
    """The network's table, its memory in training, and the table of the component grid."""
    own, baseline = _own(recipe, grid), grid[()].total
    parts = [[_WORDS.get(name, name), *_cells(cost, baseline)] for name, cost in own.components.items()]
    networks = [[_network(components), *_cells(found.total, baseline)] for components, found in grid.items()]
    memory = {
        "weights and running statistics": own.weight_bytes,
        "gradients": own.gradient_bytes,
        f"optimiser state ({_OPTIMIZER_STATE[recipe.optimizer.name]})": own.optimizer_bytes,
        "activations": own.total.activation_bytes,
        "total": own.training_bytes,
    }
    right = range(1, len(_COSTS) + 1)
    return "\n\n".join(
        [
            _describe(recipe, classes),
            markdown_table(["Component", *_COSTS], [*parts, ["total", *_cells(own.total, baseline)]], numbers=right),
            markdown_table(
                ["Memory of a training step", "MiB"], [[name, _mib(size)] for name, size in memory.items()], numbers=[1]
            ),
            markdown_table(["Network", *_COSTS], networks, numbers=right),
            _NOTE,
        ]
    )


def as_dict(recipe: config.Recipe, grid: Grid, *, classes: int) -> dict[str, Any]:
    """The same values as exact counts in plain JSON types; ``networks`` has the totals of the component grid."""
    own, baseline = _own(recipe, grid), grid[()].total
    return {
        "backbone": recipe.model.backbone,
        "height": recipe.data.height,
        "width": recipe.data.width,
        "classes": classes,
        "batch": recipe.batch.size,
        "components": {name: _counts(cost, baseline) for name, cost in own.components.items()},
        "total": _counts(own.total, baseline),
        "memory": {
            "weight_bytes": own.weight_bytes,
            "gradient_bytes": own.gradient_bytes,
            "optimizer_bytes": own.optimizer_bytes,
            "activation_bytes": own.total.activation_bytes,
            "training_bytes": own.training_bytes,
        },
        "networks": {"+".join(key) or "baseline": _counts(found.total, baseline) for key, found in grid.items()},
    }


def _own(recipe: config.Recipe, grid: Grid) -> Complexity:
    return next(found for key, found in grid.items() if set(key) == set(recipe.components) - {"icg"})


def _describe(recipe: config.Recipe, classes: int) -> str:
    origin = " (as SYSU-MM01 has)" if classes == SYSU_MM01_CLASSES else ""
    size = f"{recipe.data.height}x{recipe.data.width}"
    return (
        f"{recipe.model.backbone} at {size}, {classes} training identities{origin}, "
        f"a batch of {recipe.batch.size} images on one worker, float32."
    )


def _network(components: Sequence[str]) -> str:
    return "baseline" if not components else "baseline + " + " + ".join(_WORDS[name] for name in components)


def _cells(cost: Cost, baseline: Cost) -> list[str]:
    macs, share = f"{cost.macs / 1e9:.2f}", f"{cost.macs / baseline.macs:.2f}"
    return [f"{cost.parameters / 1e6:.2f}", macs, share, _mib(cost.activation_bytes)]


def _counts(cost: Cost, baseline: Cost) -> dict[str, int | float]:
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "macs_to_baseline": cost.macs / baseline.macs,
        "activation_bytes": cost.activation_bytes,
    }


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"


if __name__ == "__main__":
    run_command(command)
