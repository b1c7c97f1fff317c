"""The batch plan: rows of each batch, as a pure function of (seed, epoch).

The plan is independent of the number of workers. A worker takes every W-th identity of each global batch, so 1, 2 or
64 workers train on the same batches, and training can restart at any step from the step number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icre.errors import DataError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TrainingIndex:
    """Rows of the training split, grouped by label and modality.

    rows[m] lists the rows of modality m (0 visible, 1 infrared) sorted by label; the rows of label y are
    ``rows[m][starts[m][y]:starts[m][y + 1]]``.
    """

    rows: tuple[Rows, Rows]
    starts: tuple[Rows, Rows]

    @classmethod
    def build(cls, rows: ArrayLike, labels: ArrayLike, infrared: ArrayLike) -> TrainingIndex:
        """rows, labels, infrared: parallel, any order. Each label 0..C-1 needs at least one row per modality."""
        row, label, ir = np.asarray(rows, np.int64), np.asarray(labels, np.int64), np.asarray(infrared, bool)
        classes = int(label.max()) + 1 if len(label) else 0
        groups, starts = [], []
        for mask in (~ir, ir):
            order = np.lexsort((row[mask], label[mask]))
            groups.append(row[mask][order])
            counts = np.bincount(label[mask], minlength=classes)
            if classes and counts.min() == 0:
                raise ValueError(f"label {int(counts.argmin())} lacks a modality")
            starts.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        return cls(rows=(groups[0], groups[1]), starts=(starts[0], starts[1]))

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.starts[0]) - 1

    def steps(self, *, visible: int, infrared: int, identities: int) -> int:
        """Steps per epoch by the usual definition: images of the larger modality / its share of a batch."""
        sizes = len(self.rows[0]) // (identities * visible), len(self.rows[1]) // (identities * infrared)
        return max(1, *sizes)


def plan_epoch(
    index: TrainingIndex, *, identities: int, visible: int, infrared: int, steps: int, seed: int, epoch: int
) -> Rows:
    """Rows of every batch of one epoch: (steps, P, K_V + K_I) int64, the K_V visible rows first.

    A batch has distinct identities, and over the epoch identities are drawn equally often (to within one). Within an
    identity and modality no image repeats before all were drawn once. Raises DataError when there are fewer
    identities than a batch needs.
    """
    if index.classes < identities:
        raise DataError(
            f"batch.identities={identities}, but only {index.classes} training identities have both modalities",
            hint="lower batch.identities, or prepare more identities",
        )
    rng = np.random.default_rng([seed, epoch])
    labels = _draw_labels(rng, classes=index.classes, per_batch=identities, steps=steps)
    columns = [
        _draw_rows(rng, labels.ravel(), rows=index.rows[m], starts=index.starts[m], per_draw=k)
        for m, k in ((0, visible), (1, infrared))
    ]
    return np.concatenate(columns, axis=1).reshape(steps, identities, visible + infrared)


def cut(plan: Rows, *, rank: int, world_size: int) -> Rows:
    """One worker's part of the batches ``plan`` (steps, P, K): (steps, P / world_size, K).

    If P is not a multiple of world_size, the first workers get one more identity.
    """
    return plan[:, rank::world_size]


def cut_sizes(identities: int, world_size: int) -> list[int]:
    """Number of identities per batch of each worker; they differ by at most one."""
    return [len(range(rank, identities, world_size)) for rank in range(world_size)]


def slots(steps: Sequence[int] | Rows, *, identities: int, images: int, rank: int, world_size: int) -> Rows:
    """Number of each sample within its epoch, for seeding augmentation: (len(steps), P / world_size, K).

    steps: step numbers within the epoch; images: K_V + K_I.
    """
    grid = np.arange(identities * images, dtype=np.int64).reshape(identities, images)[rank::world_size]
    return np.asarray(steps, np.int64)[:, None, None] * (identities * images) + grid


def _draw_labels(rng: np.random.Generator, *, classes: int, per_batch: int, steps: int) -> Rows:
    """(steps, P) labels: consecutive random permutations of all labels, cut into batches."""
    drawn: list[Rows] = []
    total = 0
    while total < steps * per_batch:
        order = rng.permutation(classes).astype(np.int64)
        open_slots = -total % per_batch
        if open_slots:
            # The open batch holds the end of the previous permutation: fill it with labels that it does not contain,
            # so no identity repeats in a batch.
            tail = np.concatenate(drawn)[total - (per_batch - open_slots) :]
            first = order[~np.isin(order, tail)][:open_slots]
            order = np.concatenate([first, order[~np.isin(order, first)]])
        drawn.append(order)
        total += classes
    return np.concatenate(drawn)[: steps * per_batch].reshape(steps, per_batch)


def _draw_rows(rng: np.random.Generator, labels: Rows, *, rows: Rows, starts: Rows, per_draw: int) -> Rows:
    """(draws, per_draw) rows: for each drawn label the next images of its endlessly reshuffled deck."""
    sizes = np.diff(starts)
    draws = np.bincount(labels, minlength=len(sizes))
    decks = -(-draws * per_draw // sizes)  # number of reshuffles per label, rounded up
    dealt = decks * sizes
    label_of = np.repeat(np.arange(len(sizes)), dealt)
    offset = np.arange(dealt.sum()) - np.repeat(np.cumsum(dealt) - dealt, dealt)
    deck_of = offset // sizes[label_of]
    card = starts[label_of] + offset % sizes[label_of]
    # Sorting random keys within (label, deck) shuffles all decks independently at once.
    shuffled = rows[card][np.lexsort((rng.random(len(card)), deck_of, label_of))]
    nth = _occurrence(labels)
    first = (np.cumsum(dealt) - dealt)[labels] + nth * per_draw
    drawn: Rows = shuffled[first[:, None] + np.arange(per_draw)]
    return drawn


def _occurrence(labels: Rows) -> Rows:
    """For each draw, the number of previous draws of the same label."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    nth = np.empty(len(labels), np.int64)
    nth[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return nth
