from __future__ import annotations

import json

import pytest

from icre.data.splits import split_by_hash, split_from_file
from icre.errors import DataError

PIDS = [f"{n:05d}" for n in range(20_000)]


def from_file(pids: list[str], listed: object) -> dict[str, str]:
    return dict(split_from_file(pids, json.dumps(listed), where="split.json"))


# By hash


def test_identities_that_arrive_later_move_nobody() -> None:
    before = split_by_hash(PIDS[5000:6000], val=0.1, test=0.4, seed=0)
    after = split_by_hash(reversed(PIDS), val=0.1, test=0.4, seed=0)
    assert len(before) == 1000
    assert all(after[pid] == split for pid, split in before.items())


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.5), (0.3, 0.1), (0.0, 0.2), (0.2, 0.0)])
def test_shares_are_the_expected_ones(val: float, test: float) -> None:
    split_of = split_by_hash(PIDS, val=val, test=test, seed=3)
    assert split_of.keys() == set(PIDS)
    for name, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        found = sum(split == name for split in split_of.values()) / len(PIDS)
        assert abs(found - share) <= 4 * (share * (1 - share) / len(PIDS)) ** 0.5


def test_another_seed_splits_otherwise() -> None:
    one, other = (split_by_hash(PIDS, val=0.0, test=0.5, seed=seed) for seed in (0, 1))
    same = sum(one[pid] == other[pid] for pid in PIDS) / len(PIDS)
    assert 0.48 < same < 0.52


def test_more_validation_takes_nobody_from_test() -> None:
    few, many = (split_by_hash(PIDS, val=val, test=0.3, seed=0) for val in (0.1, 0.3))
    assert {p for p in PIDS if few[p] == "test"} == {p for p in PIDS if many[p] == "test"}
    assert {p for p in PIDS if few[p] == "val"} < {p for p in PIDS if many[p] == "val"}


# From a file


def test_names_and_numbers() -> None:
    listed = {"train": [7, "anna", 12], "val": ["0008"], "test": [0, "b c"]}
    assert from_file(["0007", "anna", "12", "0008", "000", "b c"], listed) == {
        "0007": "train",
        "anna": "train",
        "12": "train",
        "0008": "val",
        "000": "test",
        "b c": "test",
    }


def test_a_quoted_number_is_a_name() -> None:
    assert from_file(["7"], {"train": ["7"], "test": []}) == {"7": "train"}
    with pytest.raises(DataError, match="0007"):
        from_file(["0007"], {"train": ["7"], "test": []})


def test_listed_identities_without_images_are_no_error() -> None:
    assert from_file(["1"], {"train": [1, 2, 3], "test": ["x"]}) == {"1": "train"}


def test_unlisted_identities_are_named() -> None:
    with pytest.raises(DataError, match=r"2 .*0003, -1"):
        from_file(["0001", "0003", "-1"], {"train": [1], "test": []})


@pytest.mark.parametrize(
    ("pid", "listed"),
    [
        ("0007", {"train": [7], "test": [7]}),
        ("a", {"train": ["a"], "val": ["a"], "test": []}),
        ("0007", {"train": [7, 7], "test": []}),
        ("0007", {"train": [7], "test": ["0007"]}),
        ("0007", {"train": ["0007"], "test": [7]}),
    ],
)
def test_an_identity_is_listed_once(pid: str, listed: object) -> None:
    with pytest.raises(DataError, match="listed"):
        from_file([pid], listed)


@pytest.mark.parametrize(
    "listed",
    [
        [],
        3,
        None,
        {},
        {"train": []},
        {"train": [], "test": [], "query": []},
        {"train": [True], "test": []},
        {"train": [1.0], "test": []},
        {"train": [None], "test": []},
        {"train": [[1]], "test": []},
        {"train": "abc", "test": []},
        {"train": {"a": 1}, "test": []},
        {"train": None, "test": []},
        {"train": 5, "test": []},
    ],
)
def test_other_forms_are_refused(listed: object) -> None:
    with pytest.raises(DataError, match=r"split\.json"):
        from_file([], listed)


@pytest.mark.parametrize("text", ["", "{", "train: [1]", '{"train": [1],}'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"split\.json"):
        split_from_file(["1"], text, where="split.json")
