from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from scipy.io import savemat

from icre.data.records import Record
from icre.data.sources import sysu
from icre.data.sources.permutations import read_permutations
from icre.data.sources.sysu import Mode
from icre.errors import ProtocolError
from icre.evaluation.gallery_sampling import trials
from icre.evaluation.protocols import FIXED
from tests.icre.data.image_trees import add_junk, assert_stops, at_awkward_roots, touch

TRAIN, VAL, TEST = [11, 2], [5], [17, 6, 108, 21, 10, 25]
CAMERAS = {"all": [1, 2, 4, 5], "indoor": [1, 2]}
ABSENT = {21: [1, 2, 3], 25: [1, 2, 4, 5], 10: [2, 6], 2: [3, 6], 11: [4]}
COUNTS = {
    (pid, cam): (7 * pid + 5 * cam) % 14 + 1
    for pid in TRAIN + VAL + TEST
    for cam in range(1, 7)
    if cam not in ABSENT.get(pid, [])
}
PERMUTATIONS = {
    (pid, cam): np.stack([np.random.RandomState(10 * pid + cam + t).permutation(n) + 1 for t in range(10)])
    for (pid, cam), n in COUNTS.items()
}


def cell(items: list[Any]) -> Any:
    column = np.empty((len(items), 1), dtype=object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column


def save_permutations(root: Path, permutations: dict[tuple[int, int], Any]) -> None:
    """As in the release: 6 x 1, in each an identity a row, empty where it is not in the camera."""
    empty = np.empty((0, 0))
    cameras = [cell([permutations.get((pid, cam), empty) for pid in range(1, 121)]) for cam in range(1, 7)]
    savemat(root / "exp/rand_perm_cam.mat", {"rand_perm_cam": cell(cameras)}, do_compression=True)


def build(root: Path) -> None:
    touch(
        root, (f"cam{cam}/{pid:04d}/{n:04d}.jpg" for (pid, cam), count in COUNTS.items() for n in range(1, count + 1))
    )
    touch(root, ["cam1/0400/0001.jpg", "exp/available_id.txt"])
    for name, ids in {"train": TRAIN, "val": VAL, "test": TEST}.items():
        (root / f"exp/{name}_id.txt").write_text(",".join(map(str, ids)) + "\n")
    save_permutations(root, PERMUTATIONS)
    add_junk(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that no test changes."""
    root = tmp_path_factory.mktemp("sysu")
    build(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build(tmp_path)
    return tmp_path


def record(pid: int, cam: int, n: int) -> Record:
    modality = "infrared" if cam in (3, 6) else "visible"
    return Record(f"{pid:04d}", modality, str(cam), f"cam{cam}/{pid:04d}/{n:04d}.jpg")  # type: ignore[arg-type]


def every(pids: list[int], cams: list[int]) -> list[Record]:
    keys = [(pid, cam) for pid in pids for cam in cams if (pid, cam) in COUNTS]
    return sorted(record(pid, cam, n + 1) for pid, cam in keys for n in range(COUNTS[pid, cam]))


def drawn(mode: str, draw: Callable[[int, int, int], list[int]]) -> list[Record]:
    """``draw`` is asked for image numbers over sorted identities, then cameras in order."""
    keys = [(pid, cam) for pid in sorted(TEST) for cam in CAMERAS[mode] if (pid, cam) in COUNTS]
    return sorted(record(pid, cam, n) for pid, cam in keys for n in draw(pid, cam, COUNTS[pid, cam]))


def test_train_and_query(whole: Path) -> None:
    assert sysu.train(whole) == every(TRAIN + VAL, [1, 2, 3, 4, 5, 6])
    assert sysu.query(whole, "all") == sysu.query(whole, "indoor") == every(TEST, [3, 6])
    assert sysu.test(whole) == every(TEST, [1, 2, 3, 4, 5, 6])


def test_a_folder_without_images_is_as_good_as_none(root: Path) -> None:
    absent = [(pid, cam) for pid in TEST for cam in (1, 2) if (pid, cam) not in COUNTS]
    before = sysu.gallery(root, "all", 3)
    for pid, cam in absent:
        (root / f"cam{cam}/{pid:04d}").mkdir(parents=True)
    assert absent and sysu.gallery(root, "all", 3) == before


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("trial", range(10))
def test_seeded_gallery(whole: Path, mode: Mode, trial: int) -> None:
    before = random.getstate()
    random.seed(trial)
    single = drawn(mode, lambda pid, cam, count: [random.choice([n + 1 for n in range(count)])])
    random.setstate(before)
    assert sysu.gallery(whole, mode, trial) == single
    global_state = np.random.get_state()
    np.random.seed(trial)
    numbers = [np.arange(1, count + 1) for count in range(15)]
    multi = drawn(mode, lambda pid, cam, n: list(np.random.choice(numbers[n], 10 if n > 10 else n, replace=False)))
    np.random.set_state(global_state)
    assert sysu.gallery(whole, mode, trial, shots=10) == multi


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("trial", range(10))
@pytest.mark.parametrize("shots", [1, 10])
def test_official_gallery(whole: Path, mode: Mode, trial: int, shots: int) -> None:
    expected = drawn(mode, lambda pid, cam, n: list(PERMUTATIONS[pid, cam][trial, :shots]))
    assert sysu.gallery(whole, mode, trial, shots=shots, draw="official") == expected


@pytest.mark.parametrize("name", [name for name in FIXED if name.startswith("sysu")])
def test_the_protocols_draw_the_same_from_any_rows(whole: Path, name: str) -> None:
    mode: Mode = "indoor" if "indoor" in name else "all"
    shots = 10 if "multi" in name else 1
    draw: sysu.Draw = "official" if "official" in name else "seeded"
    records = sysu.test(whole)
    np.random.default_rng(0).shuffle(records)  # type: ignore[arg-type]
    permutations = read_permutations(whole / sysu.PERMUTATIONS)
    ((direction, sides),) = FIXED[name].directions.items()
    assert direction == "infrared_to_visible"
    found = trials(records, FIXED[name], sides, permutations=permutations)
    assert len(found) == 10
    for trial, (q_rows, g_rows) in enumerate(found):
        assert {records[row] for row in q_rows} == set(sysu.query(whole, mode)) and len(q_rows) == len(set(q_rows))
        expected = sysu.gallery(whole, mode, trial, shots=shots, draw=draw)
        assert [records[row] for row in g_rows] == expected


def test_what_the_protocols_cannot_draw(whole: Path) -> None:
    official = FIXED["sysu-all-single-official"]
    (sides,) = official.directions.values()
    with pytest.raises(ProtocolError, match="permutations"):
        trials(sysu.test(whole), official, sides)
    permutations = read_permutations(whole / sysu.PERMUTATIONS)
    first = sysu.gallery(whole, "all", 0, draw="official")[0]
    set_aside = [record for record in sysu.test(whole) if record != first]
    with pytest.raises(ProtocolError, match=first.path):
        trials(set_aside, official, sides, permutations=permutations)
    elsewhere = [Record(r.pid, r.modality, f"door {r.camid}", r.path) for r in sysu.test(whole)]
    with pytest.raises(ProtocolError, match="door 1"):
        trials(elsewhere, FIXED["sysu-all-single"], sides)


def test_drawing_leaves_the_callers_generators_alone(whole: Path) -> None:
    before, global_before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    sysu.gallery(whole, "all", 1)
    sysu.gallery(whole, "all", 1, shots=3)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == global_before  # type: ignore[index]


def test_the_roots_own_name_changes_nothing(tmp_path: Path) -> None:
    for root in at_awkward_roots(tmp_path, build):
        assert sysu.train(root) == every(TRAIN + VAL, [1, 2, 3, 4, 5, 6])
        assert sysu.query(root, "all") == every(TEST, [3, 6])
        for draw in get_args(sysu.Draw):
            assert sysu.gallery(root, "all", 4, draw=draw) == sysu.gallery(tmp_path / "plain", "all", 4, draw=draw)


def test_counts_are_compared_with_the_published_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(sysu.validate(root)) == 9  # All but the identities in both parts, of which there are none.
    single = {mode: len(drawn(mode, lambda *_: [1])) for mode in CAMERAS}
    multi = {mode: len(drawn(mode, lambda pid, cam, n: list(range(min(n, 10))))) for mode in CAMERAS}
    images = [len(every(TRAIN + VAL, [1, 2, 4, 5])), len(every(TRAIN + VAL, [3, 6]))]
    counts = [
        3,
        *images,
        6,
        0,
        len(every(TEST, [3, 6])),
        single["all"],
        single["indoor"],
        multi["all"],
        multi["indoor"],
    ]
    monkeypatch.setattr(sysu, "PUBLISHED", dict(zip(sysu.PUBLISHED, counts, strict=True)))
    assert sysu.validate(root) == []
    (root / "cam6/0005/0001.jpg").unlink()
    (warning,) = sysu.validate(root)
    assert "infrared" in warning and f"{images[1]}" in warning and f"{images[1] - 1}" in warning
    (root / "exp/val_id.txt").write_text("5,6")
    assert any("both" in warning and "1 found" in warning for warning in sysu.validate(root))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("6,x,10,-3,6,1.5,", ["5 problem(s)", "line 1", "'x'", "'-3'", "identity 6", "'1.5'", "''"]),
        ("\n6\n7,8\n", ["line 3", "'7,8'"]),
        ("0", ["line 1", "'0'"]),
        ("9" * 5000, ["line 1"]),
        (" \n\n", []),
        ("6,7,8,9,12,13,14,15", ["7 problem(s)", "identity 7 ", "0007", "2 more"]),
    ],
)
def test_a_wrong_list(root: Path, text: str, parts: list[str]) -> None:
    (root / "exp/test_id.txt").write_text(text)
    assert_stops(lambda: sysu.query(root, "all"), str(root / "exp/test_id.txt"), *parts)


@pytest.mark.parametrize("text", ["17, 6 ,108,21,10,25", "\ufeff\n0017,06,108,21,10,25\r\n\r\n"])
def test_a_list_as_editors_leave_it(root: Path, text: str) -> None:
    (root / "exp/test_id.txt").write_text(text)
    assert sysu.query(root, "all") == every(TEST, [3, 6])


def test_what_is_missing_is_named(root: Path) -> None:
    (root / "exp/val_id.txt").write_text("5,2,11")
    assert_stops(lambda: sysu.train(root), "exp/val_id.txt", "exp/train_id.txt", "0002", "0011")
    (root / "exp/val_id.txt").unlink()
    assert_stops(lambda: sysu.train(root), str(root / "exp/val_id.txt"))
    (root / "exp/val_id.txt").write_bytes(b"\xff\xfe5")
    assert_stops(lambda: sysu.train(root), str(root / "exp/val_id.txt"))
    assert_stops(lambda: sysu.train(root / "nowhere"), str(root / "nowhere"))


def test_permutations_that_do_not_fit_the_images(root: Path) -> None:
    def official() -> list[Record]:
        return sysu.gallery(root, "indoor", 0, draw="official")

    number = PERMUTATIONS[17, 2][0, 0]
    (root / f"cam2/0017/{number:04d}.jpg").unlink()
    save_permutations(root, {key: rows for key, rows in PERMUTATIONS.items() if key != (6, 1)})
    parts = ["rand_perm_cam.mat", "2 problem(s)", f"cam2/0017/{number:04d}.jpg", "identity 6", "camera 1"]
    assert_stops(official, *parts)
    for wrong in (PERMUTATIONS[6, 1][:9], PERMUTATIONS[6, 1] - 1, PERMUTATIONS[6, 1] + 0.5, "text"):
        save_permutations(root, PERMUTATIONS | {(6, 1): wrong})
        assert_stops(official, "1 problem(s)", "camera 1", "identity 6")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a part of the header": lambda data: data[:50],
    "cut": lambda data: data[:-10],
    "no compressed data": lambda data: data[:136] + b"\xff" * 99,
    "MATLAB 7.3": lambda data: data[:124] + b"\x00\x02IM" + data[128:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_permutation_file(root: Path, damage: str) -> None:
    path = root / "exp/rand_perm_cam.mat"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert_stops(lambda: sysu.gallery(root, "all", 0, draw="official"), str(path))


def test_without_permutations_only_the_official_draw_stops(root: Path) -> None:
    path = root / "exp/rand_perm_cam.mat"
    savemat(path, {"other": 1})
    assert_stops(lambda: sysu.gallery(root, "all", 0, draw="official"), str(path), "rand_perm_cam")
    path.unlink()
    assert_stops(lambda: sysu.gallery(root, "all", 0, draw="official"), str(path))
    assert sysu.gallery(root, "all", 0)


@pytest.mark.parametrize(
    ("mode", "trial", "options"),
    [("outdoor", 0, {}), ("all", 10, {}), ("all", -1, {}), ("all", 0, {"shots": 0}), ("all", 0, {"draw": "random"})],
)
def test_arguments_outside_the_protocol(whole: Path, mode: Any, trial: int, options: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        sysu.gallery(whole, mode, trial, **options)
