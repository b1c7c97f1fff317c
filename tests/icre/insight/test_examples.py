from __future__ import annotations

from icre.data.records import Modality, Record
from icre.explain.sample_selection import spread_rows


def records(*counts: tuple[str, int, int]) -> list[Record]:
    """Images of each person, (name, visible, infrared), the last of everything first."""
    found: list[Record] = []
    for pid, visible, infrared in counts:
        modalities: list[tuple[Modality, int]] = [("visible", visible), ("infrared", infrared)]
        found += [Record(pid, modality, "1", f"{i:02d}") for modality, number in modalities for i in range(number)]
    return found[::-1]


def test_people_and_images_are_spread_and_modalities_take_turns() -> None:
    known = records(*((f"{n}", 5, 9) for n in range(7)))
    chosen = [known[row] for row in spread_rows(known, identities=3, per_modality=2)]
    assert [record.pid for record in chosen] == [pid for pid in "036" for _ in range(4)]
    assert [record.modality for record in chosen] == ["visible", "visible", "infrared", "infrared"] * 3
    assert [record.path for record in chosen[:4]] == ["04", "00", "08", "00"]


def test_people_of_one_modality_are_left_out() -> None:
    known = records(("a", 3, 0), ("b", 2, 1), ("c", 0, 3))
    assert {known[row].pid for row in spread_rows(known, identities=5, per_modality=5)} == {"b"}
    assert len(spread_rows(known, identities=5, per_modality=5)) == 3


def test_nobody_gives_no_rows() -> None:
    assert spread_rows([], identities=4, per_modality=1) == []
    assert spread_rows(records(("a", 2, 0)), identities=4, per_modality=1) == []
