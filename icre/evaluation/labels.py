"""Validated inputs of an evaluation: labels as small integers, features as unit vectors.

Shape letters: N images, Q queries, G gallery images, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icre.errors import ProtocolError

Matrix = NDArray[Any] | Tensor
LabelsLike = Sequence[int] | Sequence[str] | NDArray[Any] | Tensor
CameraRule = Literal["none", "same_camera", "sysu"]
CmcUnit = Literal["image", "identity"]

# SYSU-MM01: infrared camera 3 and visible camera 2 are at the same location.
SYSU_QUERY_CAMERA, SYSU_GALLERY_CAMERA = 3, 2


@dataclass(frozen=True, eq=False)
class Labels:
    """Label codes of N images, int64 (N,), from :func:`encode_labels`.

    A query and a gallery image have the same identity where ``pids`` are equal; the camera rule may exclude
    pairs with equal ``cams``.
    """

    pids: Tensor
    cams: Tensor

    def take(self, rows: slice) -> Labels:
        """The labels of some of the images."""
        return Labels(self.pids[rows], self.cams[rows])


def excluded_pairs(query: Labels, gallery: Labels, camera_rule: CameraRule) -> Tensor | None:
    """Bool (Q, G): gallery images that the camera rule excludes for each query; None if it excludes none."""
    if camera_rule == "none":
        return None
    same_camera = query.cams[:, None] == gallery.cams
    return same_camera & (query.pids[:, None] == gallery.pids) if camera_rule == "same_camera" else same_camera


def check_conventions(camera_rule: str, cmc: str) -> None:
    """Raises :class:`ProtocolError` for an unknown camera rule or CMC convention."""
    for name, value, known in (("camera_rule", camera_rule, CameraRule), ("cmc", cmc, CmcUnit)):
        if value not in get_args(known):
            raise ProtocolError(
                f"{name} is {value!r}; it is one of {', '.join(get_args(known))}", hint=f"correct {name}"
            )


def check_at_least(least: int, **values: int) -> None:
    """Raises :class:`ProtocolError` for the first of ``values`` below ``least``."""
    for name, value in values.items():
        if value < least:
            raise ProtocolError(f"{name} is {value}; it is at least {least}", hint=f"correct {name}")


def as_labels(values: LabelsLike, name: str, length: int) -> NDArray[Any]:
    """``values`` as an array (length,) of int64 or of strings; anything else is a :class:`ProtocolError`."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind == "O":
        # A data frame's column of strings: None and NaN must not become labels.
        if not all(isinstance(value, str) for value in array.flat):
            raise ProtocolError(
                f"{name} holds values that are not strings; labels are all integers or all strings",
                hint="look for missing labels",
            )
        array = array.astype(str)
    if array.dtype.kind not in "iuU" and array.size:
        raise ProtocolError(
            f"{name} has dtype {array.dtype}; labels are integers or strings",
            hint=f"convert {name} to int64 or str",
        )
    if array.shape != (length,):
        raise ProtocolError(
            f"{name} has shape {array.shape}; the images it labels need ({length},)",
            hint="pass one label for every image, in the order of the images",
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def encode_labels(
    pids: tuple[NDArray[Any], NDArray[Any]],
    cams: tuple[NDArray[Any], NDArray[Any]] | None,
    *,
    camera_rule: CameraRule,
    device: torch.device,
) -> tuple[Labels, Labels]:
    """Query and gallery :class:`Labels` on ``device`` from (query, gallery) pairs of :func:`as_labels`."""
    q_pids, g_pids = _codes(*pids, "identities")
    if camera_rule == "none":
        q_cams, g_cams = np.full_like(q_pids, -1), np.zeros_like(g_pids)
    elif cams is None:
        raise ProtocolError(
            f"no cameras given; camera rule {camera_rule!r} needs one for every query and gallery image",
            hint="pass q_camids and g_camids, or use camera rule 'none'",
        )
    elif camera_rule == "same_camera":
        q_cams, g_cams = _codes(*cams, "cameras")
    else:
        q_cams, g_cams = _sysu_codes(*cams)
    query = Labels(torch.from_numpy(q_pids).to(device), torch.from_numpy(q_cams).to(device))
    return query, Labels(torch.from_numpy(g_pids).to(device), torch.from_numpy(g_cams).to(device))


def _codes(query: NDArray[Any], gallery: NDArray[Any], name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes of the query and gallery labels: gallery labels are numbered from 0, other query labels are -1."""
    if query.dtype.kind != gallery.dtype.kind:
        raise ProtocolError(
            f"query {name} are {query.dtype} but gallery {name} are {gallery.dtype}; they would never match",
            hint="give both as integers or both as strings",
        )
    known, codes = np.unique(gallery, return_inverse=True)
    place = np.searchsorted(known, query).clip(max=len(known) - 1)
    return np.where(known[place] == query, place, -1).astype(np.int64), codes.astype(np.int64)


def _sysu_codes(query: NDArray[Any], gallery: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if query.dtype.kind == "U" or gallery.dtype.kind == "U":
        raise ProtocolError(
            "camera rule 'sysu' got cameras that are strings; it needs the camera numbers 1 to 6",
            hint="pass the cameras as integers",
        )
    excluded, query_other, gallery_other = 0, -1, 1
    return (
        np.where(query == SYSU_QUERY_CAMERA, excluded, query_other).astype(np.int64),
        np.where(gallery == SYSU_GALLERY_CAMERA, excluded, gallery_other).astype(np.int64),
    )


def unit_rows(features: Matrix, name: str) -> Tensor:
    """L2-normalised float32 copy (N, D) of ``features``, on their device.

    Raises :class:`ProtocolError` for a matrix that is empty or not two-dimensional, and for a row that is not
    finite or has length zero (its cosine is undefined).
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ProtocolError(
            f"{name} has shape {tuple(features.shape)}; expected (images, dimensions), neither of them 0",
            hint="pass one feature vector for every image",
        )
    rows = as_floats(features).float()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    _refuse_rows(~norms.isfinite(), name, "NaN or infinite", "the network diverged, or float16 overflowed")
    _refuse_rows(norms == 0, name, "of length zero", "check that trained weights were loaded")
    unit: Tensor = rows / norms
    return unit


def _refuse_rows(bad: Tensor, name: str, what: str, hint: str) -> None:
    rows = bad.flatten().nonzero().flatten()
    if len(rows):
        raise ProtocolError(
            f"{name}: {len(rows)} of {len(bad)} rows are {what}, the first is row {int(rows[0])}; "
            "cosine distance needs finite vectors that are not zero",
            hint=hint,
        )


def as_floats(values: Matrix) -> Tensor:
    """``values`` as a float32 tensor, or float64 where float32 would lose precision (float64 and integers)."""
    if isinstance(values, Tensor):
        short = values.dtype in (torch.float16, torch.bfloat16, torch.float32)
        return values.detach().to(torch.float32 if short else torch.float64)
    short = values.dtype in (np.float16, np.float32)
    # Copied because torch cannot wrap read-only and reversed arrays; callers pass a chunk.
    return torch.from_numpy(np.array(values, dtype=np.float32 if short else np.float64))
