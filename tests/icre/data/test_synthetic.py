"""Synthetic people: the folder's promises; identity survives in shape and pattern but not in tone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from icre.data.synthetic import MODALITIES, Modality, SyntheticSpec, generate, render_image
from icre.errors import ConfigError, DataError

SMALL = SyntheticSpec(identities=7, images_per_modality=3, height=48, width=24, difficulty=0.6, seed=5)
EASY = SyntheticSpec(identities=24, images_per_modality=4, difficulty=0.0, seed=1)

Floats = NDArray[np.float64]
Feature = Callable[[NDArray[np.uint8]], Floats]


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "set"
    generate(root, SMALL)
    return root


# The folder.


def test_same_spec_gives_the_same_bytes_whatever_the_workers(written: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    generate(tmp_path / "again", SMALL, workers=2, advance=calls.append)
    assert tree(tmp_path / "again") == tree(written)
    assert calls == [6] * 7
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_layout_deals_each_modality_to_its_own_cameras(written: Path) -> None:
    for modality, cameras in (("visible", (1, 2, 4)), ("infrared", (3, 6, 3))):
        people = sorted(p.name for p in (written / modality).iterdir())
        assert people == [f"{n:04d}" for n in range(1, 8)]
        for person in people:
            names = {p.name for p in (written / modality / person).iterdir()}
            assert names == {f"{camera}_{index:04d}.jpg" for index, camera in enumerate(cameras)}


def test_files_are_the_rendered_images(written: Path) -> None:
    for modality, name, camera, index in (("visible", "4_0002", 4, 2), ("infrared", "6_0001", 6, 1)):
        with Image.open(written / modality / "0003" / f"{name}.jpg") as image:
            stored = np.asarray(image)
        drawn = render_image(SMALL, 3, modality, camera, index)  # type: ignore[arg-type]
        assert stored.shape == drawn.shape == (48, 24, 3)
        near = np.abs(stored.mean(2) - drawn.mean(2)).mean()
        other = np.abs(stored.mean(2) - render_image(SMALL, 4, modality, camera, index).mean(2)).mean()  # type: ignore[arg-type]
        assert near < 0.5 * other
        if modality == "infrared":
            assert np.ptp(stored, axis=2).max() == 0 and np.ptp(drawn, axis=2).max() == 0


@pytest.mark.parametrize("identities", [3, 7, 50, 333])
def test_split_is_disjoint_and_complete(identities: int) -> None:
    spec = replace(SMALL, identities=identities)
    split = spec.split()
    every = [name for part in ("train", "val", "test") for name in split[part]]
    assert sorted(every) == [f"{n:04d}" for n in range(1, identities + 1)]
    assert len(split["test"]) == round(0.3 * identities) and len(split["val"]) == round(0.1 * identities)
    assert spec.split() == split


def test_split_file_and_page(written: Path) -> None:
    assert json.loads((written / "split.json").read_text()) == SMALL.split()
    page = (written / "SYNTHETIC.md").read_text()
    assert "synthetic" in page.lower() and "| seed | 5 |" in page


def test_second_call_touches_nothing(written: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    generate(written, SMALL, advance=lambda images: pytest.fail("wrote again"))
    assert {p: p.stat().st_mtime_ns for p in written.rglob("*")} == before


def test_foreign_folders_are_refused_and_kept(written: Path, tmp_path: Path) -> None:
    before = tree(written)
    with pytest.raises(DataError) as other_spec:
        generate(written, replace(SMALL, seed=6))
    assert other_spec.value.hint and str(written) in other_spec.value.message
    assert tree(written) == before
    (tmp_path / "notes.txt").write_text("mine")
    for root in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DataError):
            generate(root, SMALL)
    assert tree(tmp_path) == {"notes.txt": b"mine"}


def test_nothing_is_left_of_an_interrupted_run(tmp_path: Path) -> None:
    def stop(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", SMALL, advance=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()  # an empty folder is as good as none
    generate(tmp_path / "set", replace(SMALL, identities=3, images_per_modality=1))
    assert len(list((tmp_path / "set").rglob("*.jpg"))) == 6


def test_all_broken_rules_are_named_at_once() -> None:
    good: dict[str, Any] = {"identities": 5, "images_per_modality": 2}
    bad: dict[str, Any] = {
        "identities": 2, "images_per_modality": 0, "height": 64.5, "width": True, "difficulty": float("nan"),
        "seed": -1, "visible_cameras": 0, "infrared_cameras": "two", "val_share": 0.2,
    }  # fmt: skip
    with pytest.raises(ConfigError) as error:
        SyntheticSpec(**bad)
    assert all(name in error.value.message for name in bad)
    for name, value in bad.items():
        with pytest.raises(ConfigError) as error:
            SyntheticSpec(**{**good, name: value})
        assert name in error.value.message
    with pytest.raises(ConfigError):
        generate(Path("never"), SMALL, workers=0)


def test_camera_numbers_never_collide() -> None:
    spec = replace(SMALL, visible_cameras=7, infrared_cameras=4)
    assert SMALL.cameras("visible") == (1, 2, 4, 5) and SMALL.cameras("infrared") == (3, 6)
    assert not set(spec.cameras("visible")) & set(spec.cameras("infrared"))


# The images.


def test_rendering_is_pure_and_every_coordinate_matters() -> None:
    first = render_image(SMALL, 2, "visible", 1, 0)
    render_image(SMALL, 3, "infrared", 3, 1)
    assert np.array_equal(first, render_image(SMALL, 2, "visible", 1, 0))
    others = [
        render_image(replace(SMALL, seed=6), 2, "visible", 1, 0),
        render_image(SMALL, 4, "visible", 1, 0),
        render_image(SMALL, 2, "visible", 2, 0),
        render_image(SMALL, 2, "visible", 1, 1),
    ]
    assert all(np.abs(first.astype(int) - other).mean() > 3 for other in others)


@pytest.mark.parametrize(("height", "width"), [(32, 16), (33, 17), (64, 64), (288, 144)])
def test_any_size_and_any_difficulty_renders(height: int, width: int) -> None:
    for difficulty in (0, 1):
        spec = replace(SMALL, height=height, width=width, difficulty=difficulty)
        for modality in MODALITIES:
            for camera in spec.cameras(modality):
                image = render_image(spec, 1, modality, camera, 0)
                assert image.shape == (height, width, 3) and image.dtype == np.uint8
                assert image.std() > 10


def grey(image: NDArray[np.uint8]) -> Floats:
    luma: Floats = image @ np.array([0.299, 0.587, 0.114])
    return luma


@cache
def greys(spec: SyntheticSpec, modality: Modality) -> Floats:
    """identities x images x H x W."""
    cameras = spec.cameras(modality)
    return np.array(
        [
            [grey(render_image(spec, i, modality, cameras[k % len(cameras)], k)) for k in range(2)]
            for i in range(1, spec.identities + 1)
        ]
    )


CROWD = SyntheticSpec(
    identities=180, images_per_modality=2, difficulty=0.0, seed=2, visible_cameras=1, infrared_cameras=1
)


def correlation(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("rows", [slice(40, 62), slice(72, 84)], ids=["upper", "lower"])
def test_garment_brightness_is_independent_across_modalities(rows: slice) -> None:
    middle = [greys(CROWD, m)[:, :, rows, 27:37].mean((1, 2, 3)) for m in MODALITIES]
    assert min(side.std() for side in middle) > 20  # garments do differ in brightness
    # Of independent samples, r has the standard deviation 1 / sqrt(n - 1); three of them.
    assert abs(correlation(*middle)) < 3 / np.sqrt(CROWD.identities - 1)


def test_stature_shows_in_both_modalities() -> None:
    def top_rows(modality: Modality) -> Floats:
        images = greys(CROWD, modality)
        empty = np.median(images, axis=(0, 1))[:, 24:40]  # one camera: most see its bare wall up there
        unlike = np.abs(images[..., 24:40] - empty).mean(3) > 12
        tops: Floats = unlike[:, :, :40].argmax(2).mean(1)
        return tops

    tops = [top_rows(m) for m in MODALITIES]
    assert min(t.std() for t in tops) > 2
    assert correlation(*tops) > 0.8


def edges(image: NDArray[np.uint8]) -> Floats:
    """Histograms of unsigned gradient directions in 8 x 8 cells: blind to the sign of a contrast."""
    down, right = np.gradient(grey(image))
    bins = (np.arctan2(down, right) % np.pi / np.pi * 9).astype(int).clip(0, 8)
    weight = np.hypot(down, right)[..., None] * np.eye(9)[bins]
    cells = weight.reshape(16, 8, 8, 8, 9).sum((1, 3))
    feature: Floats = np.sqrt(cells / (np.linalg.norm(cells, axis=-1, keepdims=True) + 20)).ravel()
    return feature


def colours(image: NDArray[np.uint8]) -> Floats:
    """Histograms of each channel in six bands."""
    bands = np.array_split(image[:, 12:-12], 6)
    counts = [np.histogram(band[..., c], 16, (0, 256))[0] for band in bands for c in range(3)]
    return np.concatenate(counts).astype(np.float64)


def rank1(spec: SyntheticSpec, feature: Feature) -> float:
    """Share of infrared images whose nearest visible one (cosine, centred) shows the same person."""
    sides = []
    for modality in MODALITIES:
        cams = spec.cameras(modality)
        where = [(i, cams[k % len(cams)], k) for i in range(1, spec.identities + 1) for k in range(4)]
        x = np.array([feature(render_image(spec, i, modality, camera, k)) for i, camera, k in where])
        x = x - x.mean(0)
        sides.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    people = np.repeat(np.arange(spec.identities), 4)
    return float((people[(sides[1] @ sides[0].T).argmax(1)] == people).mean())


def test_colour_does_not_match_across_modalities_but_edges_do() -> None:
    chance = 1 / EASY.identities
    assert rank1(EASY, colours) < chance + 0.1  # 96 queries, in groups of 4: 0.1 is 2.5 deviations
    assert rank1(EASY, edges) > 0.8


def test_edge_matching_falls_with_difficulty() -> None:
    found = [rank1(replace(EASY, difficulty=d), edges) for d in (0.0, 0.35, 0.7, 1.0)]
    assert found == sorted(found, reverse=True) and len(set(found)) == 4
    assert found[-1] < 0.3
