from __future__ import annotations

import random

import pytest

from icre.data.records import Record
from icre.data.sources.folder import parse

GOOD = [
    "visible/0001/1_000.jpg",
    "visible/0001/2_000.JPG",
    "visible/0002/1_a_b.jpeg",
    "infrared/0001/3_.png",
    "infrared/0002/cam 6_x.bmp",
    "infrared/Zoë Müller/入口_01.webp",
]


def test_records_of_a_folder() -> None:
    records, aside = parse(GOOD)
    assert aside == {}
    assert records == [
        Record("0001", "infrared", "3", "infrared/0001/3_.png"),
        Record("0001", "visible", "1", "visible/0001/1_000.jpg"),
        Record("0001", "visible", "2", "visible/0001/2_000.JPG"),
        Record("0002", "infrared", "cam 6", "infrared/0002/cam 6_x.bmp"),
        Record("0002", "visible", "1", "visible/0002/1_a_b.jpeg"),
        Record("Zoë Müller", "infrared", "入口", "infrared/Zoë Müller/入口_01.webp"),
    ]


def test_the_order_of_the_files_does_not_matter() -> None:
    shuffled = random.Random(0).sample(GOOD, len(GOOD))
    assert parse(shuffled) == parse(GOOD) == parse(iter(reversed(GOOD)))


@pytest.mark.parametrize(
    "path",
    [
        "visible/0001/.DS_Store",
        "visible/0001/._1_000.jpg",
        "visible/.0001/1_000.jpg",
        ".git/visible/1_000.jpg",
        "visible/0001/Thumbs.db",
        "visible/Thumbs.db",
        "split.json",
        "README.md",
        "synthetic.json",
        "other/0001/1_000.jpg",
        "Visible/0001/1_000.jpg",
        "1_000.jpg",
        "backup/visible/0001/1_000.jpg",
    ],
)
def test_what_is_not_part_of_the_layout_is_passed_over(path: str) -> None:
    assert parse([path]) == ([], {})


@pytest.mark.parametrize(
    "path",
    [
        "visible/1_000.jpg",
        "visible/0001/night/1_000.jpg",
        "visible/0001/1_000.gif",
        "visible/0001/1_000.jpg.part",
        "visible/0001/1_000jpg",
        "visible/0001/notes_1.txt",
        "infrared/0001/000.jpg",
        "infrared/0001/_000.jpg",
    ],
)
def test_what_does_not_follow_the_layout_is_set_aside_with_a_reason(path: str) -> None:
    records, aside = parse([*GOOD, path])
    assert records == parse(GOOD)[0]
    assert list(aside) == [path] and aside[path]


def test_names_with_the_words_of_the_layout_in_them() -> None:
    # Nothing is searched for: the place in the path alone decides.
    records, aside = parse(["visible/infrared/cam1_visible_cam2.jpg", "infrared/visible.jpg/2_.x.jpg"])
    assert aside == {}
    assert [(r.pid, r.modality, r.camid) for r in records] == [
        ("infrared", "visible", "cam1"),
        ("visible.jpg", "infrared", "2"),
    ]


def test_no_files() -> None:
    assert parse([]) == ([], {})
