"""The plan against its rules, written down once more as plain loops over lists."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icre.data.plan import Rows, TrainingIndex, cut, plan_epoch, slots
from icre.errors import DataError


@dataclass(frozen=True)
class People:
    """A training split as parallel lists, and a batch shape that suits it."""

    rows: list[int]
    labels: list[int]
    infrared: list[bool]
    identities: int
    visible: int
    infrared_images: int
    steps: int

    def index(self) -> TrainingIndex:
        return TrainingIndex.build(self.rows, self.labels, self.infrared)

    def plan(self, seed: int = 0, epoch: int = 0) -> Rows:
        return plan_epoch(
            self.index(),
            identities=self.identities,
            visible=self.visible,
            infrared=self.infrared_images,
            steps=self.steps,
            seed=seed,
            epoch=epoch,
        )


def people(sizes: list[tuple[int, int]], *, p: int, kv: int, ki: int, steps: int, shuffle: int = 0) -> People:
    """Identity y has ``sizes[y]`` visible and infrared images, whose row numbers are all over the data set."""
    flat = [(y, m) for y, counts in enumerate(sizes) for m in (0, 1) for _ in range(counts[m])]
    numbers = random.Random(shuffle).sample(range(10 * len(flat)), len(flat))
    return People(numbers, [y for y, _ in flat], [m == 1 for _, m in flat], p, kv, ki, steps)


@st.composite
def any_people(draw: st.DrawFn) -> People:
    sizes = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=12))
    return people(
        sizes,
        p=draw(st.integers(1, len(sizes))),
        kv=draw(st.integers(1, 5)),
        ki=draw(st.integers(1, 5)),
        steps=draw(st.integers(1, 15)),
        shuffle=draw(st.integers(0, 5)),
    )


@settings(deadline=None)
@given(any_people(), st.integers(0, 2**31 - 1), st.integers(0, 200))
def test_every_rule_of_the_plan(data: People, seed: int, epoch: int) -> None:
    plan = data.plan(seed, epoch)
    width = data.visible + data.infrared_images
    assert plan.shape == (data.steps, data.identities, width)
    label_of = dict(zip(data.rows, data.labels, strict=True))
    infrared_of = dict(zip(data.rows, data.infrared, strict=True))
    draws: Counter[int] = Counter()
    dealt: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for batch in plan.tolist():
        drawn = [label_of[images[0]] for images in batch]
        assert len(set(drawn)) == data.identities
        draws.update(drawn)
        for label, images in zip(drawn, batch, strict=True):
            for column, row in enumerate(images):
                assert label_of[row] == label
                assert infrared_of[row] == (column >= data.visible)
                dealt[label, infrared_of[row]].append(row)
    counts = [draws[label] for label in set(data.labels)]
    assert max(counts) - min(counts) <= 1
    for (label, infrared), sequence in dealt.items():
        own = {r for r in data.rows if label_of[r] == label and infrared_of[r] == infrared}
        decks = [sequence[i : i + len(own)] for i in range(0, len(sequence), len(own))]
        assert all(set(deck) == own for deck in decks[:-1])
        assert len(set(decks[-1])) == len(decks[-1])


@settings(deadline=None)
@given(any_people(), st.randoms(use_true_random=False))
def test_the_order_in_which_rows_arrive_does_not_matter(data: People, shuffler: random.Random) -> None:
    order = list(range(len(data.rows)))
    shuffler.shuffle(order)
    again = People(
        [data.rows[i] for i in order],
        [data.labels[i] for i in order],
        [data.infrared[i] for i in order],
        *(data.identities, data.visible, data.infrared_images, data.steps),
    )
    assert np.array_equal(data.plan(), again.plan())


def test_a_plan_follows_from_seed_and_epoch_alone() -> None:
    data = people([(5, 5)] * 10, p=4, kv=2, ki=2, steps=6)
    np.random.seed(1)
    plans = {(seed, epoch): data.plan(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    np.random.seed(2)
    assert all(np.array_equal(data.plan(*key), plan) for key, plan in plans.items())
    assert len({plan.tobytes() for plan in plans.values()}) == len(plans)


def test_every_identity_and_image_meets_every_place() -> None:
    data = people([(3, 3)] * 5, p=2, kv=1, ki=1, steps=5)
    first = Counter(data.plan(epoch=epoch)[0, 0, 0] for epoch in range(1500))
    # 15 visible images, each expected 100 times; 4 standard deviations are 39.
    assert len(first) == 15
    assert all(60 < count < 140 for count in first.values())


def test_more_identities_in_a_batch_than_there_are() -> None:
    with pytest.raises(DataError, match="4"):
        people([(2, 2)] * 3, p=4, kv=1, ki=1, steps=1).plan()
    with pytest.raises(DataError):
        People([], [], [], 1, 1, 1, 1).plan()


def test_an_identity_without_one_modality_has_no_place_in_the_index() -> None:
    for lacking in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="1"):
            people([(2, 2), lacking, (2, 2)], p=2, kv=1, ki=1, steps=1).index()


def test_an_epoch_of_sysu_has_695_steps() -> None:
    sizes = [(22258 // 395 + (y < 22258 % 395), 11909 // 395 + (y < 11909 % 395)) for y in range(395)]
    index = people(sizes, p=8, kv=4, ki=4, steps=1).index()
    assert (len(index.rows[0]), len(index.rows[1]), index.classes) == (22258, 11909, 395)
    assert index.steps(identities=8, visible=4, infrared=4) == 695
    # The larger modality counts, measured by its own share of a batch.
    assert index.steps(identities=8, visible=8, infrared=2) == 11909 // 16
    assert index.steps(identities=395, visible=1000, infrared=1000) == 1


# Cut over workers


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_share_each_batch_without_rest(world_size: int) -> None:
    data = people([(4, 4)] * 11, p=8, kv=2, ki=3, steps=7)
    plan = data.plan()
    parts = [cut(plan, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {part.shape for part in parts} == {(7, 8 // world_size, 5)}
    for step in range(data.steps):
        images = sorted(tuple(row) for part in parts for row in part[step].tolist())
        assert images == sorted(tuple(row) for row in plan[step].tolist())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_slots_number_the_samples_of_an_epoch_and_stay_with_them(world_size: int) -> None:
    steps, p, k = 5, 8, 3
    shape = {"identities": p, "images": k}
    whole = slots(range(steps), **shape, rank=0, world_size=1)
    assert whole.reshape(-1).tolist() == list(range(steps * p * k))
    for rank in range(world_size):
        part = slots(np.arange(steps), **shape, rank=rank, world_size=world_size)
        assert np.array_equal(part, cut(whole, rank=rank, world_size=world_size))
        assert np.array_equal(slots([3], **shape, rank=rank, world_size=world_size), part[3:4])
