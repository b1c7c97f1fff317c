"""Figures of network behaviour on test images: the paper's feature scatter, Grad-CAM, MPFR masks and SDCE attention.

Identities and images are evenly spaced over the split, not cherry-picked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre import config, figures
from icre.data import images
from icre.data.augmentation import normalise
from icre.data.records import Record
from icre.explain.attention import attention_of
from icre.explain.grad_cam import grad_cam, partners, similarity_to
from icre.explain.masks import mask_maps
from icre.explain.sample_selection import spread_rows
from icre.explain.tsne import FEWEST, scatter
from icre.model.network import ICRENetwork
from pipelines.data.prepared import PreparedData
from pipelines.evaluation.measure import SPLIT
from pipelines.runtime.progress import progress

SCATTERED, SHOWN = 10, 4
"""Identities in the scatter, and in the rows of images."""
IMAGES_EACH = 10
"""Images per identity and modality in the scatter."""


@dataclass(frozen=True, eq=False)
class Model:
    """An evaluated network."""

    label: str
    network: ICRENetwork
    features: torch.Tensor
    """(N, D) features of the test split."""


@dataclass(frozen=True)
class Picture:
    """A figure and its text."""

    name: str
    title: str
    text: str
    figure: Figure


@dataclass(frozen=True)
class Examples:
    """Example images of the test split and their identities."""

    data: PreparedData
    recipe: config.Recipe

    @cached_property
    def records(self) -> list[Record]:
        """Records of the whole split."""
        return self.data.records(self.data.rows_of(SPLIT))

    @cached_property
    def shown(self) -> list[int]:
        """Rows of the split: pairs of a visible and an infrared image of one identity."""
        return spread_rows(self.records, identities=SHOWN, per_modality=1)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """(n, H, W, 3) pixels at the network's input size."""
        rows = self.data.rows_of(SPLIT)
        height, width = self.recipe.data.height, self.recipe.data.width
        encoded = (self.data.image(rows[row]) for row in self.shown)
        return np.stack([images.decode(content, height=height, width=width) for content in encoded])

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Network inputs: images, and which of them are infrared."""
        infrared = torch.tensor([self.records[row].modality == "infrared" for row in self.shown])
        return normalise(torch.from_numpy(self.pixels).permute(0, 3, 1, 2)), infrared

    def caption(self, number: int) -> str:
        """Caption of one of the shown images."""
        record = self.records[self.shown[number]]
        return f"{record.pid}, cam {record.camid}"


def pictures(models: Sequence[Model], examples: Examples) -> list[Picture]:
    """All figures of ``models``; masks and attention only for models that have them."""
    if not models or not examples.shown:
        return []
    draw: list[Callable[[], Picture | None]] = [partial(_scatter, models, examples), partial(_heat, models, examples)]
    for number, model in enumerate(models):
        if model.network.mpfr is not None:
            draw.append(partial(_masks, model, number, examples))
        if model.network.sdce is not None:
            draw.append(partial(_attention, model, number, examples))
    found = []
    with progress("report: what the networks see", len(draw), "pictures") as advance:
        for one in draw:
            found.append(one())
            advance(1)
    return [picture for picture in found if picture is not None]


def _scatter(models: Sequence[Model], examples: Examples) -> Picture | None:
    rows = spread_rows(examples.records, identities=SCATTERED, per_modality=IMAGES_EACH)
    if len(rows) < FEWEST:
        return None
    people = [examples.records[row].pid for row in rows]
    infrared = [examples.records[row].modality == "infrared" for row in rows]
    drawn = [figures.Scatter(model.label, scatter(model.features[rows]), people, infrared) for model in models]
    text = (
        f"Features of {len(set(people))} people by t-SNE: colour and shape are the person, filled marks visible "
        "images, hollow ones infrared. Near means alike; distances between groups and the axes mean nothing."
    )
    return Picture("features", "Features in the plane", text, figures.feature_scatter(drawn))


def _heat(models: Sequence[Model], examples: Examples) -> Picture:
    batch, infrared = examples.inputs
    heat = {}
    for model in models:
        references = partners(model.features, examples.records, examples.shown)
        heat[model.label] = grad_cam(model.network, batch, infrared, similarity_to(references)).cpu().numpy()
    columns = [
        figures.GradCamSample(image, examples.caption(number), {label: maps[number] for label, maps in heat.items()})
        for number, image in enumerate(examples.pixels)
    ]
    text = (
        "Grad-CAM: which places bring an image near the same person's images of the other kind. "
        "Each map goes up to its own largest value."
    )
    return Picture("grad-cam", "Where the networks look", text, figures.heat_rows(columns[::2], columns[1::2]))


def _masks(model: Model, number: int, examples: Examples) -> Picture:
    assert model.network.mpfr is not None
    maps = mask_maps(model.network, *examples.inputs).cpu().numpy()
    columns = [
        figures.MaskSample(image, examples.caption(place), maps[place]) for place, image in enumerate(examples.pixels)
    ]
    figure = figures.mask_overlays(columns[::2], columns[1::2], stages=model.network.mpfr.stages)
    text = "How much MPFR lets each stage of the backbone say at each place."
    return Picture(f"masks-{number}", f"MPFR's masks, {model.label}", text, figure)


def _attention(model: Model, number: int, examples: Examples) -> Picture:
    attended = attention_of(model.network, *examples.inputs)
    names = [f"{stage.kind}-attention" for stage in attended.stages]
    columns = [
        figures.AttentionSample(
            image,
            examples.caption(place),
            attended.cells[place],
            [stage.mean_BHW[place].cpu().numpy() for stage in attended.stages],
        )
        for place, image in enumerate(examples.pixels)
    ]
    text = (
        "From where the framed token, the strongest of the deep map, reads in each stage of SDCE; mean over the heads."
    )
    figure = figures.attention_map(columns[::2], columns[1::2], stages=names)
    return Picture(f"attention-{number}", f"SDCE's attention, {model.label}", text, figure)
