"""``icre submit``: run a verb as a job on a Ray cluster or as a RayJob on Kubernetes, after all checks have passed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from icre.errors import UserError
from pipelines.jobs import manifest
from pipelines.jobs.entrypoint import Work, check_paths, read_work
from pipelines.jobs.job_logs import exit_code, follow, known
from pipelines.jobs.server import JobServer, connect, version_warnings
from pipelines.jobs.submission import new_name, submit
from pipelines.jobs.upload import LIMIT, Upload, mib, survey
from pipelines.runtime.command import new_app, run_app
from pipelines.runtime.console import say

CONTEXT = {"allow_interspersed_args": False}
"""Arguments after the verb belong to the verb."""

Verb = Annotated[str | None, typer.Argument(metavar="VERB", help="prepare, train, evaluate, …; see `icre --help`.")]
Arguments = Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="Options and overrides of the verb.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if a URL."),
]
JobId = Annotated[
    str | None,
    typer.Option("--id", help="Name of the job; each name runs only once. Default: <verb>-<date>-<time>-<random>."),
]
WorkingDir = Annotated[Path, typer.Option("--working-dir", help="Code to upload, except for what .rayignore lists.")]
Follow = Annotated[
    bool,
    typer.Option("--follow/--no-follow", help="Stream the log and exit with the job's code. Ctrl-C detaches."),
]
Attach = Annotated[str | None, typer.Option("--attach", metavar="ID", help="Follow a job that was submitted earlier.")]
Kubernetes = Annotated[
    bool, typer.Option("--kubernetes", help="`kubectl create` a RayJob with its own cluster, see docs/cluster.md.")
]
Overlay = Annotated[
    Path | None, typer.Option("--overlay", help=f"With --kubernetes: the kustomization. Default: {manifest.BASE}.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Run all checks and print what would be sent. Send nothing.")]


def command(
    verb: Verb = None,
    arguments: Arguments = None,
    address: Address = None,
    job_id: JobId = None,
    working_dir: WorkingDir = Path(),
    follow_log: Follow = True,
    attach: Attach = None,
    kubernetes: Kubernetes = False,
    overlay: Overlay = None,
    dry_run: DryRun = False,
) -> None:
    """Run a verb on a cluster: options, then the verb, then the verb's own arguments."""
    if attach is not None:
        if verb is not None:
            raise UserError(f"--attach {attach} takes no verb, got {verb}", hint="leave one of them out")
        server = connect(address)
        known(server, attach)
        raise typer.Exit(_until_the_end(server, attach))
    if verb is None:
        raise UserError("no verb to run", hint="icre submit [OPTIONS] VERB [ARGS]..., such as: icre submit train")
    work = read_work(verb, arguments or [])
    name = _checked_name(job_id, kubernetes=kubernetes) or new_name(verb)
    if kubernetes:
        _on_kubernetes(work, name, working_dir, overlay, dry_run=dry_run)
        return
    server = connect(address)
    upload = survey(working_dir)
    upload.check()
    placed = check_paths(work, upload.folder, one_machine=server.is_this_machine_alone)
    for warning in [*version_warnings(server), *placed]:
        say(f"submit: warning: {warning}")
    if dry_run:
        print(_plan(server, work, name, upload))
        return
    submit(server, work, name, upload)
    if not follow_log:
        print(name)
        return
    raise typer.Exit(_until_the_end(server, name))


def _until_the_end(server: JobServer, name: str) -> int:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        job = follow(server, name, write)
    except KeyboardInterrupt:
        say(f"\nsubmit: detached, job {name} goes on; come back with: icre submit --attach {name}")
        say(f"submit: to stop it: ray job stop {name}")
        return 130
    code = exit_code(job)
    say(f"submit: job {name} {job.status.value.lower()}, exit code {code}")
    return code


def _plan(server: JobServer, work: Work, name: str, upload: Upload) -> str:
    largest = ", ".join(f"{entry} {mib(size)}" for entry, size in upload.largest(3))
    return "\n".join(
        [
            f"job: {name}",
            f"entrypoint: {work.entrypoint}",
            f"storage: {work.recipe.storage if work.recipe else '-'}",
            f"cluster: {server.address}, Ray {server.versions['ray']}, Python {server.versions['python']}, "
            f"{len(server.nodes)} node(s), {'with' if server.wants_token else 'WITHOUT'} token authentication",
            f"would upload: {len(upload.files)} files, {mib(upload.size)} of {mib(LIMIT)} allowed; largest: {largest}",
        ]
    )


def _on_kubernetes(work: Work, name: str, folder: Path, overlay: Path | None, *, dry_run: bool) -> None:
    for warning in check_paths(work, folder, one_machine=False):
        say(f"submit: warning: {warning}")
    objects = manifest.overlay_manifests(overlay) if overlay else manifest.base_manifests(folder / manifest.BASE)
    job = manifest.ray_job(objects, verb=work.verb, entrypoint=work.entrypoint, name=name)
    if dry_run:
        print(yaml.safe_dump(job, sort_keys=False), end="")
        return
    made = manifest.create(job)
    say(f"submit: RayJob {name} {'created' if made else 'is already there, not run again'}")
    say(f"submit: kubectl get rayjob {name} --watch; kubectl logs --follow job/{name}")
    print(name)


def _checked_name(name: str | None, *, kubernetes: bool) -> str | None:
    # 47 characters: KubeRay derives the names of services and pods from a RayJob's.
    shape, rule = (
        (r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", "lower-case letters, digits and '-', 47 at most, a letter first")
        if kubernetes
        else (r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", "letters, digits, '.', '_' and '-', 120 at most")
    )
    if name is not None and not re.fullmatch(shape, name):
        raise UserError(f"--id {name!r} is not a job's name", hint=rule)
    return name


app = new_app()
app.command(context_settings=CONTEXT)(command)

if __name__ == "__main__":
    run_app(app)
