"""The verbs of the command line, each with a one-line summary and the module that runs it.

A verb's module is imported only when the verb is called: most need torch and Ray, which take seconds to import.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import typer

from pipelines.runtime.command import app_of


@dataclass(frozen=True)
class Verb:
    """One verb. Its module has an ``app`` if it has subcommands or its own settings, otherwise a ``command``."""

    module: str
    summary: str
    """At most 45 characters, so that `icre --help` shows it whole on 80 columns."""
    is_job: bool = True
    """Whether `icre submit` can run it on a cluster."""


VERBS = {
    "demo": Verb("pipelines.demo", "Run the whole pipeline on synthetic people."),
    "synthesize": Verb("pipelines.synthesize", "Render synthetic people as an image folder."),
    "prepare": Verb("pipelines.prepare", "Turn images into sharded Parquet."),
    "train": Verb("pipelines.train", "Train on a prepared data set."),
    "evaluate": Verb("pipelines.evaluate", "Rank the test identities by a protocol."),
    "ablate": Verb("pipelines.ablate", "Train and evaluate the variants of a table."),
    "regdb": Verb("pipelines.regdb", "Train and evaluate RegDB's ten splits."),
    "report": Verb("pipelines.report", "Write the report of a run, or of several."),
    "retrain": Verb("pipelines.retrain", "Train a challenger, promote it if better."),
    "model": Verb("pipelines.show_model", "Print the network's parameters and MACs."),
    "submit": Verb("pipelines.submit", "Run a verb as a job on a cluster.", is_job=False),
    "doctor": Verb("pipelines.doctor", "Check machine, storage and cluster.", is_job=False),
    "registry": Verb("pipelines.registry", "Show or change which model serves.", is_job=False),
    "tune": Verb("pipelines.tune", "Train over a search space."),
    "config": Verb("pipelines.show_config", "Show the resolved recipe, or its schema.", is_job=False),
    "data": Verb("pipelines.inspect_data", "Inspect a prepared data set.", is_job=False),
}


def command_of(verb: str) -> Any:
    """The command or group of ``verb``, a key of :data:`VERBS`; imports its module."""
    module = importlib.import_module(VERBS[verb].module)
    return typer.main.get_command(getattr(module, "app", None) or app_of(module.command))
