"""RayJob manifests of verbs for Kubernetes, generated from the manifests in cluster/kuberay as the single source."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from icre.errors import IcreError, UserError

BASE = "cluster/kuberay/base"
CLUSTER = "icre"
ANY_VERB = "train"
"""The template for verbs without their own."""


def base_manifests(folder: Path) -> list[dict[str, Any]]:
    """The base's objects as in ``kubectl kustomize``: each RayJob with the shared RayCluster spec."""
    kustomization = folder / "kustomization.yaml"
    if not kustomization.is_file():
        raise UserError(
            f"{folder} holds no kustomization.yaml", hint="name the root of the repository with --working-dir"
        )
    names = yaml.safe_load(kustomization.read_text())["resources"]
    objects = [found for name in names for found in yaml.safe_load_all((folder / name).read_text())]
    spec = next(found["spec"] for found in objects if found["kind"] == "RayCluster")
    for found in objects:
        if found["kind"] == "RayJob":
            found["spec"]["rayClusterSpec"] = copy.deepcopy(spec)
    return objects


def overlay_manifests(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization, from ``kubectl kustomize``."""
    if not folder.is_dir():
        raise UserError(f"--overlay {folder}: no such folder", hint="such as cluster/kuberay/overlays/production")
    return list(yaml.safe_load_all(_kubectl(["kustomize", str(folder)])))


def ray_job(objects: Iterable[dict[str, Any]], *, verb: str, entrypoint: str, name: str) -> dict[str, Any]:
    """The unsuspended RayJob ``name`` that runs ``entrypoint``, from the template of ``verb`` among ``objects``."""
    templates = {found["metadata"]["labels"].get("icre/verb"): found for found in objects if found["kind"] == "RayJob"}
    template = templates.get(verb) or templates.get(ANY_VERB)
    if template is None:
        raise UserError(f"the manifests hold no RayJob for {verb}", hint=f"see {BASE}/rayjobs.yaml")
    job = copy.deepcopy(template)
    labels = {key: value for key, value in job["metadata"]["labels"].items() if key != "icre/template"}
    kept = {key: value for key, value in job["metadata"].items() if key == "namespace"}
    job["metadata"] = {"name": name, "labels": labels | {"icre/verb": verb}, **kept}
    job["spec"] |= {"entrypoint": entrypoint, "jobId": name, "suspend": False}
    return job


def create(job: dict[str, Any]) -> bool:
    """Create the object in kubectl's current context; returns False if the name already exists."""
    try:
        _kubectl(["create", "-f", "-"], given=yaml.safe_dump(job))
    except IcreError as error:
        if "AlreadyExists" in error.message:
            return False
        raise
    return True


def _kubectl(arguments: list[str], *, given: str = "") -> str:
    if shutil.which("kubectl") is None:
        raise UserError(
            f"`kubectl {' '.join(arguments)}` is needed, and kubectl is not on PATH",
            hint="install it; or `--kubernetes --dry-run` without --overlay prints the manifest to create elsewhere",
        )
    ran = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True)
    if ran.returncode:
        raise IcreError(
            f"`kubectl {' '.join(arguments)}` failed: {ran.stderr.strip()}",
            hint="check `kubectl config current-context`, and that the KubeRay operator is installed",
        )
    return ran.stdout
