"""A checkpoint: a folder with the network, the optimiser, the training progress, and checksums of both files.

Reading a checkpoint never executes code from it: the network is stored as safetensors, the optimiser's state is read
with ``weights_only``, and the rest is JSON. The metadata can be read without importing torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from icre.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

NETWORK = "model.safetensors"
OPTIMIZER = "optimizer.pt"
META = "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """Training progress. ``step`` counts finished optimiser steps since the start of the run."""

    step: int
    best_metric: float | None
    best_step: int | None


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint, copied to the CPU; training can continue while it is written."""

    network: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    progress: Progress
    classes: int


def take_snapshot(
    *,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    classes: int,
) -> Snapshot:
    """Snapshot of training between two steps. Costs one copy of the weights and the momentum."""
    return Snapshot(
        network=_copied(network.state_dict()),
        optimizer=_copied(optimizer.state_dict()),
        progress=progress,
        classes=classes,
    )


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write the three files; ``checkpoint.json``, with sizes and SHA-256 of the others, is written last."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(snapshot.network, folder / NETWORK)
    torch.save(snapshot.optimizer, folder / OPTIMIZER)
    files = {name: describe_file(folder / name) for name in (NETWORK, OPTIMIZER)}
    meta = {"classes": snapshot.classes, "progress": asdict(snapshot.progress), "files": files}
    (folder / META).write_text(json.dumps(meta, indent=2))


def read_meta(folder: Path, *, files: Collection[str] = (NETWORK, OPTIMIZER)) -> dict[str, Any]:
    """Read the checkpoint's JSON and verify ``files`` against it, as far as it lists them.

    Raises WeightsError on any difference.
    """
    hint = "the checkpoint is damaged or was only partly written; use another one of the run's checkpoints/"
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        described = [(name, meta["files"][name]) for name in meta["files"] if name in files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder / META}: not a readable checkpoint: {error!r}", hint=hint) from error
    for name, expected in described:
        path = folder / name
        if not path.exists():
            raise WeightsError(f"{path}: missing, though {META} lists it", hint=hint)
        found = describe_file(path)
        if found != expected:
            raise WeightsError(f"{path}: {found} where {META} says {expected}", hint=hint)
    return meta


def progress_of(meta: dict[str, Any]) -> Progress:
    """Training progress at the time of the checkpoint."""
    return Progress(**meta["progress"])


def load_network(network: nn.Module, folder: Path) -> None:
    """Load every tensor of the network, with none missing or unexpected."""
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(folder / NETWORK), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"{folder / NETWORK} does not fit the network of this recipe: {error}",
            hint="evaluate with the config.yaml of the run that wrote the checkpoint",
        ) from error


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Load the optimiser's state; learning rates and penalties stay those of its recipe."""
    import torch

    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu"))
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    # Fused kernels ignore strides: a momentum in another layout than its parameter's (compute.channels_last was
    # changed) would be added to the wrong weights.
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def _copied(value: Any) -> Any:
    """A copy that shares no tensor with the original: on the CPU, contiguous as required by safetensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
