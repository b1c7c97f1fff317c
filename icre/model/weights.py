"""Load pretrained ResNet weights with torchvision's parameter names into the dual-stream backbone."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from icre.errors import WeightsError
from icre.model.backbone import DualStreamResNet

_SHOWN = 8


def load_pretrained(backbone: DualStreamResNet, path: str | Path, *, sha256: str | None = None) -> None:
    """Fill ``backbone`` with the state dict in the local file ``path`` (.safetensors, or torch.save's own).

    ``conv1`` and ``bn1`` go into both stems, ``fc.*`` is ignored and ``num_batches_tracked`` may be absent. Any other
    missing or unexpected key, another shape, or a file that is missing, damaged or whose SHA-256 (hexadecimal) is not
    ``sha256`` raises WeightsError and leaves the backbone unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"pretrained weights {path}: no such file", hint="give the path of a state dict")
    if sha256 is not None:
        _check_sum(path, sha256.lower())
    state = _read(path)
    own = backbone.state_dict()
    if problems := _problems(own, state):
        listed = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"pretrained weights {path} do not fit {backbone.architecture}: {listed}{more}",
            hint="choose the architecture that the file was made for; names are torchvision's for ResNet",
        )
    backbone.load_state_dict({name: state.get(_public_name(name), value) for name, value in own.items()})


def _public_name(name: str) -> str:
    """Checkpoint name of a parameter: both stems map to the checkpoint's single stem."""
    return name.removeprefix("stem.visible.").removeprefix("stem.infrared.")


def _problems(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    expected = {_public_name(name): tuple(value.shape) for name, value in own.items()}
    missing = [
        f"missing {name}" for name in expected if name not in state and not name.endswith(".num_batches_tracked")
    ]
    unexpected = [f"unexpected {name}" for name in state if name not in expected and not name.startswith("fc.")]
    shapes = [
        f"{name} has shape {_shape(state[name].shape)}, expected {_shape(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    return missing + unexpected + shapes


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def _check_sum(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(
            f"pretrained weights {path}: SHA-256 is {found}, expected {expected}",
            hint="fetch the file again, or correct the checksum",
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError) as error:
        raise WeightsError(
            f"pretrained weights {path} cannot be read: {(str(error) or repr(error)).splitlines()[0]}",
            hint="the file is damaged, or not a state dict of tensors; fetch it again",
        ) from error
    if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()):
        return state
    raise WeightsError(
        f"pretrained weights {path}: holds a {type(state).__name__} that is not a flat state dict of tensors",
        hint="save model.state_dict() alone",
    )
