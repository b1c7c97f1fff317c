"""Dual-stream ResNet: one stem per modality, four shared stages (docs/method.md section 1).

Shape letters: B images, H x W pixels. Parameter names of the shared stages are torchvision's, so a public
ImageNet checkpoint loads unchanged (see :mod:`icre.model.weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from icre.model.recompute import recompute

STEM_CHANNELS = 64
STRIDE = 16
"""Image pixels per cell of X3 and X4: the last stage keeps the resolution of the third."""


@dataclass(frozen=True)
class Architecture:
    """A member of the ResNet family: block type, blocks per stage, and width."""

    block: Literal["basic", "bottleneck"]
    layers: tuple[int, int, int, int]
    width: int = 64
    """Channels inside the blocks of the first stage; doubled in each later stage."""
    stride_on_first_conv: bool = False
    """Whether the first convolution of a stage's first block halves the map, rather than a bottleneck's 3x3."""

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Output channels of X1..X4."""
        w = self.width * _BLOCKS[self.block].expansion
        return (w, 2 * w, 4 * w, 8 * w)


class Stages(NamedTuple):
    """Outputs of the shared stages; ``x1`` is the finest map, ``x3`` and ``x4`` have the same size."""

    x1: Tensor
    x2: Tensor
    x3: Tensor
    x4: Tensor


class DualStreamResNet(nn.Module):
    """ResNet with separate stems for visible and infrared images and shared ``layer1`` .. ``layer4``."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        # Whether training keeps only the outputs of the stages and recomputes each stage in the backward pass.
        self.recompute_stages = False
        self.stem = DualStem()
        channels = (STEM_CHANNELS, *architecture.channels)
        self.layer1 = _stage(architecture, 0, channels[0], stride=1)
        self.layer2 = _stage(architecture, 1, channels[1], stride=2)
        self.layer3 = _stage(architecture, 2, channels[2], stride=2)
        # Stride 1 doubles the height and width of the map at no cost in parameters.
        self.layer4 = _stage(architecture, 3, channels[3], stride=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Differently initialised stems would make modality the easiest feature to separate.
        self.stem.infrared.load_state_dict(self.stem.visible.state_dict())

    def forward(self, images_B3HW: Tensor, infrared: Tensor | bool) -> Stages:
        """X1..X4 of a batch, rows in the order given; see :meth:`DualStem.forward` for ``infrared``."""
        x1 = self._run(self.layer1, self.stem(images_B3HW, infrared))
        x2 = self._run(self.layer2, x1)
        x3 = self._run(self.layer3, x2)
        return Stages(x1, x2, x3, self._run(self.layer4, x3))

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.recompute_stages and self.training and torch.is_grad_enabled():
            return recompute(stage, x)
        out: Tensor = stage(x)
        return out


class DualStem(nn.Module):
    """Sends each row through the stem of its modality: conv 7x7/2, BN, ReLU, max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.visible = Stem()
        self.infrared = Stem()

    def forward(self, images_B3HW: Tensor, infrared: Tensor | bool) -> Tensor:
        """Map Bx3xHxW to Bx64x(H/4)x(W/4), rows in the order given.

        ``infrared`` is a bool mask of shape (B,), or one bool for a batch of a single modality. A single bool avoids
        reading the mask's values (tracing, meta tensors). With images on a GPU keep the mask on the CPU: reading it
        then forces no sync. A stem without rows is not run and its batch statistics do not change. In training over
        several workers, each therefore needs both modalities.
        """
        if isinstance(infrared, bool):
            return self._single(images_B3HW, infrared)
        count = int(infrared.sum())
        if count in (0, len(infrared)):
            return self._single(images_B3HW, count > 0)
        order_B = torch.argsort(infrared.to(torch.uint8), stable=True)
        back_B = torch.argsort(order_B).to(images_B3HW.device, non_blocking=True)
        rows = images_B3HW[order_B.to(images_B3HW.device, non_blocking=True)]
        out = torch.cat([self.visible(rows[:-count]), self.infrared(rows[-count:])])
        return out[back_B]

    def _single(self, images: Tensor, infrared: bool) -> Tensor:
        out: Tensor = self.infrared(images) if infrared else self.visible(images)
        return out


class Stem(nn.Module):
    """The first layers of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map Bx3xHxW to Bx64x(H/4)x(W/4)."""
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return out


class BasicBlock(nn.Module):
    """``ReLU(F(x) + shortcut(x))`` with F of two 3x3 convolutions (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, strides[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, strides[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, max(strides))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``B x inputs x h x w`` to ``expansion`` times ``width`` channels, h and w over the strides."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y.add_(self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """``ReLU(F(x) + shortcut(x))`` with F of 1x1, 3x3 and 1x1 convolutions (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, strides: tuple[int, int]) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1, strides[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, strides[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, max(strides))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``B x inputs x h x w`` to ``expansion`` times ``width`` channels, h and w over the strides."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y.add_(self.downsample(x)))
        return out


_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture("basic", (2, 2, 2, 2), stride_on_first_conv=True),
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3)),
    "resnet50_half": Architecture("bottleneck", (3, 4, 6, 3), width=32, stride_on_first_conv=True),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _stage(architecture: Architecture, index: int, inputs: int, *, stride: int) -> nn.Sequential:
    block = _BLOCKS[architecture.block]
    width = architecture.width * 2**index
    strides = (stride, 1) if architecture.stride_on_first_conv else (1, stride)
    blocks = [block(inputs, width, strides)]
    blocks += [block(width * block.expansion, width, (1, 1)) for _ in range(architecture.layers[index] - 1)]
    return nn.Sequential(*blocks)
