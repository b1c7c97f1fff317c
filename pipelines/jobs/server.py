"""A Ray cluster's job server: address, availability, token and jobs."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from icre.errors import IcreError, UserError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TIMEOUT_S = 10.0


class ClusterError(IcreError):
    """The cluster or its connection is faulty: no response, or an invalid one."""


class NoSuchJobError(ClusterError):
    """The cluster does not have a job: it never existed, or the cluster was replaced."""


@dataclass(frozen=True)
class JobServer:
    """The job server at ``address`` (http or https); ``token`` is sent if the cluster requires one."""

    address: str
    token: str | None = field(repr=False)
    wants_token: bool

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S) -> Any:
        """The JSON response to a GET of ``path``. Raises UserError for a token, ClusterError for anything else."""
        return _get(self.address + path, token=self.token if self.wants_token else None, timeout_s=timeout_s)

    @cached_property
    def versions(self) -> dict[str, str]:
        """``ray`` and ``python`` versions of the cluster's head."""
        found = self.get("/api/v0/cluster_metadata")["data"]
        return {"ray": str(found["rayVersion"]), "python": str(found["pythonVersion"])}

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's live nodes, as listed by Ray."""
        found = self.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    @property
    def is_this_machine_alone(self) -> bool:
        """Whether the cluster is a single node reached over loopback, which shares this machine's disk."""
        return urlsplit(self.address).hostname in ("127.0.0.1", "localhost", "::1") and len(self.nodes) <= 1

    def job(self, job_id: str) -> JobDetails | None:
        """Details of a submitted job, or None."""
        try:
            return JobDetails(**self.get(f"/api/jobs/{quote(job_id, safe='')}"))
        except NoSuchJobError:
            return None

    @cached_property
    def client(self) -> JobSubmissionClient:
        """Ray's own client for this address, regardless of environment variables."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.wants_token else {}
        before = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
        try:
            return JobSubmissionClient(self.address, headers=headers)
        except (AuthenticationError, ConnectionError, RuntimeError) as error:
            raise ClusterError(
                f"the job server at {self.address}: {error}", hint="`icre doctor --address …` looks closer"
            ) from error
        finally:
            os.environ |= before


def connect(address: str | None = None) -> JobServer:
    """The job server at ``address`` or from the environment, checked to respond and to accept the token.

    Raises UserError for a missing or malformed address and a missing or rejected token, ClusterError for no response.
    """
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # Ray's client logs each ignore file and closed socket
    url = resolve_address(address)
    mode = _get(f"{url}/api/authentication_mode", token=None, timeout_s=TIMEOUT_S)
    if not isinstance(mode, dict) or "authentication_mode" not in mode:
        raise ClusterError(f"{url} answers, but is not Ray's job server", hint="its port is 8265 unless told otherwise")
    wants_token = mode["authentication_mode"] != "disabled"
    server = JobServer(url, find_token(), wants_token)
    if wants_token and server.token is None:
        raise UserError(
            f"{url} wants a token, and there is none here",
            hint="copy the cluster's to ~/.ray/auth_token (chmod 600), or set RAY_AUTH_TOKEN_PATH",
        )
    server.get("/api/version")
    return server


def resolve_address(address: str | None) -> str:
    """``address``, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, validated and without a trailing slash."""
    named = [("--address", address), *((name, os.environ.get(name)) for name in ADDRESS_VARIABLES)]
    where, value = next(((where, value) for where, value in named if value), ("", None))
    hint = "http://HEAD:8265; on a cluster of `ray up`, `ray dashboard` forwards it to http://127.0.0.1:8265"
    if value is None:
        raise UserError("no cluster named: --address, RAY_API_SERVER_ADDRESS and RAY_ADDRESS are empty", hint=hint)
    if "@" in value:
        raise UserError(f"{where} carries credentials (not shown)", hint="the token goes to ~/.ray/auth_token")
    if not re.fullmatch(r"https?://(\[[0-9a-fA-F:]+\]|[^/:\[\]]+)(:\d{1,5})?(/[^?#]*)?", value):
        raise UserError(f"{where}={value} is not the address of a job server", hint=hint)
    return value.rstrip("/")


def find_token() -> str | None:
    """The token from Ray's own locations: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token in {path} cannot be read: {error}", hint="chmod 600 and own the file") from error


def version_warnings(server: JobServer) -> list[str]:
    """Differences between the cluster's versions and this machine's, which validated the recipe."""
    here = {"ray": ray.__version__, "python": platform.python_version()}
    there = server.versions
    warnings = []
    if there["ray"] != here["ray"]:
        warnings.append(f"Ray is {there['ray']} on the cluster and {here['ray']} here, where it was checked")
    if there["python"].split(".")[:2] != here["python"].split(".")[:2]:
        warnings.append(f"Python is {there['python']} on the cluster and {here['python']} here")
    return warnings


def _get(url: str, *, token: str | None, timeout_s: float) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(
            f"no answer from Ray's job server at {url}: {reason}",
            hint="check the address, that the head runs, and the way to it (`ray dashboard`, `kubectl port-forward`)",
        ) from error


def _refusal(url: str, error: urllib.error.HTTPError) -> IcreError:
    if error.code in (401, 403):
        return UserError(
            f"{url} refuses the token ({error.code})",
            hint="take the cluster's own: ~/.ray/auth_token of its head, or RAY_AUTH_TOKEN_PATH",
        )
    if error.code == 404 and "/api/jobs/" in url:
        return NoSuchJobError(f"no job at {url}", hint="`ray job list` names those that the cluster knows")
    return ClusterError(
        f"{url} answers {error.code} {error.reason}", hint="is it Ray's job server? see the dashboard's log"
    )
