"""Detection of credentials in data visible to all users of a cluster: command line, recipe and runtime_env."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from icre.errors import UserError

_SHAPES = {
    "a user and password in a URL": re.compile(r"\w+://[^/\s@]*:[^/\s@]+@|s3://[^/\s@]+@"),
    "a signed URL": re.compile(r"(?i)[?&](X-Amz-(Signature|Credential|Security-Token)|Signature|sig|token)="),
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a key by its name": re.compile(
        r"(?i)[\w.-]*(secret|password|passwd|token|credential|api_?key|access_?key)[\w.-]*\s*=\s*\S+"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
}
_SECRET_VARIABLE = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|ACCESS_KEY")
_SHORTEST = 8  # characters; shorter values would match by chance

HINT = (
    "a job's command line can be read by everyone on the cluster. Give secrets to the nodes instead: an instance "
    "profile, a Kubernetes secret (secretKeyRef), or variables of the shell that starts Ray; see docs/cluster.md"
)


def refuse_secrets(texts: Mapping[str, str], *, environment: Mapping[str, str] | None = None) -> None:
    """Raise UserError if one of ``texts`` (text by location) contains a credential, which the message does not repeat.

    Checks common key formats and all secrets in this process's environment.
    """
    known = _values(os.environ if environment is None else environment)
    for place, text in texts.items():
        found = next((kind for kind, shape in _SHAPES.items() if shape.search(text)), None)
        found = found or next((f"the value of {name}" for name, value in known.items() if value in text), None)
        if found:
            raise UserError(f"{place} holds {found} (not shown)", hint=HINT)


def recipe_texts(values: Any, *, prefix: str = "") -> Iterable[tuple[str, str]]:
    """All strings in a recipe with their keys."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from recipe_texts(value, prefix=f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from recipe_texts(value, prefix=prefix)
    elif isinstance(values, str):
        yield prefix, values


def _values(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if _SECRET_VARIABLE.search(name) and not name.endswith(("_PATH", "_FILE", "_URL")) and len(value) >= _SHORTEST
    }
