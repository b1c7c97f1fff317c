"""``icre data inspect``: its counts against the Parquet files, its reasons, its contact sheet, its refusals."""

from __future__ import annotations

import io
import json
import shutil
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cli import app
from pipelines.data import ingest
from pipelines.data.prepared import PreparedData
from pipelines.inspect_data import draw_sheet, group_reasons
from pipelines.runtime.command import run_app

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(120)]


@pytest.fixture
def images(synthetic_images: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(synthetic_images, tmp_path / "images"))


def inspect(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``icre data inspect``, in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["icre", "data", "inspect", *arguments])
        run_app(app)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def stored_rows(data: PreparedData) -> list[dict[str, Any]]:
    files = sorted(Path(data.location.url).glob("shards/*.parquet"))
    return [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells below the head of every table."""
    blocks = [block.splitlines()[2:] for block in markdown.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]


def uneven(images: Path) -> None:
    """Give the identities different numbers of images, one no infrared ones, and store some as gray PNG."""
    split = json.loads((images / "split.json").read_text())
    for place, identity in enumerate(split["train"] + split["test"]):
        files = sorted((images / "visible" / identity).iterdir())
        for path in files[: 0 if place % 3 else 2]:
            path.unlink()
        if place % 4 == 0:
            with Image.open(files[-1]) as image:
                image.convert("L").save(files[-1].with_suffix(".png"))
            files[-1].unlink()
    shutil.rmtree(images / "infrared" / split["train"][1])


def test_counts_are_those_of_the_parquet_files(recipes: Any, images: Path, capsys: Any) -> None:
    uneven(images)
    data, _ = ingest.prepare(recipes(f"data.root={images}"))
    code, out, _ = inspect(capsys, f"storage={Path(data.location.url).parents[1]}")
    rows = stored_rows(data)
    properties, counts, spread, not_trained = tables(out)
    assert code == 0
    for split, *shown in counts:
        mine = [row for row in rows if row["split"] == split]
        cameras = [
            ", ".join(sorted({row["camera"] for row in mine if row["modality"] == m})) for m in ("visible", "infrared")
        ]
        numbers = [len({row["identity"] for row in mine})]
        numbers += [sum(row["modality"] == m for row in mine) for m in ("visible", "infrared")]
        assert shown == [*map(str, numbers), *cameras]
    per_identity: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        per_identity[row["split"], row["modality"]][row["identity"]] += 1
    assert len(spread) == len(per_identity) == 6
    for split, modality, *numbers in spread:
        sizes = list(per_identity[split, modality].values())
        assert [float(n) for n in numbers] == [len(sizes), min(sizes), statistics.median(sizes), max(sizes)]
    values = dict(properties)
    kinds = Counter(Image.open(io.BytesIO(row["image"]["bytes"])).format for row in rows)
    assert kinds["PNG"] > 1
    assert f"{kinds['JPEG']} JPEG" in values["stored images"] and f"{kinds['PNG']} PNG gray" in values["stored images"]
    assert values["stored images"].count("64x32") == 2
    assert values["hash"] == data.hash
    files = list(Path(data.location.url).glob("shards/*.parquet"))
    assert values["shards"].startswith(f"{len(files)} with {len(rows)} rows")
    assert f"{sum(path.stat().st_size for path in files) / 2**20:.1f} MiB" in values["shards"]
    one_sided = json.loads((images / "split.json").read_text())["train"][1]
    assert [(number, names) for number, _, names in not_trained] == [("1", one_sided)]


def test_files_set_aside_are_grouped_by_reason(recipes: Any, images: Path, capsys: Any) -> None:
    files = sorted(path.relative_to(images).as_posix() for path in images.glob("*/*/*.jpg"))
    for place, name in enumerate(files[:5]):
        (images / name).write_bytes(b"no picture" * (place + 1))
    for place, name in enumerate(files[5:7]):
        Image.new("RGB", (8 + place, 40)).save(images / name)
    data, _ = ingest.prepare(recipes(f"data.root={images}", "data.max_unreadable_share=0.05"))
    code, out, _ = inspect(capsys, f"storage={Path(data.location.url).parents[1]}")
    reasons = tables(out)[-1]
    assert code == 0
    assert [row[0] for row in reasons] == ["5", "2"]
    assert reasons[0][2] == f"{files[0]}, {files[1]}, {files[2]}, …"
    assert reasons[1][1].startswith("NxN pixels") and reasons[1][2] == f"{files[5]}, {files[6]}"


def test_reasons_that_differ_by_numbers_or_paths_are_one_and_others_are_not() -> None:
    reasons = {"d": "3 bytes at 0x7f", "a": "2 bytes at 0x1e", "c": "mode I;16", "b": "empty", "e": "empty"}
    reasons |= {"f": "is infrared/a/1_b.jpg", "g": "is visible/c/2.png", "h": "is visible/c/2.png"}
    assert group_reasons(reasons) == [
        ("is …", ["f", "g", "h"]),
        ("N bytes at N", ["a", "d"]),
        ("empty", ["b", "e"]),
        ("mode I;16", ["c"]),
    ]
    assert group_reasons({}) == []


def packed(pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint32, a colour each."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    return red << 16 | green << 8 | blue


def find(sheet: np.ndarray, image: np.ndarray, colours: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """Places where ``image`` is, pixel for pixel; both are packed. colours, counts: np.unique of the sheet."""
    height, width = image.shape
    # The pixel whose colour is rarest in the sheet narrows the search, the whole decides.
    places = np.searchsorted(colours, image).clip(max=len(colours) - 1)
    rarity = np.where(colours[places] == image, counts[places], 0)
    if not rarity.all():
        return []
    y, x = np.unravel_index(rarity.argmin(), rarity.shape)
    tops, lefts = (found - own for found, own in zip(np.nonzero(sheet == image[y, x]), (y, x), strict=True))
    return [
        (top, left)
        for top, left in zip(tops, lefts, strict=True)
        if np.array_equal(sheet[top : top + height, left : left + width], image)
    ]


def test_the_contact_sheet_shows_stored_images_of_both_modalities(
    recipes: Any, images: Path, capsys: Any, tmp_path: Path
) -> None:
    uneven(images)
    for path in list(images.glob("infrared/*/3_0000.jpg")):
        for extra in range(1, 9):
            path.with_name(f"3_extra{extra}.jpg").write_bytes(path.read_bytes() + bytes(extra))
    data, _ = ingest.prepare(recipes(f"data.root={images}"))
    storage, out = f"storage={Path(data.location.url).parents[1]}", tmp_path / "new folder" / "sheet.png"
    code, _, _ = inspect(capsys, storage, "--out", str(out))
    with Image.open(out) as picture:
        assert (code, picture.format) == (0, "PNG")
        sheet = packed(np.asarray(picture.convert("RGB")))
    shown: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    lefts: dict[str, list[int]] = defaultdict(list)
    colours = np.unique(sheet, return_counts=True)
    for row in stored_rows(data):
        stored = packed(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")))
        # 32 pixels wide, they are drawn three times as large.
        for _, x in find(sheet, stored.repeat(3, axis=0).repeat(3, axis=1), *colours):
            shown[row["identity"]][row["modality"]].append(row)
            lefts[row["modality"]].append(x)
    assert len(shown) == 8
    assert max(lefts["visible"]) < min(lefts["infrared"])
    for of in shown.values():
        assert of["visible"] and of["infrared"]
    # Ten images of one infrared camera and two of the other: both cameras are shown.
    assert all({row["camera"] for row in of["infrared"]} == {"3", "6"} for of in shown.values())
    assert draw_sheet(data, recipes()) == out.read_bytes()
    assert draw_sheet(data, recipes("seed=1")) != out.read_bytes()


def test_images_of_their_original_sizes_are_told_and_drawn(
    recipes: Any, images: Path, capsys: Any, tmp_path: Path
) -> None:
    files = sorted(images.glob("*/*/*.jpg"))
    for path, size in zip(files, ((90, 150), (40, 50)), strict=False):
        with Image.open(path) as image:
            image.resize(size).save(path)
    data, _ = ingest.prepare(recipes(f"data.root={images}", "data.store=original"))
    storage, out = f"storage={Path(data.location.url).parents[1]}", tmp_path / "sheet.png"
    code, markdown, _ = inspect(capsys, storage, "--out", str(out))
    stored = dict(row for row in tables(markdown)[0])["stored images"]
    assert code == 0 and stored == f"{len(files)} JPEG colour of 50x40 to 150x90"


@pytest.fixture
def prepared(recipes: Any) -> PreparedData:
    return ingest.prepare(recipes())[0]


def test_a_shard_that_is_missing_or_changed_is_named(prepared: PreparedData, capsys: Any, tmp_path: Path) -> None:
    shard = Path(prepared.shard_paths[-1])
    whole, sheet = shard.read_bytes(), tmp_path / "sheet.png"
    changed = whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]
    for content in (None, whole[:-1], changed):
        if content is None:
            shard.unlink()
        else:
            shard.write_bytes(content)
        code, out, err = inspect(capsys, f"storage={tmp_path / 'storage'}", "--out", str(sheet))
        assert code == 2 and out == "" and not sheet.exists()
        assert shard.name in err and "hint:" in err and "Traceback" not in err


def test_it_works_in_object_storage(recipes: Any, object_store: Any, capsys: Any, tmp_path: Path) -> None:
    storage = f"storage=s3://{object_store.bucket}/inspected"
    data, _ = ingest.prepare(recipes(storage))
    code, out, _ = inspect(capsys, storage, "--out", str(tmp_path / "sheet.png"))
    assert code == 0 and data.hash in out
    (data.location / data.manifest["shards"][0]["file"]).delete()
    code, out, err = inspect(capsys, storage)
    assert code == 2 and out == "" and "is missing" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data.name=absent"], "absent"),
        (["data.nmae=people"], "did you mean 'name'"),
        (["--out", "sheet.jpg"], "sheet.jpg"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_mistakes_are_named(arguments: list[str], named: str, capsys: Any, tmp_path: Path) -> None:
    code, out, err = inspect(capsys, f"storage={tmp_path}", *arguments)
    assert code == 2 and out == ""
    assert named in err and "Traceback" not in err
