from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from icre.errors import DataError, StorageError
from pipelines import prepare as verb
from pipelines.data import ingest
from pipelines.data.caches import EncodedCache
from pipelines.data.prepared import PreparedData
from pipelines.storage import Storage

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(120)]


@pytest.fixture
def images(synthetic_images: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(synthetic_images, tmp_path / "images of mine"))


def source_files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.glob("*/*/*.jpg")}


def all_rows(data: PreparedData) -> list[dict[str, Any]]:
    return [row for path in data.shard_paths for row in pq.ParquetFile(path).read().to_pylist()]


def test_every_image_is_stored_once_with_its_labels_and_its_original_bytes(recipes: Any, images: Path) -> None:
    data, written = ingest.prepare(recipes(f"data.root={images}"))
    files, split = source_files(images), json.loads((images / "split.json").read_text())
    rows = all_rows(data)
    assert written
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == files
    for row in rows:
        modality, identity, name = row["image"]["path"].split("/")
        assert (row["modality"], row["identity"], row["camera"]) == (modality, identity, name.split("_")[0])
        assert row["identity"] in split[row["split"]]
        assert row["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
        assert row["source"] == "synthetic"
    assert [r["identity"] for r in rows] == sorted(r["identity"] for r in rows)
    assert len(data.manifest["shards"]) > 1
    assert data.classes == sorted(split["train"])
    assert data.manifest["synthetic"] is True


def test_both_readers_of_single_images_return_the_stored_bytes(recipes: Any, images: Path) -> None:
    data, _ = ingest.prepare(recipes(f"data.root={images}"))
    stored = [row["image"]["bytes"] for row in all_rows(data)]
    cache = EncodedCache(data)
    assert [bytes(cache[row]) for row in range(len(stored))] == stored
    assert [data.image(row) for row in (0, 57, len(stored) - 1)] == [stored[0], stored[57], stored[-1]]
    with pytest.raises(IndexError):
        data.image(len(stored))


def test_preparing_again_does_nothing_and_a_new_folder_gives_the_same_bytes(recipes: Any, images: Path) -> None:
    first, _ = ingest.prepare(recipes(f"data.root={images}"))
    before = {path: Path(path).stat().st_mtime_ns for path in first.shard_paths}
    again, written = ingest.prepare(recipes(f"data.root={images}"))
    assert not written
    assert {path: Path(path).stat().st_mtime_ns for path in again.shard_paths} == before
    other, _ = ingest.prepare(recipes(f"data.root={images}", "data.name=other"))
    assert other.manifest["shards"] == first.manifest["shards"]
    assert other.hash == first.hash


def shard_bytes(data: PreparedData) -> dict[str, bytes]:
    return {shard["file"]: (data.location / shard["file"]).read_bytes() for shard in data.manifest["shards"]}


def test_a_removed_image_rewrites_its_own_shard_alone_and_leaves_no_shard_behind(recipes: Any, images: Path) -> None:
    first, _ = ingest.prepare(recipes(f"data.root={images}"))
    before = shard_bytes(first)
    victim = sorted(source_files(images))[0]
    (holder,) = [file for file, content in before.items() if victim.encode() in content]
    (images / victim).unlink()
    second, written = ingest.prepare(recipes(f"data.root={images}"))
    assert written and second.hash != first.hash
    assert {row["image"]["path"] for row in all_rows(second)} == set(source_files(images))
    after = shard_bytes(second)
    assert {file: after.get(file) for file in before if file != holder} == {
        file: content for file, content in before.items() if file != holder
    }
    assert holder not in after
    assert {f"shards/{name}" for name in (second.location / "shards").list()} == set(after)


def test_new_identities_and_images_become_new_shards(recipes: Any, images: Path, tmp_path: Path) -> None:
    late, split = tmp_path / "late", json.loads((images / "split.json").read_text())
    newcomer, richer = split["test"][0], split["train"][0]
    moved = [*(images / "visible" / newcomer).iterdir(), *(images / "infrared" / newcomer).iterdir()]
    moved.append(sorted((images / "visible" / richer).iterdir())[0])
    for path in moved:
        target = late / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    first, _ = ingest.prepare(recipes(f"data.root={images}"))
    before = shard_bytes(first)
    shutil.copytree(late, images, dirs_exist_ok=True)
    second, written = ingest.prepare(recipes(f"data.root={images}"))
    after = shard_bytes(second)
    assert written and before.items() <= after.items()
    added = [row for file in after.keys() - before.keys() for row in rows_of(second, file)]
    assert {row["image"]["path"] for row in added} == {path.relative_to(images).as_posix() for path in moved}
    assert {row["image"]["path"]: row["image"]["bytes"] for row in all_rows(second)} == source_files(images)
    whole, _ = ingest.prepare(recipes(f"data.root={images}", "data.name=whole"))
    assert second.manifest["counts"] == whole.manifest["counts"] and second.classes == whole.classes


def rows_of(data: PreparedData, file: str) -> list[dict[str, Any]]:
    return pq.ParquetFile((data.location / file).arrow()[1]).read().to_pylist()


def test_a_new_split_or_size_rewrites_what_it_changes(recipes: Any, images: Path) -> None:
    first, _ = ingest.prepare(recipes(f"data.root={images}"))
    before = shard_bytes(first)
    split = json.loads((images / "split.json").read_text())
    split["test"].append(split["train"].pop())
    (images / "split.json").write_text(json.dumps(split))
    second, _ = ingest.prepare(recipes(f"data.root={images}"))
    assert {row["identity"] for row in all_rows(second) if row["split"] == "test"} == set(split["test"])
    after = shard_bytes(second)
    assert before.items() & after.items() and len(all_rows(second)) == len(source_files(images))
    smaller, _ = ingest.prepare(recipes(f"data.root={images}", "data.height=32", "data.width=32"))
    assert not shard_bytes(smaller).keys() & after.keys()
    assert len(all_rows(smaller)) == len(source_files(images))


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(recipes: Any, images: Path, tmp_path: Path) -> None:
    # One identity a shard, so that there are many shards to be interrupted between.
    options = (f"data.root={images}", "data.shard_mib=0.0001")
    whole, _ = ingest.prepare(recipes(*options, "data.name=whole"))
    recipe = recipes(*options, "data.name=broken")
    file = tmp_path / "broken.yaml"
    file.write_text(recipe.to_yaml())
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    location = Path(whole.location.url).with_name("broken")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.prepare", "--config", str(file)],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while len(list(location.glob("shards/*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (location / "manifest.json").exists()
    with pytest.raises(DataError, match="no prepared data set"):
        PreparedData.open(Storage(location))
    done = {path: path.stat().st_mtime_ns for path in location.glob("shards/*.parquet")}
    receipts = [path for path in done if path.with_suffix(".json").exists()]
    mended, _ = ingest.prepare(recipe)
    assert shard_bytes(mended) == shard_bytes(whole) and mended.hash == whole.hash
    assert len(receipts) >= 3 and all(path.stat().st_mtime_ns == done[path] for path in receipts)
    assert sorted(p.name for p in location.glob("shards/*")) == sorted(Path(f).name for f in shard_bytes(whole))


def test_other_sizes_and_modes_become_rgb_of_the_wanted_size(recipes: Any, images: Path) -> None:
    identity = json.loads((images / "split.json").read_text())["train"][0]
    folder = images / "visible" / identity
    Image.new("RGB", (90, 120), (255, 0, 0)).save(folder / "1_big.png")
    Image.new("RGBA", (32, 64), (0, 255, 0, 255)).save(folder / "1_alpha.png")
    Image.new("CMYK", (32, 64), (0, 0, 0, 255)).save(folder / "1_cmyk.jpg")
    data, _ = ingest.prepare(recipes(f"data.root={images}"))
    stored = {row["image"]["path"]: row["image"]["bytes"] for row in all_rows(data)}
    for name, colour in (("1_big.png", (255, 0, 0)), ("1_alpha.png", (0, 255, 0)), ("1_cmyk.jpg", (0, 0, 0))):
        with Image.open(io.BytesIO(stored[f"visible/{identity}/{name}"])) as image:
            assert (image.size, image.mode) == ((32, 64), "RGB")
            assert np.abs(np.asarray(image).astype(int) - colour).max() <= 4


def test_unreadable_images_are_set_aside_with_their_reason(recipes: Any, images: Path) -> None:
    files = sorted(source_files(images))
    (images / files[0]).write_bytes(b"")
    (images / files[1]).write_bytes((images / files[1]).read_bytes()[:200])
    (images / files[2]).write_text("not an image")
    data, _ = ingest.prepare(recipes(f"data.root={images}", "data.max_unreadable_share=0.05"))
    assert set(data.manifest["set_aside"]) == set(files[:3])
    assert all(data.manifest["set_aside"].values())
    assert {row["image"]["path"] for row in all_rows(data)} == set(files[3:])
    counts = data.manifest["counts"]
    assert sum(counts[split][m] for split in counts for m in ("visible", "infrared")) == len(files) - 3


def test_one_shard_has_the_rows_of_many(recipes: Any, images: Path) -> None:
    # The images of a large shard are decoded by several threads.
    files = sorted(source_files(images))
    (images / files[3]).write_text("not an image")
    options = (f"data.root={images}", "data.max_unreadable_share=0.05", "data.height=96")
    many, _ = ingest.prepare(recipes(*options, "data.name=many"))
    one, _ = ingest.prepare(recipes(*options, "data.name=one", "data.shard_mib=1000"))
    assert len(many.manifest["shards"]) > len(one.manifest["shards"]) == 1
    assert all_rows(one) == all_rows(many) and len(all_rows(one)) == len(files) - 1
    assert one.manifest["set_aside"] == many.manifest["set_aside"]


def test_what_was_written_before_a_failure_is_not_written_again(recipes: Any, images: Path) -> None:
    options = (f"data.root={images}", "data.shard_mib=0.0001")
    whole, _ = ingest.prepare(recipes(*options, "data.name=whole"))
    location = Path(whole.location.url).with_name("broken")
    obstacle = location / whole.manifest["shards"][-1]["file"]
    obstacle.mkdir(parents=True)
    recipe = recipes(*options, "data.name=broken")
    with pytest.raises(StorageError, match=obstacle.name):
        ingest.prepare(recipe)
    receipts = list(location.glob("shards/*.json"))
    done = {path: path.stat().st_mtime_ns for path in (receipt.with_suffix(".parquet") for receipt in receipts)}
    assert done and not (location / "manifest.json").exists()
    obstacle.rmdir()
    data, _ = ingest.prepare(recipe)
    assert shard_bytes(data) == shard_bytes(whole)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def test_original_sizes_are_kept_and_what_is_unusual_is_converted_or_set_aside(recipes: Any, images: Path) -> None:
    identity = json.loads((images / "split.json").read_text())["train"][0]
    folder, before = images / "visible" / identity, source_files(images)
    colour = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(colour).resize((90, 150), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    whole = encoded(picture, "JPEG")
    kept = {"big.jpg": whole, "big.png": encoded(picture, "PNG"), "gray.png": encoded(picture.convert("L"), "PNG")}
    converted = {
        "alpha.png": encoded(picture.convert("RGBA"), "PNG"),
        "palette.png": encoded(picture.quantize(64), "PNG"),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG", quality=95),
        "turned.jpg": encoded(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=turned),
    }
    unusable = {
        "deep.png": encoded(Image.fromarray(np.full((150, 90), 3000, np.uint16)), "PNG"),
        "tiny.png": encoded(picture.resize((9, 15)), "PNG"),
        "empty.jpg": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "damaged.png": kept["big.png"][:400] + bytes(200) + kept["big.png"][600:],
        "text.jpg": b"no picture" * 50,
    }
    for name, content in (kept | converted | unusable).items():
        (folder / f"1_{name}").write_bytes(content)
    recipe = recipes(f"data.root={images}", "data.store=original", "data.max_unreadable_share=0.1")
    data, _ = ingest.prepare(recipe)
    stored = {row["image"]["path"]: row["image"]["bytes"] for row in all_rows(data)}
    mine = {path.rsplit("/1_")[1]: stored[path] for path in stored.keys() - before.keys()}
    assert {path: stored[path] for path in before} == before
    assert {name: mine[name] for name in kept} == kept
    assert mine.keys() == kept.keys() | converted.keys()
    for name in converted:
        with Image.open(io.BytesIO(mine[name])) as image:
            assert (image.size, image.mode, image.getexif().get(ExifTags.Base.Orientation, 1)) == ((90, 150), "RGB", 1)
            assert np.abs(np.asarray(image).astype(int) - np.asarray(picture)).mean() < 16
    reasons = data.manifest["set_aside"]
    assert {path.rsplit("/1_")[1] for path in reasons} == unusable.keys() and all(reasons.values())
    resized, _ = ingest.prepare(recipes(f"data.root={images}", "data.max_unreadable_share=0.1", "data.name=resized"))
    assert resized.manifest["set_aside"].keys() == reasons.keys()


def test_the_stored_form_is_part_of_what_a_data_set_is(recipes: Any, images: Path) -> None:
    def prepared(*overrides: str) -> tuple[PreparedData, bool]:
        return ingest.prepare(recipes(f"data.root={images}", *overrides))

    resized, _ = prepared()
    original, written = prepared("data.store=original")
    assert written and original.hash != resized.hash
    assert [resized.manifest[key] for key in ("store", "height", "width")] == ["resized", 64, 32]
    assert original.manifest["store"] == "original"
    # One original data set serves every training size.
    _, written = prepared("data.store=original", "data.height=96", "data.width=48")
    assert not written
    again, written = prepared()
    assert written and again.hash == resized.hash and again.manifest["shards"] == resized.manifest["shards"]


def test_too_many_unreadable_images_stop_and_keep_what_was_there(recipes: Any, images: Path) -> None:
    recipe = recipes(f"data.root={images}")
    first, _ = ingest.prepare(recipe)
    for name in sorted(source_files(images))[:10]:
        (images / name).write_text("not an image")
    with pytest.raises(DataError, match="10 of 160"):
        ingest.prepare(recipe)
    kept = PreparedData.open(first.location)
    assert kept.manifest == first.manifest
    assert len((kept.location / "shards").list()) == len(kept.manifest["shards"])
    with pytest.raises(DataError):
        ingest.prepare(recipes(f"data.root={images}", "data.name=fresh"))
    fresh = first.location.url.removesuffix("people") + "fresh"
    assert [p for p in Path(fresh).rglob("*") if p.is_file()] == []


def test_the_same_picture_under_two_identities_is_refused(recipes: Any, images: Path) -> None:
    files = sorted(source_files(images))
    other = next(name for name in files if name.split("/")[1] != files[0].split("/")[1])
    (images / other).write_bytes((images / files[0]).read_bytes())
    with pytest.raises(DataError) as caught:
        ingest.prepare(recipes(f"data.root={images}"))
    assert files[0] in caught.value.message and other in caught.value.message


def test_a_copy_within_an_identity_is_set_aside_and_names_its_original(recipes: Any, images: Path) -> None:
    original = sorted(source_files(images))[0]
    folder, name = original.rsplit("/", 1)
    copy = f"{folder}/{name.split('_')[0]}_zzz.jpg"
    shutil.copy(images / original, images / copy)
    data, _ = ingest.prepare(recipes(f"data.root={images}"))
    assert data.manifest["set_aside"] == {copy: f"the same file as {original}"}
    assert {row["image"]["path"] for row in all_rows(data)} == source_files(images).keys() - {copy}


def test_an_identity_that_lacks_a_modality_is_stored_but_not_trained_on(recipes: Any, images: Path) -> None:
    identity = json.loads((images / "split.json").read_text())["train"][1]
    shutil.rmtree(images / "infrared" / identity)
    data, _ = ingest.prepare(recipes(f"data.root={images}"))
    assert set(data.manifest["not_trained"]) == {identity}
    assert identity not in data.classes
    assert identity in {row["identity"] for row in all_rows(data)}
    assert data.training_index().classes == len(data.classes)


def _empty(root: Path) -> None:
    shutil.rmtree(root / "visible")
    shutil.rmtree(root / "infrared")


def _no_infrared(root: Path) -> None:
    shutil.rmtree(root / "infrared")


def _hidden_only(root: Path) -> None:
    _empty(root)
    (root / "visible" / "1").mkdir(parents=True)
    (root / "visible" / "1" / ".1_a.jpg").write_bytes(b"x")
    (root / "visible" / "1" / "Thumbs.db").write_bytes(b"x")


def _bad_split(root: Path) -> None:
    (root / "split.json").write_text('{"train": [], "test": []}')


def _disjoint(root: Path) -> None:
    for path in sorted((root / "infrared").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    names = [p.name for p in (root / "infrared").iterdir()] + [p.name for p in (root / "visible").iterdir()]
    (root / "split.json").write_text(json.dumps({"train": names[1:], "test": names[:1]}))


@pytest.mark.parametrize("damage", [_empty, _no_infrared, _hidden_only, _bad_split, _disjoint, shutil.rmtree])
def test_a_folder_that_cannot_make_a_data_set_is_refused_and_nothing_is_written(
    recipes: Any, images: Path, damage: Any
) -> None:
    damage(images)
    recipe = recipes(f"data.root={images}")
    with pytest.raises(DataError) as caught:
        ingest.prepare(recipe)
    assert str(images) in caught.value.message and caught.value.hint
    assert [p for p in Path(recipe.storage).rglob("*") if p.is_file()] == []


def test_an_unwritable_place_is_named_before_any_work(recipes: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        ingest.prepare(recipes(f"storage={tmp_path / 'file'}"))
    with pytest.raises(StorageError, match="no-such-bucket"):
        ingest.prepare(recipes("storage=s3://no-such-bucket/x"))


def test_a_missing_or_changed_shard_is_named(recipes: Any) -> None:
    data, _ = ingest.prepare(recipes())
    shard = data.location / data.manifest["shards"][0]["file"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match="bytes"):
        PreparedData.open(data.location)
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    cache_file(data).unlink(missing_ok=True)
    with pytest.raises(DataError, match="SHA-256"):
        EncodedCache(PreparedData.open(data.location))
    mended, written = ingest.prepare(recipes())
    assert written and mended.manifest["shards"] == data.manifest["shards"] and shard.read_bytes() == content
    shard.delete()
    with pytest.raises(DataError, match="missing"):
        PreparedData.open(data.location)
    _, written = ingest.prepare(recipes())
    assert written
    with pytest.raises(DataError, match="icre prepare") as caught:
        PreparedData.open(Storage(data.location.url + "-other"))
    assert caught.value.exit_code == 2


def cache_file(data: PreparedData) -> Path:
    return Path(os.environ["ICRE_CACHE"]) / f"{data.hash}.arrow"


def test_hugging_face_datasets_reads_the_shards_as_images(recipes: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    data, _ = ingest.prepare(recipes())
    table = datasets.load_dataset(
        "parquet", data_files=data.shard_paths, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == data.labels.num_rows
    assert table[3]["image"].size == (32, 64)
    assert table[3]["identity"] == data.labels["identity"][3].as_py()


def test_a_benchmark_layout_is_prepared_with_its_own_splits_and_named_differences(
    recipes: Any, images: Path, tmp_path: Path, capsys: Any
) -> None:
    root = tmp_path / "SYSU"
    pictures = iter(sorted(source_files(images)))
    for pid in range(1, 7):
        for cam in (1, 2, 3, 6):
            target = root / f"cam{cam}/{pid:04d}/0001.jpg"
            target.parent.mkdir(parents=True)
            shutil.copy(images / next(pictures), target)
    (root / "exp").mkdir()
    for name, ids in {"train": "1,2,3", "val": "4", "test": "5,6"}.items():
        (root / f"exp/{name}_id.txt").write_text(ids)
    options = ("data.source=sysu", f"data.root={root}", "data.split={val: 0}")
    with pytest.raises(DataError, match="395 published"):
        verb.command(None, [f"storage={tmp_path / 'strict'}", *options], strict=True)
    assert not (tmp_path / "strict").exists()

    data, _ = ingest.prepare(recipes(*options))
    assert {(row["split"], row["identity"]) for row in all_rows(data)} == {
        *(("train", f"{pid:04d}") for pid in (1, 2, 3, 4)),
        *(("test", f"{pid:04d}") for pid in (5, 6)),
    }
    assert {(row["modality"], row["camera"]) for row in all_rows(data)} == {
        ("visible", "1"),
        ("visible", "2"),
        ("infrared", "3"),
        ("infrared", "6"),
    }
    assert data.manifest["source"] == "sysu" and {row["source"] for row in all_rows(data)} == {"sysu"}
    assert any("training identities: 4 found, 395 published" in line for line in data.manifest["differences"])
    assert data.classes == ["0001", "0002", "0003", "0004"]
