"""Start a scheduled job: copy a suspended RayJob under a new name and start the copy.

    python -m cluster.kuberay.start_job --template icre-retrain --name icre-retrain-29387654

Runs in a pod whose service account may read the template, list RayJobs and create one. Neither an existing name (the
same step ran twice) nor an unfinished earlier copy (the next schedule tries again) is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icre.errors import IcreError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL = "icre/schedule"
_ENDED = ("Complete", "Failed")
_TIMEOUT_S = 30.0


class KubernetesError(IcreError):
    """The Kubernetes API rejected a request or did not respond."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True)
class Api:
    """The RayJobs of one namespace in the Kubernetes API at ``url``."""

    url: str
    namespace: str
    token: str
    context: ssl.SSLContext | None = None

    @classmethod
    def of_this_pod(cls, account: Path = ACCOUNT) -> Api:
        """The API with the service account that Kubernetes mounts."""
        if not (account / "token").is_file():
            raise KubernetesError(f"no {account}/token: not in a pod", hint="see cluster/kuberay/base/schedule.yaml")
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        return cls(
            f"https://{f'[{host}]' if ':' in host else host}:{port}",
            (account / "namespace").read_text().strip(),
            (account / "token").read_text().strip(),
            ssl.create_default_context(cafile=str(account / "ca.crt")),
        )

    def request(self, method: str, path: str = "", *, body: Any = None) -> Any:
        """The JSON response for a path below the namespace's RayJobs."""
        url = f"{self.url}/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs{path}"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self.context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                told = error.read(2000).decode(errors="replace")
            raise KubernetesError(
                f"{method} {url}: {error.code} {told}", hint="see cluster/kuberay/base/access.yaml", status=error.code
            ) from None
        except (OSError, ValueError) as error:
            raise KubernetesError(f"{method} {url}: {error}", hint="is the API reachable? see network.yaml") from error


def start(api: Api, *, template: str, name: str) -> str:
    """Start the copy ``name`` of ``template``, unless it exists or an earlier one is running; returns a message."""
    selector = urllib.parse.quote(f"{LABEL}={template}")
    if running := _running(api.request("GET", f"?labelSelector={selector}")["items"]):
        return f"{', '.join(running)} still runs: nothing started"
    try:
        api.request("POST", body=copy_of(api.request("GET", f"/{template}"), name=name))
    except KubernetesError as error:
        if error.status != 409:
            raise
        return f"{name} is already there: nothing started"
    return f"{name} started"


def copy_of(template: dict[str, Any], *, name: str) -> dict[str, Any]:
    """The RayJob to create: the template's spec, not suspended, with its own name."""
    labels = {key: value for key, value in template["metadata"].get("labels", {}).items() if key != "icre/template"}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {"name": name, "labels": labels | {LABEL: template["metadata"]["name"]}},
        "spec": template["spec"] | {"suspend": False, "jobId": name},
    }


def _running(jobs: Iterable[dict[str, Any]]) -> list[str]:
    return [
        str(job["metadata"]["name"]) for job in jobs if job.get("status", {}).get("jobDeploymentStatus") not in _ENDED
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Start a copy of a suspended RayJob.")
    parser.add_argument("--template", required=True, help="the suspended RayJob")
    parser.add_argument("--name", default=f"retrain-{time.strftime('%Y%m%d-%H%M')}", help="the copy's name")
    asked = parser.parse_args()
    try:
        print(start(Api.of_this_pod(), template=asked.template, name=asked.name))
    except IcreError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
