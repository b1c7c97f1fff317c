"""``icre retrain``: one tick of scheduled retraining; a new model serves only if it is better."""

from __future__ import annotations

from typing import Annotated

import typer

from icre.errors import IcreError, StoppedError
from pipelines.retraining.journal import Outcome
from pipelines.retraining.retrain import plan, retrain
from pipelines.retraining.tick_metrics import NAMES
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, read_recipe, run_command

EXIT_CODES: dict[Outcome, int] = {"promoted": 0, "kept": 20, "nothing_new": 21, "busy": 22, "failed": 1}
"""Exit codes with ``--exit-code``; without it, all but ``failed`` are 0."""

TickName = Annotated[
    str | None,
    typer.Option(
        "--tick",
        help="Name of the tick; a retry uses the same name. Default: the unfinished tick, or <date>-<time>.",
    ),
]
ExitCode = Annotated[
    bool,
    typer.Option("--exit-code", help="0 promoted, 20 kept, 21 nothing new, 22 another tick is running, 1 failed."),
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    tick: TickName = None,
    exit_code: ExitCode = False,
) -> None:
    """Prepare, train a challenger if there are new images, and promote it if it beats the model in service.

    The last line of the output is the outcome: promoted, kept, nothing new, another tick is running, or failed.
    The next call resumes a tick that was killed.
    """
    recipe = read_recipe(config_file, overrides)
    if dry_run:
        print(plan(recipe))
        return
    outcome: Outcome = "failed"
    try:
        outcome = retrain(recipe, tick)
    except StoppedError:
        raise
    except IcreError as error:  # in a tick, wrong data is not a mistake of the command line
        raise IcreError(error.message, hint=error.hint) from error
    finally:
        print(NAMES[outcome])
    if exit_code:
        raise typer.Exit(EXIT_CODES[outcome])


if __name__ == "__main__":
    run_command(command)
