from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from icre.errors import WeightsError
from icre.model.backbone import ARCHITECTURES, Architecture, DualStreamResNet
from icre.model.weights import load_pretrained

TINY = Architecture("bottleneck", (1, 1, 1, 1), width=4)
SHARED = Path(os.environ.get("ICRE_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
State = dict[str, Tensor]


@pytest.fixture
def backbone() -> DualStreamResNet:
    return DualStreamResNet(TINY)


def public_state() -> State:
    """A checkpoint as torchvision would write it for this shape, names spelt out."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for stage, width in enumerate((4, 8, 16, 32), start=1):
        block = f"layer{stage}.0"
        shapes |= {f"{block}.conv1.weight": (width, inputs, 1, 1), **norm(f"{block}.bn1", width)}
        shapes |= {f"{block}.conv2.weight": (width, width, 3, 3), **norm(f"{block}.bn2", width)}
        shapes |= {f"{block}.conv3.weight": (4 * width, width, 1, 1), **norm(f"{block}.bn3", 4 * width)}
        shapes |= {f"{block}.downsample.0.weight": (4 * width, inputs, 1, 1)}
        shapes |= norm(f"{block}.downsample.1", 4 * width)
        inputs = 4 * width
    shapes |= {"fc.weight": (10, inputs), "fc.bias": (10,)}
    state = {name: torch.rand(shape) for name, shape in shapes.items()}
    return state | {name: torch.tensor(7) for name in state if name.endswith("num_batches_tracked")}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.num_batches_tracked": ()}


def save(state: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)  # type: ignore[arg-type]
    else:
        torch.save(state, path)
    return path


def assert_holds(backbone: DualStreamResNet, state: State) -> None:
    own = backbone.state_dict()
    for name, value in state.items():
        if name.startswith(("conv1", "bn1")):
            assert torch.equal(own.pop(f"stem.visible.{name}"), value)
            assert torch.equal(own.pop(f"stem.infrared.{name}"), value)
        elif not name.startswith("fc."):
            assert torch.equal(own.pop(name), value)
    assert own == {}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_public_checkpoint_fills_both_stems_and_every_stage(
    name: str, tmp_path: Path, backbone: DualStreamResNet
) -> None:
    state = public_state()
    path = save(state, tmp_path / name)
    load_pretrained(backbone, path, sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())
    assert_holds(backbone, state)


def test_batch_counters_may_be_absent(tmp_path: Path, backbone: DualStreamResNet) -> None:
    state = {name: value for name, value in public_state().items() if "num_batches" not in name}
    load_pretrained(backbone, save(state, tmp_path / "old.pth"))
    own = backbone.state_dict()
    assert_holds(
        backbone,
        state | {n.removeprefix("stem.visible."): v for n, v in own.items() if "_tracked" in n and "infrared" not in n},
    )


def test_stems_are_copies_that_can_part(tmp_path: Path, backbone: DualStreamResNet) -> None:
    load_pretrained(backbone, save(public_state(), tmp_path / "weights.pth"))
    with torch.no_grad():
        backbone.stem.visible.conv1.weight.add_(1)
    difference = backbone.stem.visible.conv1.weight - backbone.stem.infrared.conv1.weight
    torch.testing.assert_close(difference, torch.ones_like(difference))


def drop(state: State) -> State:
    return {name: value for name, value in state.items() if name != "layer2.0.bn1.running_var"}


def add(state: State) -> State:
    return state | {"layer2.1.conv1.weight": torch.zeros(1)}


def reshape(state: State) -> State:
    return state | {"layer3.0.conv2.weight": torch.zeros(16, 8, 3, 3)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, "layer2.0.bn1.running_var"),
        (add, "layer2.1.conv1.weight"),
        (reshape, "layer3.0.conv2.weight has shape 16x8x3x3, expected 16x16x3x3"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_key_and_changes_nothing(
    change: Callable[[State], State], named: str, tmp_path: Path, backbone: DualStreamResNet
) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_pretrained(backbone, save(change(public_state()), tmp_path / "weights.pth"))
    assert named in error.value.message and "width=4" in error.value.message
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_many_problems_are_cut_short_and_counted(tmp_path: Path, backbone: DualStreamResNet) -> None:
    state = {f"module.{name}": value for name, value in public_state().items() if "_tracked" not in name}
    with pytest.raises(WeightsError) as error:
        load_pretrained(backbone, save(state, tmp_path / "weights.pth"))
    problems = 2 * (len(state) - 2) + 2
    assert error.value.message.count("missing ") == 8 and f"{problems - 8} more" in error.value.message


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html><body>Not found</body></html>")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("damage", [truncated, emptied, garbled])
def test_a_damaged_file_is_the_users_to_replace(
    name: str, damage: Callable[[Path], None], tmp_path: Path, backbone: DualStreamResNet
) -> None:
    path = save(public_state(), tmp_path / name)
    damage(path)
    with pytest.raises(WeightsError, match=name):
        load_pretrained(backbone, path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"conv1.weight": torch.zeros(1)}}, torch.zeros(2)])
def test_a_file_that_is_no_flat_state_dict_is_refused(
    content: object, tmp_path: Path, backbone: DualStreamResNet
) -> None:
    with pytest.raises(WeightsError):
        load_pretrained(backbone, save(content, tmp_path / "weights.pth"))


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, backbone: DualStreamResNet) -> None:
    path = save({"conv1.weight": Payload(tmp_path / "harm")}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError):
        load_pretrained(backbone, path)
    assert not (tmp_path / "harm").exists()


def test_a_missing_file_and_a_wrong_checksum_are_named(tmp_path: Path, backbone: DualStreamResNet) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(WeightsError, match="no such file"):
        load_pretrained(backbone, path)
    save(public_state(), path)
    with pytest.raises(WeightsError, match="0" * 64):
        load_pretrained(backbone, path, sha256="0" * 64)


@pytest.mark.skipif(
    not (SHARED / "resnet50_half.pth").is_file(),
    reason=f"no resnet50_half.pth under {SHARED} (ICRE_SHARED_DATA)",
)
def test_real_weights_load_into_the_half_width_network() -> None:
    path = SHARED / "resnet50_half.pth"
    backbone = DualStreamResNet(ARCHITECTURES["resnet50_half"])
    load_pretrained(backbone, path, sha256="af22357f3628ec16c7d38b8471878d4889c85aaddfe2b977dd2a0376401d51fb")
    assert_holds(backbone, torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        maps = backbone.eval()(images, torch.tensor([True, False]))
    # Measured statistics keep each stage in a sane range; a wrong stride or a wrong key does not.
    assert all(torch.isfinite(m).all() and 0.01 < m.mean() < 10 for m in maps)
