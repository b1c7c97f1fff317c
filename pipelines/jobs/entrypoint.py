"""A job's command: one of the CLI's own verbs, validated locally by the rules that apply on the cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icre import config
from icre.errors import UserError
from pipelines.jobs.credential_scan import recipe_texts, refuse_secrets
from pipelines.verbs import VERBS, command_of


@dataclass(frozen=True)
class Work:
    """A verb with its arguments as typed."""

    verb: str
    module: str
    arguments: tuple[str, ...]
    config_file: Path | None
    recipe: config.Recipe | None

    @property
    def entrypoint(self) -> str:
        """The job's shell command."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def read_work(verb: str, arguments: Sequence[str]) -> Work:
    """Parse the verb's options and recipe, to find errors before the upload.

    Raises UserError for an unknown verb and for credentials in the arguments or the recipe, ConfigError for a recipe
    that the verb would reject.
    """
    jobs = {name: known.module for name, known in VERBS.items() if known.is_job}
    if verb not in jobs:
        raise UserError(f"no verb {verb!r} that can be a job", hint=f"one of: {', '.join(sorted(jobs))}")
    refuse_secrets({"the command line": "\n".join(arguments)})
    parsed = _parsed(verb, list(arguments))
    config_file, recipe = parsed.get("config_file"), None
    if "config_file" in parsed:
        recipe = config.load_recipe(config_file, parsed.get("overrides") or [])
        refuse_secrets({f"{key} of the recipe": text for key, text in recipe_texts(recipe.to_dict())})
    return Work(verb, jobs[verb], tuple(arguments), config_file, recipe)


def _parsed(verb: str, arguments: list[str]) -> dict[str, Any]:
    command, name = command_of(verb), f"icre {verb}"
    if inside := getattr(command, "commands", None):
        first, arguments = (arguments[0], arguments[1:]) if arguments and arguments[0] in inside else ("run", arguments)
        command, name = inside[first], f"{name} {first}"
    parsed: dict[str, Any] = command.make_context(name, arguments).params
    return parsed


def check_paths(work: Work, folder: Path, *, one_machine: bool) -> list[str]:
    """Warnings about paths that may not exist on other machines. Raises UserError where the job is certain to fail."""
    if work.config_file is not None:
        _check_config(work.config_file, folder)
    if work.recipe is None:
        return []
    if not work.recipe.storage.startswith("s3://") and not Path(work.recipe.storage).is_absolute():
        raise UserError(
            f"storage={work.recipe.storage} is relative: in a job it lies in the job's copy of the code, "
            "and is removed with it",
            hint="storage=s3://bucket/prefix, or the absolute path of a disk that every node mounts",
        )
    recipe = work.recipe
    local = {"storage": recipe.storage, "data.root": recipe.data.root, "model.weights": recipe.model.weights}
    return [
        f"{key}={place} is a local path: every node of the cluster must mount the same disk there"
        for key, place in local.items()
        if place and "://" not in place and not one_machine
    ]


def _check_config(path: Path, folder: Path) -> None:
    try:
        (folder / path).resolve().relative_to(folder.resolve())
    except ValueError:
        inside = False
    else:
        inside = not path.is_absolute() and (folder / path).is_file()
    if not inside:
        raise UserError(
            f"--config {path} is not below {folder}: the job gets that folder alone",
            hint="copy the recipe into configs/ and name it relative to the folder",
        )
