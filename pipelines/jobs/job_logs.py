"""Follow a submitted job to its end: stream its log across lost connections and return its exit code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from icre.errors import IcreError
from pipelines.jobs.server import ClusterError, JobServer
from pipelines.runtime.console import say

PATIENCE_S = 900.0
"""How long a job server may be unreachable (say, during a new `kubectl port-forward`) before following ends."""
_POLL_S = 1.0


class JobLostError(IcreError):
    """A job ended without an exit code, or its outcome is no longer known."""


def follow(
    server: JobServer, job_id: str, write: Callable[[str], object], *, patience_s: float = PATIENCE_S
) -> JobDetails:
    """Pass each character of the job's log to ``write`` once until the job ends; returns the final job details.

    Raises :class:`JobLostError` if the cluster no longer has the job, ClusterError if the job server is unreachable for
    ``patience_s``.
    """
    return asyncio.run(_follow(server, job_id, write, patience_s))


def exit_code(job: JobDetails) -> int:
    """The driver's exit code, with signals as in shells; 143 for a stopped job.

    Raises :class:`JobLostError` with Ray's message if there was no driver, for example after a node was lost.
    """
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code) if job.driver_exit_code >= 0 else 128 - int(job.driver_exit_code)
    if job.status == JobStatus.STOPPED:
        return 143
    raise JobLostError(
        f"job {job.submission_id} {job.status.value.lower()} without an exit code: {job.message}",
        hint="submit it again under another --id; training goes on with `train --resume auto`",
    )


async def _follow(server: JobServer, job_id: str, write: Callable[[str], object], patience_s: float) -> JobDetails:
    log, heard = _Log(write), time.monotonic()
    while True:
        try:
            async for text in _texts(server, job_id):
                heard = time.monotonic()
                log.add(text)
                if not text and (job := known(server, job_id)).status.is_terminal():
                    log.rewind()
                    log.add(server.get(f"/api/jobs/{job_id}/logs")["logs"])
                    return job
        except (aiohttp.ClientError, OSError, ClusterError, RuntimeError) as error:
            if time.monotonic() - heard > patience_s:
                raise ClusterError(
                    f"no connection to {server.address} for {patience_s:g} s: {error}",
                    hint=f"the job may go on; come back with: icre submit --attach {job_id}",
                ) from error
            say(f"submit: connection lost ({type(error).__name__}), trying again; the job is not affected")
            await asyncio.sleep(_POLL_S)
        log.rewind()


async def _texts(server: JobServer, job_id: str) -> AsyncIterator[str]:
    """The log from its beginning, with empty texts for pauses and after its end.

    The pauses allow checking the job: Ray's stream ends some seconds after it.
    """
    stream = server.client.tail_job_logs(job_id)
    coming = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=_POLL_S)
            text = coming.result() if done else ""
            yield text or ""
            if text is None:
                return
            if done:
                coming = asyncio.ensure_future(anext(stream, None))
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await coming


class _Log:
    """Writes each character of a text once, even if the text is streamed again from its beginning."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._written, self._told = write, 0, 0

    def rewind(self) -> None:
        self._told = 0

    def add(self, text: str) -> None:
        if new := text[max(0, self._written - self._told) :]:
            self._write(new)
        self._told += len(text)
        self._written = max(self._written, self._told)


def known(server: JobServer, job_id: str) -> JobDetails:
    """The cluster's details of a job. Raises :class:`JobLostError` if it has none."""
    job = server.job(job_id)
    if job is None:
        raise JobLostError(
            f"{server.address} knows no job {job_id}",
            hint="`ray job list` names those it knows; a cluster that was started anew has forgotten the ones before",
        )
    return job
