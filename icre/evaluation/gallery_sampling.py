"""Query and gallery images of each trial of a protocol.

Shape letters: N images, U drawn images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from icre.data.records import Modality, Record
from icre.data.sources.cameras import Groups, draw_permuted, draw_seeded, group_images
from icre.errors import ProtocolError
from icre.evaluation.labels import LabelsLike, as_labels, check_at_least
from icre.evaluation.protocols import Direction, Protocol

Permutations = Mapping[tuple[int, int], NDArray[np.int64]]
"""Return type of :func:`icre.data.sources.permutations.read_permutations`."""
Rows = NDArray[np.int64]


def trials(
    records: Sequence[Record], protocol: Protocol, direction: Direction, *, permutations: Permutations | None = None
) -> list[tuple[Rows, Rows]]:
    """Query and gallery rows of each trial. Undrawn sides have all images of their modality, in the order given.

    permutations: required by the official draw. Raises :class:`ProtocolError` for a modality without images and for
    cameras unknown to the protocol.
    """
    query, gallery = _side(records, direction.query, protocol), _side(records, direction.gallery, protocol)
    pool = query if direction.drawn == "query" else gallery
    draws = _draws([records[row] for row in pool], pool, protocol, permutations)
    return [(drawn, gallery) if direction.drawn == "query" else (query, drawn) for drawn in draws]


def _side(records: Sequence[Record], modality: Modality, protocol: Protocol) -> Rows:
    rows = np.array([row for row, record in enumerate(records) if record.modality == modality], np.int64)
    if not len(rows):
        raise ProtocolError(
            f"none of {len(records)} images is {modality}; protocol {protocol.name} needs both modalities",
            hint=f"add {modality} images of the same identities, or choose another split",
        )
    return rows


def _draws(
    candidates: Sequence[Record], rows: Rows, protocol: Protocol, permutations: Permutations | None
) -> Iterator[Rows]:
    """Drawn rows of each trial, sorted by identity, camera and path."""
    trials = range(protocol.trials)
    if protocol.draw == "none":
        yield from (rows for _ in trials)
    elif protocol.draw == "pcg64":
        columns = [[getattr(record, name) for record in candidates] for name in ("pid", "camid", "path")]
        for trial in trials:
            yield rows[draw_gallery(*columns, shots=protocol.shots, seed=protocol.seed, trial=trial)]
    else:
        row_of = {record.path: row for record, row in zip(candidates, rows, strict=True)}
        groups, cameras = _groups(candidates, protocol)
        for trial in trials:
            if protocol.draw == "seeded":
                drawn = draw_seeded(groups, trial=trial, shots=protocol.shots)
            else:
                drawn = _official(groups, cameras, protocol, trial, permutations)
            yield np.array([row_of[record.path] for record in sorted(drawn)], np.int64)


def _groups(candidates: Sequence[Record], protocol: Protocol) -> tuple[Groups, Sequence[str]]:
    """Images by identity and camera that the protocol draws from, and these cameras in order."""
    seen = sorted({record.camid for record in candidates}, key=lambda camid: (len(camid), camid))
    cameras = protocol.cameras or seen
    groups = group_images((record for record in candidates if record.camid in cameras), cameras)
    if not groups:
        raise ProtocolError(
            f"protocol {protocol.name} draws from cameras {' '.join(cameras)}; the images have {' '.join(seen)}",
            hint="choose the protocol of this data set, or `folder`",
        )
    return groups, cameras


def _official(
    groups: Groups,
    cameras: Sequence[str],
    protocol: Protocol,
    trial: int,
    permutations: Permutations | None,
) -> list[Record]:
    if permutations is None:
        raise ProtocolError(
            f"protocol {protocol.name} needs the data set's permutations",
            hint="set data.root to the release, which holds exp/rand_perm_cam.mat, or take the seeded draw",
        )
    pids = dict.fromkeys(pid for pid, _ in groups)
    drawn, problems = draw_permuted(groups, permutations, pids=pids, camids=cameras, trial=trial, shots=protocol.shots)
    if problems:
        raise ProtocolError(
            f"protocol {protocol.name}: {len(problems)} problem(s), the first: {problems[0]}",
            hint="images that were set aside cannot be drawn: prepare the whole release, or take the seeded draw",
        )
    return drawn


def draw_gallery(
    pids: LabelsLike,
    camids: LabelsLike,
    paths: Sequence[str] | NDArray[np.str_],
    *,
    shots: int,
    seed: int,
    trial: int,
) -> Rows:
    """Rows of one trial's gallery: ``shots`` per (identity, camera), or all if there are fewer.

    Rows are sorted by (identity, camera, path), numbers by value and strings by code point. Row i of that order
    gets the i-th 64-bit output of PCG64, seeded with SeedSequence((seed, trial)), and each group draws its rows
    with the smallest outputs. The draw is therefore independent of the input order and of the NumPy version, as
    NumPy keeps these raw streams stable. The result is in sorted order.

    Raises :class:`ProtocolError` when two rows have the same path, ``shots`` < 1 or ``seed`` < 0.
    """
    check_at_least(1, shots=shots)
    check_at_least(0, seed=seed, trial=trial)
    names = np.asarray([str(path) for path in paths], dtype=str)
    persons, cameras = as_labels(pids, "pids", len(names)), as_labels(camids, "camids", len(names))
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise ProtocolError(
            f"path {unique[counts.argmax()]!r} names {counts.max()} images; the draw needs one path an image",
            hint="pass paths relative to the root of the data set, and every image once",
        )
    identities, person = np.unique(persons, return_inverse=True)
    known, camera = np.unique(cameras, return_inverse=True)
    group = person * len(known) + camera
    order = np.lexsort((names, group))
    keys = np.random.PCG64(np.random.SeedSequence((seed, trial))).random_raw(len(names))
    drawn = np.lexsort((keys, group[order]))
    sizes = np.bincount(group, minlength=len(identities) * len(known))
    place_in_group = np.arange(len(names)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return order[np.sort(drawn[place_in_group < shots])]
