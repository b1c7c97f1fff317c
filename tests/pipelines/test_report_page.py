"""The report, read back as a browser or a user would: parsed, not compared with stored text."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icre.figures import cmc_curves
from pipelines.reporting.camera_table import camera_table, camera_tables_markdown
from pipelines.reporting.figure_export import FigureCollector
from pipelines.reporting.metric_table import COLUMNS, metric_table_markdown
from pipelines.reporting.pictures import Picture
from pipelines.reporting.report_page import RunContent, render

DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")
HASH = "9f3c" * 16
VOID = {"meta", "img", "br", "hr", "link", "input"}


def scores(rank1: float) -> dict[str, float]:
    spread = {"rank1": 0.0, "rank5": 0.45, "rank10": 0.62, "rank20": 0.78, "mAP": 0.03, "mINP": -0.12}
    return {name: max(0.01, rank1 + share * (1 - rank1)) for name, share in spread.items()}


def direction(
    rank1: float,
    chance: float,
    *,
    rng: np.random.Generator,
    identity: str = "0007",
    queries: int = 2,
    answers: int = 4,
) -> dict[str, Any]:
    edges = np.linspace(0, 2, 65)
    intra = np.histogram(rng.normal(0.95 - 0.7 * rank1, 0.14, 3000), edges)[0]
    inter = np.histogram(rng.normal(1.0, 0.13, 60000), edges)[0]
    cmc = [1 - (1 - rank1) * 0.87**k for k in range(20)]
    hits = rng.random((queries, answers)) < rank1 * np.linspace(1, 0.4, answers)
    ranked = [
        {
            "query": {
                "row": 100 * q,
                "identity": identity,
                "camera": "2",
                "path": f"visible/{identity}/2_{q}.jpg",
            },
            "gallery": [
                {
                    "row": 100 * q + g + 1,
                    "identity": identity if hits[q, g] else f"{g:04d}",
                    "camera": "3",
                    "path": f"infrared/{g:04d}/3_{q}{g}.jpg",
                    "distance": 0.2 + 0.05 * g,
                    "match": bool(hits[q, g]),
                }
                for g in range(answers)
            ],
        }
        for q in range(queries)
    ]
    return {
        "mean": scores(rank1),
        "std": {name: 0.004 + 0.001 * i for i, name in enumerate(COLUMNS)},
        "chance": scores(chance),
        "trials": [{"cmc": cmc, "mAP": 0.4, "mINP": 0.2, "queries": 288, "skipped": 3} for _ in range(10)],
        "queries": 288,
        "skipped": 3,
        "distances": {
            "edges": edges.tolist(),
            "intra": intra.tolist(),
            "inter": inter.tolist(),
            "intra_mean": 0.95 - 0.7 * rank1,
            "inter_mean": 1.0,
        },
        "camera_pairs": [
            {"query": q, "gallery": g, "queries": 144, "rank1": rank1, "mAP": 0.4} for q in "36" for g in ("1", "10")
        ],
        "ranked": ranked,
    }


def evaluation(
    name: str, step: int, rank1: float, *, queries: int = 2, answers: int = 4, **changes: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "run": "demo-20261122-101500",
        "checkpoint": {"name": name, "step": step, "sha256": None if name == "untrained" else "ab12" * 16},
        "synthetic": True,
        "data": {"name": "people", "hash": HASH, "split": "test", "images": 576, "identities": 29},
        "protocol": {
            "name": "folder",
            "trials": 10,
            "shots": 1,
            "camera_rule": "none",
            "cmc": "image",
            "seed": 0,
            "feature": "BNNeck, L2-normalised",
            "distance": "cosine",
            "flip": False,
            "rerank": False,
            "image_size": [128, 64],
        },
        "directions": {
            d: direction(rank1 - 0.03 * i, 0.042, rng=rng, queries=queries, answers=answers)
            for i, d in enumerate(DIRECTIONS)
        },
    } | changes


def manifest(**changes: Any) -> dict[str, Any]:
    cameras = {"visible": ["1", "2", "4", "5"], "infrared": ["3", "6"]}
    return {
        "run": "demo-20261122-101500",
        "created": "2026-11-22T10:15:00.123456+00:00",
        "code": {"version": "0.1.0", "commit": "0123456789abcdef0123456789abcdef01234567", "modified": True},
        "argv": ["icre", "train", "--config", "configs/demo.yaml", "train.epochs=20"],
        "python": "3.12.3",
        "packages": {"torch": "2.13.0", "ray": "2.60.0", "numpy": "2.4.0"},
        "hardware": {"machine": "x86_64", "cpus": 16, "gpus": []},
        "seed": 7,
        "data": {
            "name": "people",
            "hash": HASH,
            "synthetic": True,
            "counts": {
                "train": {"identities": 58, "visible": 464, "infrared": 464, "cameras": cameras},
                "val": {"identities": 9, "visible": 72, "infrared": 72, "cameras": cameras},
                "test": {"identities": 29, "visible": 288, "infrared": 288, "cameras": cameras},
            },
            "set_aside": {"visible/0003/1_0002.jpg": "truncated JPEG"},
            "not_trained": {"0041": "only visible images"},
        },
        "parents": ["storage/datasets/people"],
    } | changes


def metrics() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, 401):
        identity = 4.06 * np.exp(-step / 150) + 0.15 * rng.random()
        pull, push = (
            0.6 * np.exp(-step / 90) + 0.05 * rng.random(),
            0.4 * np.exp(-step / 60) + 0.03 * rng.random(),
        )
        rate = 3.5e-4 * min(1, step / 80) * (0.1 if step > 320 else 1)
        terms = {"loss": identity + pull + push, "id": identity, "icg_pull": pull, "icg_push": push}
        rows.append({"kind": "step", "step": step, "epoch": (step - 1) // 40, "lr": rate, **terms})
        rows[-1] |= {"images_per_s": 61.0 + rng.random(), "data_wait_s": 0.002}
        if step % 40 == 0:
            found = {
                "rank1": 0.7 - 0.6 * np.exp(-step / 120),
                "mAP": 0.6 - 0.5 * np.exp(-step / 140),
                "mINP": 0.3,
            }
            rows.append({"kind": "validation", "step": step, "epoch": step // 40 - 1, **found})
    return rows


def picture(row: int) -> bytes | None:
    colour = np.random.default_rng(row).integers(60, 200, 3).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.broadcast_to(colour, (64, 32, 3)).copy()).save(sink, "JPEG")
    return sink.getvalue()


def content(**changes: Any) -> RunContent:
    parts: dict[str, Any] = {
        "name": "demo-20261122-101500",
        "manifest": manifest(),
        "status": {"state": "finished", "updated": "2026-11-22T10:42:00.000000+00:00"},
        "recipe_yaml": "name: demo\nseed: 7\n",
        "metrics": metrics(),
        "evaluations": [
            evaluation("best", 360, 0.612),
            evaluation("last", 400, 0.598),
            evaluation("untrained", 0, 0.081),
        ],
    }
    return RunContent(**parts | changes)


def page(**changes: Any) -> str:
    options = {name: changes.pop(name) for name in ("image_of", "others", "pictures", "collector") if name in changes}
    return render(content(**changes), **{"image_of": picture} | options)


class Reader(HTMLParser):
    """Checks that tags are balanced; collects attributes, text and the rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "tr" in self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


def metric_rows(text: str) -> dict[str, list[list[str]]]:
    """Cells of the metric table by model, in the order of the directions."""
    found: dict[str, list[list[str]]] = {}
    for row in Reader(text).rows:
        if len(row) >= 7 and re.match(r"\d", row[-1]):
            found.setdefault(row[-7], []).append(row[-6:])
    return found


@pytest.fixture(scope="module")
def full() -> str:
    return page()


def test_every_number_of_the_table_is_the_evaluations(full: str) -> None:
    rows = metric_rows(full)
    for given in (evaluation("best", 360, 0.612), evaluation("last", 400, 0.598)):
        label = f"{given['checkpoint']['name']} (step {given['checkpoint']['step']})"
        for cells, where in zip(rows[label], DIRECTIONS, strict=True):
            for cell, key in zip(cells, COLUMNS, strict=True):
                mean, std = (float(part) for part in cell.split(" ± "))
                assert mean == pytest.approx(100 * given["directions"][where]["mean"][key], abs=0.0501)
                assert std == pytest.approx(100 * given["directions"][where]["std"][key], abs=0.0501)
    chance = evaluation("best", 360, 0.612)["directions"][DIRECTIONS[0]]["chance"]
    assert [float(cell) for cell in rows["chance"][0]] == pytest.approx(
        [100 * chance[key] for key in COLUMNS], abs=0.0501
    )


def test_rows_stand_in_order_of_training_for_each_direction(full: str) -> None:
    assert list(metric_rows(full)) == ["chance", "untrained", "last (step 400)", "best (step 360)"]
    assert all(len(rows) == 2 for rows in metric_rows(full).values())


def test_headline_compares_the_best_checkpoint_with_untrained_and_chance(full: str) -> None:
    text = " ".join(Reader(full).text.split())
    assert "visible to infrared: rank-1 61.2 % against 8.1 % untrained and 4.2 % by chance" in text
    assert "infrared to visible: rank-1 58.2 % against 5.1 % untrained" in text


def test_headline_does_not_call_a_worse_network_better() -> None:
    text = page(evaluations=[evaluation("best", 9, 0.08), evaluation("untrained", 0, 0.09)], metrics=[])
    assert "rank-1 8.0 %, no better than untrained (9.0 %)" in text


def test_nothing_is_fetched_from_a_network(full: str) -> None:
    for tag, attributes in Reader(full).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "data", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "a":
            assert (attributes["href"] or "").startswith("https://arxiv.org/")
    assert not re.search(r"url\(|@import", full)


def test_embedded_figures_are_images_without_references_outside(full: str) -> None:
    sources = [attributes["src"] or "" for tag, attributes in Reader(full).elements if tag == "img"]
    assert len(sources) == 6
    for source in sources:
        kind, _, content = source.partition(";base64,")
        decoded = base64.b64decode(content, validate=True)
        if kind == "data:image/svg+xml":
            assert not re.search(rb'href="(?!#|data:)', decoded)
        else:
            with Image.open(io.BytesIO(decoded)) as image:
                assert image.width > 1000


def test_hostile_names_are_text() -> None:
    evil = "<script>alert('$1$')</script>"
    found = evaluation("best", 3, 0.5)
    for where in DIRECTIONS:
        found["directions"][where] = direction(0.5, 0.1, rng=np.random.default_rng(1), identity=evil)
    data = manifest()["data"] | {"name": evil, "set_aside": {evil: evil}, "not_trained": {evil: evil}}
    text = page(
        name=evil,
        manifest=manifest(data=data, argv=["icre", evil]),
        recipe_yaml=evil,
        evaluations=[found],
        metrics=[],
        status={"state": "failed", "updated": "2026-11-22T10:42:00+00:00", "error": evil},
        image_of=lambda row: None,
    )
    assert "<script" not in text
    assert Reader(text).text.count(evil) > 15


def test_a_synthetic_run_says_so_in_page_and_markdown_and_a_real_one_does_not(full: str) -> None:
    real = manifest(data=manifest()["data"] | {"synthetic": False})
    found = [evaluation("best", 3, 0.5, synthetic=False)]
    assert "Synthetic data:" in full
    assert "Synthetic data:" in metric_table_markdown([evaluation("best", 3, 0.5)])
    assert "ynthetic" not in page(manifest=real, evaluations=found, metrics=[])
    assert "ynthetic" not in metric_table_markdown(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluations": []},
        {"metrics": []},
        {"metrics": [row for row in metrics() if row["kind"] == "step"][:1], "evaluations": []},
        {"metrics": [], "evaluations": [evaluation("untrained", 0, 0.08)]},
        {
            "metrics": [],
            "evaluations": [],
            "status": {"state": "running", "updated": "2026-11-22T10:42:00+00:00"},
        },
    ],
    ids=["not evaluated", "no metrics", "one step", "only untrained", "just started"],
)
def test_a_run_that_is_not_complete_has_a_report(changes: dict[str, Any]) -> None:
    text = Reader(page(**changes)).text
    assert ("Not evaluated yet" in text) == (changes.get("evaluations") == [])
    assert ("No metrics yet" in text) == (changes.get("metrics") == [])


def test_images_of_another_data_set_are_never_shown() -> None:
    asked: list[int] = []

    def record(row: int) -> bytes | None:
        asked.append(row)
        return picture(row)

    other = evaluation("best", 3, 0.5)
    other["data"] = other["data"] | {"hash": "0" * 64}
    page(evaluations=[other], metrics=[], image_of=record)
    assert asked == []


def test_evaluations_by_different_protocols_are_not_in_one_table() -> None:
    other = evaluation("last", 4, 0.7)
    other["protocol"] = other["protocol"] | {"shots": 2}
    markdown = metric_table_markdown([evaluation("best", 3, 0.5), other])
    tables = markdown.split("| Direction |")[1:]
    assert len(tables) == 2
    assert "best" in tables[0] and "last" not in tables[0]
    assert "shots 1" in tables[0] and "shots 2" in tables[1]


def test_markdown_table_has_the_cells_of_the_page(full: str) -> None:
    found = [
        evaluation("best", 360, 0.612),
        evaluation("last", 400, 0.598),
        evaluation("untrained", 0, 0.081),
    ]
    lines = [line.strip("| ").split(" | ") for line in metric_table_markdown(found).splitlines() if "±" in line]
    cells = [line[2:] for line in lines if len(line) == 8]
    page_cells = metric_rows(full)
    models = ["untrained", "last (step 400)", "best (step 360)"]
    assert cells == [page_cells[model][place] for place in range(2) for model in models]


def test_provenance_names_what_is_needed_to_repeat_the_run(full: str) -> None:
    text = Reader(full).text
    for needed in (
        HASH,
        "0123456789abcdef",
        "icre train --config configs/demo.yaml",
        "torch 2.13.0",
        "ab12" * 16,
    ):
        assert needed in text


def test_the_same_run_gives_the_same_bytes(full: str) -> None:
    assert page() == full


def test_other_runs_stand_beside_the_first_where_they_were_evaluated_alike() -> None:
    elsewhere = evaluation("best", 5, 0.2, data={**evaluation("best", 5, 0.2)["data"], "hash": "another"})
    baseline = content(name="baseline", evaluations=[evaluation("best", 200, 0.305), elsewhere])
    collector = FigureCollector()
    read = Reader(page(others=[baseline], collector=collector))
    models = {row[0] if len(row) == 7 else row[1] for row in read.rows if len(row) in (7, 8)}
    own = "demo-20261122-101500"
    assert {f"{own}: best (step 360)", f"{own}: untrained", "baseline: best (step 200)", "chance"} <= models
    assert not any("step 5" in model for model in models)
    assert {"training", "training-comparison", "folder-0-cmc-visible_to_infrared"} <= set(collector.names)
    # The histograms are those of the network before training and of each trained one.
    assert f"{own}, no better" not in read.text and "30.5" in read.text


def test_each_figure_is_a_picture_for_print_too() -> None:
    collector = FigureCollector()
    figure = cmc_curves({"a": [0.5, 1.0]})
    embedded = collector.embed("cmc", figure, "webp")
    assert embedded.startswith("data:image/webp;base64,")
    files = collector.files()
    assert files.keys() == {"cmc.png", "cmc.pdf"} and files["cmc.pdf"].startswith(b"%PDF")
    with Image.open(io.BytesIO(files["cmc.png"])) as image:
        assert image.format == "PNG" and image.info["dpi"][0] == pytest.approx(300, abs=1)


def test_what_the_networks_see_is_on_the_page() -> None:
    collector = FigureCollector()
    drawn = [Picture("grad-cam", "Where the networks look", "Some words.", cmc_curves({"a": [0.5, 1.0]}))]
    read = Reader(page(pictures=drawn, collector=collector))
    assert "Where the networks look" in read.text and "Some words." in read.text
    assert len(collector.names) == sum(tag == "img" for tag, _ in read.elements)


def test_camera_pairs_are_a_table_in_the_order_of_their_numbers() -> None:
    found = evaluation("best", 360, 0.612)
    found["directions"]["visible_to_infrared"]["camera_pairs"].pop(0)
    head, *rows = camera_table(found, "visible_to_infrared")
    assert head == ["query camera", "gallery 1", "gallery 10"]
    assert rows == [["3", "–", "61.2 / 40.0"], ["6", "61.2 / 40.0", "61.2 / 40.0"]]
    markdown = camera_tables_markdown(found)
    assert "| 3 | – | 61.2 / 40.0 |" in markdown and "infrared to visible, best (step 360), folder:" in markdown
    for scores in found["directions"].values():
        scores["camera_pairs"] = scores["camera_pairs"][:1]
    assert camera_tables_markdown(found) == ""
