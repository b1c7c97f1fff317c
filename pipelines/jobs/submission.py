"""Submit a verb to a cluster as a Ray job that never runs twice."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from icre.errors import UserError
from pipelines.jobs.entrypoint import Work
from pipelines.jobs.server import ClusterError, JobServer
from pipelines.jobs.upload import Upload, mib
from pipelines.runtime.console import say


def submit(server: JobServer, work: Work, name: str, upload: Upload) -> bool:
    """Upload and start the job ``name``; False if it already exists. Raises UserError if that is another job."""
    if _is_there(server, name, work):
        return False
    try:
        server.client.submit_job(
            entrypoint=work.entrypoint, submission_id=name, runtime_env={"working_dir": str(upload.folder)}
        )
    except (RuntimeError, OSError, ValueError) as error:
        # Another submission with the same name, or our own whose response was lost, may have come first.
        if not _is_there(server, name, work):
            raise ClusterError(
                f"{server.address} did not take the job: {str(error).strip().splitlines()[-1]}",
                hint="`icre doctor --address …` looks closer",
            ) from error
        return False
    say(f"submit: job {name}, {mib(upload.size)} of code: {server.address}/#/jobs/{name}")
    return True


def _is_there(server: JobServer, name: str, work: Work) -> bool:
    job = server.job(name)
    if job is None:
        return False
    if job.entrypoint != work.entrypoint:
        raise UserError(
            f"job {name} is already there and runs something else: {job.entrypoint}", hint="take another --id"
        )
    say(f"submit: job {name} is already there ({job.status.value.lower()}), not run again")
    return True


def new_name(verb: str) -> str:
    """An unused job name: verb, UTC time and four random digits."""
    return f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
