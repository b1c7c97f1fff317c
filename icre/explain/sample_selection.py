"""Evenly spaced, non-cherry-picked examples for figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from icre.data.records import MODALITIES, Record

Item = TypeVar("Item")


def spread_rows(records: Sequence[Record], *, identities: int, per_modality: int) -> list[int]:
    """Rows of evenly spaced identities seen in both modalities, with evenly spaced images of each.

    Up to ``identities`` identities in the order of their names, each with up to ``per_modality`` visible rows and then
    as many infrared ones. With ``per_modality=1`` rows come in pairs, visible and infrared.
    """
    rows: dict[str, dict[str, list[int]]] = {}
    for row, record in enumerate(records):
        rows.setdefault(record.pid, {}).setdefault(record.modality, []).append(row)
    both = sorted(pid for pid, found in rows.items() if len(found) == len(MODALITIES))
    return [
        row
        for pid in _evenly(both, identities)
        for modality in MODALITIES
        for row in _evenly(rows[pid][modality], per_modality)
    ]


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` evenly spaced items from the first to the last, in order."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places]
