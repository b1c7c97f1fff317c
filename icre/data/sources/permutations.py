"""``rand_perm_cam.mat`` of SYSU-MM01: the image draws of its official evaluation."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from icre.data.sources.checks import stop_for
from icre.errors import DataError

TRIALS = 10
_VARIABLE = "rand_perm_cam"
_HINT = "take the file from the release, or draw the gallery with draw='seeded'"
# Errors of scipy for empty, truncated or corrupted files and for files of MATLAB 7.3.
_UNREADABLE = (MatReadError, OSError, ValueError, TypeError, IndexError, NotImplementedError, zlib.error)


def read_permutations(path: Path) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Map (camera, identity), both from 1, to 10 rows, each a permutation of the image numbers 1 to n.

    The file has a cell per camera with a cell per identity. The cell of an identity that is absent from a camera is
    empty and has no entry here. Raises DataError for a file that is missing, unreadable or not of that form.
    """
    cells = {
        (camera, identity): rows
        for camera, cell in enumerate(np.ravel(_load(path)), start=1)
        for identity, rows in enumerate(np.ravel(cell), start=1)
    }
    problems = [
        f"{_VARIABLE}: camera {camera}, identity {identity}: {_shown(rows)} is not {TRIALS} permutations of 1 to n"
        for (camera, identity), rows in cells.items()
        if not _has_permutations(rows)
    ]
    stop_for(problems, path, hint=_HINT)
    return {key: rows.astype(np.int64) for key, rows in cells.items() if rows.size}


def _load(path: Path) -> Any:
    try:
        return loadmat(path)[_VARIABLE]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=_HINT) from None
    except KeyError:
        raise DataError(f"{path}: there is no variable {_VARIABLE}", hint=_HINT) from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}", hint=_HINT) from error


def _has_permutations(rows: Any) -> bool:
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iuf":
        return False
    if not rows.size:
        return True
    return rows.ndim == 2 and len(rows) == TRIALS and bool((np.sort(rows) == np.arange(1, rows.shape[1] + 1)).all())


def _shown(rows: Any) -> str:
    return (
        f"an array {' x '.join(map(str, rows.shape))} of {rows.dtype}" if isinstance(rows, np.ndarray) else repr(rows)
    )
