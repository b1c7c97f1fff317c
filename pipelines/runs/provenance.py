"""Provenance of a run: code, command, packages, data, hardware, parents."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from icre import config

PACKAGES = ("torch", "ray", "pyarrow", "s3fs", "numpy", "pillow", "simplejpeg", "pydantic", "safetensors")


def provenance(recipe: config.Recipe, data: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a run's manifest.json that do not depend on its name."""
    return {
        "created": now(),
        "code": code_version(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
        "seed": recipe.seed,
        "data": {
            "name": data["name"],
            "hash": data["hash"],
            "synthetic": data["synthetic"],
            "counts": data["counts"],
            "classes": len(data["classes"]),
            "set_aside": data["set_aside"],
            "not_trained": data["not_trained"],
        },
    }


def code_version() -> dict[str, Any]:
    """Package version and, in a git checkout, the commit and whether files differ from it."""
    version: dict[str, Any] = {"version": metadata.version("icre")}
    root = Path(__file__).resolve().parents[2]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        version["commit"] = _git(root, "rev-parse", "HEAD")
        version["modified"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return version


def hardware() -> dict[str, Any]:
    """Architecture, CPUs and GPUs of this machine."""
    import torch  # commands that only read runs do not need it

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


def now() -> str:
    """Current UTC time in ISO 8601 with microseconds, so that runs sort by their start."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
