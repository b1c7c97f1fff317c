"""``icre doctor``: check whether this machine, its storage and a cluster are fit for a run, with hints if not."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from icre import config
from icre.errors import IcreError
from pipelines.checks import machine, nodes, storage_checks
from pipelines.checks.result import CheckResult, reported, table
from pipelines.jobs.entrypoint import Work, check_paths
from pipelines.jobs.job_logs import exit_code, follow
from pipelines.jobs.server import ADDRESS_VARIABLES, JobServer, connect
from pipelines.jobs.submission import new_name, submit
from pipelines.jobs.upload import survey
from pipelines.runtime.command import ConfigFile, Overrides, read_recipe, run_command
from pipelines.runtime.console import say
from pipelines.runtime.session import Demand, ray_session
from pipelines.storage import Storage
from pipelines.submit import Address, WorkingDir

AsJson = Annotated[bool, typer.Option("--json", help="Print `ok` and all findings as JSON.")]
FromInside = Annotated[
    bool, typer.Option("--from-inside", hidden=True, help="Part of a job: check each node of the cluster it runs on.")
]
_MARK = "icre-doctor-findings: "


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    address: Address = None,
    working_dir: WorkingDir = Path(),
    as_json: AsJson = False,
    from_inside: FromInside = False,
) -> None:
    """Check this machine, the recipe's storage and, with an address, a cluster and each of its nodes.

    The exit code is 1 if a check failed; warnings alone do not count.
    """
    recipe = read_recipe(config_file, overrides)
    storage = Storage(recipe.storage)
    if from_inside:
        print(_MARK + json.dumps([asdict(found) for found in _inside(storage)]))
        return
    named = address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)
    findings = _here(recipe, storage) if named is None else _client() + _cluster(named, recipe, working_dir)
    failed = any(found.state == "failed" for found in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [asdict(found) for found in findings]}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(findings))
        say(f"doctor: {', '.join(f'{count} {state}' for state, count in _counts(findings).items())}")
    raise typer.Exit(1 if failed else 0)


def _here(recipe: config.Recipe, storage: Storage) -> list[CheckResult]:
    """Checks for running everything on this machine."""
    wanted = recipe.train.gpus_per_worker * recipe.train.worker_range[0]
    return [
        *machine.check_machine(machine.read_pins(), gpus=wanted),
        machine.free_ports(),
        *nodes.token_file(),
        *reported("storage", storage_checks.RULE, lambda: storage_checks.check_storage(storage)),
        *reported("clock", "within seconds of the store's", lambda: storage_checks.clock(storage)),
    ]


def _client() -> list[CheckResult]:
    """Checks for a machine that only submits: it needs no GPU, no memory and no storage credentials."""
    here = [machine.python_version(sys.version_info[:3]), *machine.packages(machine.read_pins())]
    return [*here, *reported("token file", "its owner reads it", nodes.token_file)]


def _cluster(address: str, recipe: config.Recipe, folder: Path) -> list[CheckResult]:
    """Checks of a cluster from outside, through its job server, and if that answers from inside, with a job."""
    found: list[JobServer] = []

    def outside() -> Iterator[CheckResult]:
        found.append(connect(address))
        yield CheckResult("cluster: address", "ok", found[0].address, "Ray's job server answers")
        yield from nodes.check_server(found[0])

    findings = reported("cluster: address", "Ray's job server answers, and takes the token", outside)
    if not found:
        return findings
    return findings + reported("cluster: job", "a job runs", lambda: _by_a_job(found[0], recipe, folder))


def _by_a_job(server: JobServer, recipe: config.Recipe, folder: Path) -> list[CheckResult]:
    upload = survey(folder)
    upload.check()
    work = Work("doctor", "pipelines.doctor", ("--from-inside", f"storage={recipe.storage}"), None, recipe)
    check_paths(work, upload.folder, one_machine=False)
    said: list[str] = []
    name = new_name("doctor")
    submit(server, work, name, upload)
    code = exit_code(follow(server, name, said.append))
    told = next((line for line in "".join(said).splitlines() if line.startswith(_MARK)), None)
    if code or told is None:
        raise IcreError(
            f"job {name} ended with exit code {code}: {''.join(said).strip()[-300:]}", hint=f"ray job logs {name}"
        )
    return [CheckResult(**values) for values in json.loads(told.removeprefix(_MARK))]


def _inside(storage: Storage) -> list[CheckResult]:
    with tempfile.TemporaryDirectory(prefix="icre-logs-") as logs, ray_session(Path(logs), demand=Demand(1)):
        return nodes.check_nodes(machine.read_pins(), storage)


def _counts(findings: Sequence[CheckResult]) -> Counter[str]:
    return Counter(found.state for found in findings)


if __name__ == "__main__":
    run_command(command)
