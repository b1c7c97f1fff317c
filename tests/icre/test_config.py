from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from icre import config
from icre.config import Recipe, json_schema, load_recipe, parse_recipe
from icre.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def problems(*overrides: str, path: Path | None = None) -> list[str]:
    """The lines of the error, one a problem."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Defaults and files


def test_defaults_are_the_sgd_recipe_of_the_method() -> None:
    recipe = load_recipe()
    assert recipe.batch.size == 64
    assert (recipe.data.height, recipe.data.width) == (288, 144)
    assert (recipe.optimizer.lr, recipe.optimizer.backbone_lr, recipe.optimizer.weight_decay) == (0.1, 0.01, 5e-4)
    assert (recipe.schedule.warmup_epochs, recipe.schedule.milestones, recipe.train.epochs) == (10, (20, 50), 80)
    assert (recipe.loss.icg.weight, recipe.loss.icg.rho1, recipe.loss.icg.rho2) == (1, 0.1, 0.7)
    assert all(recipe.has(component) for component in ("mpfr", "sdce", "icg"))


def test_recipes_are_shipped() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_recipe_loads_and_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_round_trip_keeps_every_kind_of_value(tmp_path: Path) -> None:
    recipe = load_recipe(
        None,
        [
            "data.root='s3://bucket/Bücher: 7 #x'",
            "data.synthetic.difficulty=1",
            "components=[]",
            "model.mpfr_stages=[2,3,4]",
            f"model.weights_sha256='{7:064d}'",
            "model.weights=null.pth",
            "optimizer.lr=1.2345678901234567e-12",
            "optimizer.max_grad_norm=3",
            "schedule.milestones=[]",
            "train.steps_per_epoch=7",
            "name='1.0'",
        ],
    )
    read = load_recipe(write(tmp_path, recipe.to_yaml()))
    assert read == recipe
    assert read.data.root == "s3://bucket/Bücher: 7 #x"
    assert (read.components, read.model.mpfr_stages, read.schedule.milestones) == ((), (2, 3, 4), ())
    assert (read.optimizer.lr, read.name) == (1.2345678901234567e-12, "1.0")
    assert parse_recipe(json.loads(json.dumps(recipe.to_dict())), where="the driver") == recipe


def test_values_do_not_change_once_read() -> None:
    recipe = load_recipe()
    with pytest.raises(ValidationError):
        recipe.train.epochs = 3


def test_missing_file_names_the_one_that_was_meant(tmp_path: Path) -> None:
    write(tmp_path, "", "regdb.yaml")
    write(tmp_path, "", "sysu.yaml")
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "sisu.yaml")
    assert "sisu.yaml" in caught.value.message
    assert "sysu.yaml" in caught.value.hint and "regdb.yaml" not in caught.value.hint


def test_missing_folder_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_recipe(tmp_path / "none" / "x.yaml")


@pytest.mark.parametrize("text", ["train: [1", "- a\n- b", "just words", "3", "a: &a [*a]", "2026-11-22: 1"])
def test_what_is_not_a_mapping_of_words_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_recipe(write(tmp_path, text))


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_recipe(path)
    with pytest.raises(ConfigError):
        load_recipe(tmp_path)


def test_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "# nothing\n")) == Recipe()


# Overrides


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("train.epochs=20", "train", "epochs", 20),
        (" train.epochs =20", "train", "epochs", 20),
        ("optimizer.lr=1e-3", "optimizer", "lr", 0.001),
        ("model.mpfr_stages=[2, 3]", "model", "mpfr_stages", (2, 3)),
        ("train.sync_batch_norm=false", "train", "sync_batch_norm", False),
        ("loss.triplet=batch_hard", "loss", "triplet", "batch_hard"),
        ("loss.triplet=null", "loss", "triplet", None),
        ("data.root=a=b", "data", "root", "a=b"),
        ("data.root=", "data", "root", None),
    ],
)
def test_override_values_are_yaml(override: str, section: str, field: str, value: Any) -> None:
    assert getattr(getattr(load_recipe(None, [override]), section), field) == value


def test_overrides_change_only_their_key_and_the_last_one_counts(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 30, workers: 2}\naugmentation:\ndata: {split: {val: 0.2}}\n")
    recipe = load_recipe(
        path, ["train.epochs=40", "train.epochs=50", "augmentation.pad=2", "data.split={file: s.json}", "seed=4"]
    )
    assert (recipe.train.epochs, recipe.train.workers, recipe.augmentation.pad, recipe.seed) == (50, 2, 2, 4)
    assert (recipe.data.split.file, recipe.data.split.val) == ("s.json", 0.1)
    assert load_recipe(path, ["augmentation={}"]).train.epochs == 30


def test_override_reaches_a_section_that_is_absent_by_default() -> None:
    synthetic = load_recipe(None, ["data.synthetic.identities=5"]).data.synthetic
    assert synthetic is not None and synthetic.identities == 5


@pytest.mark.parametrize(
    "override", ["train.epochs", "=5", "train.epochs=[1", "name.x.y=3", "train=3", "x.y=3", "a..b=1"]
)
def test_override_of_a_wrong_form_is_named(override: str) -> None:
    assert any(override.split("=")[0].split(".")[0] in line for line in problems(override))


def test_override_below_a_plain_value_is_named(tmp_path: Path) -> None:
    assert any("seed.low" in line for line in problems("seed.low=3", path=write(tmp_path, "seed: 7")))


# Errors


@pytest.mark.parametrize(
    ("override", "unknown", "closest"),
    [
        ("trian.epochs=1", "trian", "train"),
        ("train.epoch=1", "train.epoch", "epochs"),
        ("data.split.tset=0.1", "data.split.tset", "test"),
        ("data.synthetic.identitys=3", "data.synthetic.identitys", "identities"),
        ("loss.icg.rho_1=0.1", "loss.icg.rho_1", "rho1"),
        ("model.head=3", "model.head", "heads"),
    ],
)
def test_unknown_key_names_the_closest(override: str, unknown: str, closest: str) -> None:
    [line] = problems(override)
    assert unknown in line
    assert f"'{closest}'" in line


def test_unknown_key_like_no_other_lists_what_is_known() -> None:
    [line] = problems("batch.zzz=1")
    assert all(known in line for known in ("identities", "visible", "infrared"))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "trian: {epochs: 3}\ntrain: {epochs: many, workers: 12}\nmodel: {mpfr_stages: [1, 9]}\n")
    lines = problems("model.dim=33", "batch.identities=9", "optimizer.lr=0", "no-equals", path=path)
    for expected in ("trian", "train.epochs", "mpfr_stages", "model.dim=33", "batch.identities=9", "lr", "no-equals"):
        assert sum(expected in line for line in lines) == 1, (expected, lines)
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["components=[mpfr,mpfr]"], ["components"]),
        (["loss.icg.weight=0"], ["loss.icg.weight"]),
        (["model.dim=30", "model.heads=4"], ["model.dim=30", "model.heads=4"]),
        (["model.mpfr_stages=[]"], ["model.mpfr_stages"]),
        (["model.mpfr_stages=[3,2]"], ["model.mpfr_stages"]),
        (["model.mpfr_stages=[2,2]"], ["model.mpfr_stages"]),
        (["model.sdce_order=self"], ["model.sdce_order"]),
        ([f"model.weights_sha256='{7:064d}'"], ["model.weights_sha256"]),
        (["model.weights=http://host/r50.pth"], ["model.weights=http://host/r50.pth"]),
        (["batch.identities=3", "train.workers=[2,4]"], ["batch.identities=3", "train.workers=4"]),
        (["train.workers=[4,2]"], ["train.workers=[4, 2]"]),
        (["train.workers=[1,2]", "compute.micro_batches=8"], ["train.workers=2", "compute.micro_batches=8"]),
        (["batch.identities=2", "train.workers=4"], ["batch.identities=2", "train.workers=4"]),
        (["batch.identities=8", "compute.micro_batches=3"], ["batch.identities=8", "compute.micro_batches=3"]),
        (["train.workers=4", "compute.micro_batches=4"], ["train.workers=4", "compute.micro_batches=4"]),
        (
            ["compute.compile=true", "compute.checkpoint_activations=true"],
            ["compute.compile", "compute.checkpoint_activations"],
        ),
        (["data.split.val=0.4", "data.split.test=0.6"], ["data.split.val=0.4", "data.split.test=0.6"]),
        (["schedule.milestones=[30,20]"], ["schedule.milestones"]),
        (["schedule.milestones=[20,20]"], ["schedule.milestones"]),
        (["train.epochs=5"], ["schedule.warmup_epochs", "train.epochs=5"]),
    ],
)
def test_rules_between_fields(overrides: list[str], keys: list[str]) -> None:
    [line] = problems(*overrides)
    assert all(key in line for key in keys), line


@pytest.mark.parametrize(
    "overrides",
    [
        ["components=[sdce]", "loss.icg.weight=0"],
        ["components=[sdce,icg]", "model.sdce_order=self"],
        ["model.weights=r50.pth", f"model.weights_sha256='{7:064d}'"],
        ["batch.identities=8", "train.workers=8"],
        ["batch.identities=6", "train.workers=[1,4]"],
        ["batch.identities=8", "train.workers=2", "compute.micro_batches=4"],
        ["data.split.file=s.json", "data.split.val=0.4", "data.split.test=0.6"],
        ["data.split.val=0", "data.split.test=0.9"],
        ["train.epochs=10"],
    ],
)
def test_what_the_rules_between_fields_allow(overrides: list[str]) -> None:
    load_recipe(None, overrides)


@pytest.mark.parametrize(
    "override",
    [
        "data.height=100",
        "data.width=16",
        "data.name=a/b",
        "data.name=-x",
        "data.jpeg_quality=101",
        "data.max_unreadable_share=1.1",
        "model.backbone=resnet51",
        "model.weights_sha256=abc",
        "components=[mpfr, sdc]",
        "batch.visible=0",
        "augmentation.flip=-0.1",
        "optimizer.lr=.inf",
        "optimizer.lr=.nan",
        "loss.icg.weight=.inf",
        "train.epochs=1.5",
        "train.max_failures=-1",
        "compute.precision=fp8",
        "compute.micro_batches=0",
        "evaluation.camera_rule=sysu",
        "evaluation.protocol=sysu",
        "seed=-1",
        f"seed={2**31}",
    ],
)
def test_values_out_of_range_are_named(override: str) -> None:
    [line] = problems(override)
    assert override.partition("=")[0] in line


def _paths(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((*prefix, name))
        if isinstance(field.default, BaseModel):
            found += _paths(type(field.default), (*prefix, name))
    return found


PATHS = [*_paths(Recipe), ("data", "synthetic", "identities"), ("train", "unknown"), ("",)]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=5),
    st.just(datetime.date(2026, 11, 22)),
    st.sampled_from(["mpfr", "self", "adam", "none"]),
    st.lists(st.integers(0, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), max_size=5))
@example([(("train", "workers"), {"min": 1})])
def test_any_values_give_a_recipe_or_an_error_for_the_user(chosen: list[tuple[tuple[str, ...], Any]]) -> None:
    values: dict[str, Any] = {}
    for path, value in chosen:
        node = values
        for part in path[:-1]:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[path[-1]] = value
    try:
        recipe = parse_recipe(values, where="the test")
    except ConfigError:
        return
    assert parse_recipe(recipe.to_dict(), where="the test") == recipe


# Schema


def test_every_key_is_explained_in_the_schema() -> None:
    schema = json.loads(json_schema())
    definitions = schema["$defs"]
    assert len(definitions) >= 12

    def explained(field: dict[str, Any]) -> bool:
        references = [field.get("$ref"), *(option.get("$ref") for option in field.get("anyOf", []))]
        sections = [definitions[name.rsplit("/", 1)[1]] for name in references if name]
        return bool(field.get("description")) or any(section.get("description") for section in sections)

    silent = [
        f"{section}.{name}"
        for section, definition in {"Recipe": schema, **definitions}.items()
        for name, field in definition["properties"].items()
        if not explained(field)
    ]
    assert silent == []


def test_schema_knows_every_key_and_no_other() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert all(part["additionalProperties"] is False for part in (schema, *schema["$defs"].values()))


def test_every_relative_location_becomes_absolute_and_no_other_value_changes() -> None:
    written = ["storage=there", "data.root=images", "data.split.file=split.json", "model.weights=../w.pth"]
    recipe = config.override(config.Recipe(), [*written, "telemetry.mlflow=mlruns"], where="the test")
    found = config.located(recipe, Path("/a/b"))
    assert {key: value for key, (_, value) in config.differences(recipe, found).items()} == {
        "storage": "/a/b/there",
        "data.root": "/a/b/images",
        "model.weights": "/a/b/../w.pth",
        "telemetry.mlflow": "/a/b/mlruns",
    }
    assert config.located(found, Path("/elsewhere")) == found
    remote = [
        "storage=s3://bucket/p",
        "data.root=s3://bucket/i",
        "model.weights=https://host/w",
        "telemetry.mlflow=file:x",
    ]
    recipe = config.override(config.Recipe(), remote, where="the test")
    assert config.located(recipe, Path("/a/b")) == recipe
