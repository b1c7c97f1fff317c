"""Whom to show: people and images that nobody picked for how well they look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from icre.data.records import MODALITIES, Record

Item = TypeVar("Item")


def spread_rows(records: Sequence[Record], *, identities: int, per_modality: int) -> list[int]:
    """Rows of ``records``: people spread evenly over those seen in both modalities, images evenly over theirs.

    For each of at most ``identities`` people, in the order of their names, at most ``per_modality`` visible rows, then
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
    """At most ``count`` items from the first to the last, in their order."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places]
